//! The KVM probe's guest, under software emulation, where guests run for certain: without that a
//! probe that always says no would pass for a host without KVM. And kernels made for this that
//! never come to user space.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_chaos_tests::slots;
use mayfly_engine::Engine;
use mayfly_engine::kvm::{Bounds, Outcome, Probe, run};
use mayfly_host::instance::Instance;
use mayfly_host::time_scale::scaled;
use mayfly_vmm::Accel;

use crate::support::engine;

/// Runs a guest with the kernel of the golden image, or with another one.
async fn probe(kernel: Option<&Path>, bounds: Bounds) -> Outcome {
    let (engine, golden) = engine().await;
    let _one = slots::take(1);
    let artifacts =
        engine.layout().images().join("rootfs").join(&golden.manifest().labels["image_key"]);
    let own = artifacts.join("vmlinux");
    let instance = Instance::enter(engine.layout()).unwrap();
    let (driver, initramfs) = (&**Engine::driver(&engine), artifacts.join("initramfs.cpio"));
    let (kernel, initramfs) = (kernel.unwrap_or(&own), initramfs.as_path());
    run(Probe { driver, instance: &instance, kernel, initramfs }, Accel::Tcg, bounds).await
}

fn bounds(silence: u64, total: u64) -> Bounds {
    let seconds = |seconds| scaled(Duration::from_secs(seconds));
    Bounds { silence: seconds(silence), total: seconds(total) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_guest_answers_under_emulation() {
    assert_eq!(probe(None, bounds(60, 120)).await, Outcome::Answered);
}

/// Where the kernels below are in guest memory.
const BASE: u32 = 0x10_0000;

/// A kernel of `code` as QEMU boots it without a boot loader: an ELF file with one segment and a
/// note of where to begin in 32-bit mode (Xen `public/elfnote.h`, `XEN_ELFNOTE_PHYS32_ENTRY`).
fn kernel(code: &[u8]) -> (tempfile::TempDir, PathBuf) {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 20;
    let u16s = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let u32s = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let u64s = |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (entry, length) = (u64::from(BASE), code.len() as u64);
    let header = [
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        [
            u16s(&[2, 62]),
            u32s(&[1]),
            u64s(&[entry, 64, 0]),
            u32s(&[0]),
            u16s(&[64, 56, 2, 0, 0, 0]),
        ]
        .concat(),
    ];
    // Type, flags; offset, two addresses, sizes in file and memory, alignment.
    let segment =
        [u32s(&[1, 7]), u64s(&[HEADERS + NOTE, entry, entry, length, length, 4])].concat();
    let note = [u32s(&[4, 4]), u64s(&[HEADERS, 0, 0, NOTE, NOTE, 4])].concat();
    let entry_note = [u32s(&[4, 4, 18]), b"Xen\0".to_vec(), u32s(&[BASE])].concat();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, [header.concat(), segment, note, entry_note, code.to_vec()].concat())
        .unwrap();
    (dir, path)
}

/// `mov dx, 0x3f8; mov al, '.'; out dx, al; mov al, '\n'; out dx, al`
const PRINT: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xb0, b'\n', 0xee];
/// `jmp $`
const SPIN: [u8; 2] = [0xeb, 0xfe];

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_prints_nothing_is_stuck() {
    let (_dir, kernel) = kernel(&SPIN);
    let outcome = probe(Some(&kernel), bounds(4, 60)).await;
    assert!(
        matches!(&outcome, Outcome::Stopped(why) if why.contains("printed nothing")),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_still_is_stuck_and_says_where() {
    let (_dir, kernel) = kernel(&[&PRINT[..], &SPIN].concat());
    let outcome = probe(Some(&kernel), bounds(15, 120)).await;
    assert!(
        matches!(&outcome, Outcome::Stopped(why) if why.contains("stood still") && why.contains("`.`")),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_goes_on_is_too_slow_and_says_how_far_it_is() {
    // `mov ecx, 1 << 20; loop $`, and from the beginning.
    let wait = [0xb9, 0, 0, 0x10, 0, 0xe2, 0xfe];
    let back = [0xeb, 0u8.wrapping_sub(u8::try_from(PRINT.len() + wait.len() + 2).unwrap())];
    let (_dir, kernel) = kernel(&[&PRINT[..], &wait, &back].concat());
    let outcome = probe(Some(&kernel), bounds(60, 8)).await;
    assert!(
        matches!(&outcome, Outcome::TooSlow(why) if why.contains("still booting") && why.contains("`.`")),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_early_is_told_with_the_end() {
    // `lidt [BASE + 8]`, of which the limit is 0; `int3`: a triple fault.
    let code = [&[0x0f, 0x01, 0x1d][..], &(BASE + 8).to_le_bytes(), &[0xcc], &[0; 8]].concat();
    let (_dir, kernel) = kernel(&code);
    let outcome = probe(Some(&kernel), bounds(60, 120)).await;
    assert!(matches!(&outcome, Outcome::Stopped(why) if why.contains("QEMU ended")), "{outcome:?}");
}
