//! A toy guest under the real /dev/kvm: its faults come from the kernel, inside KVM_RUN, not from a
//! VMM thread.

use std::{fs::File, os::fd::OwnedFd, sync::atomic::Ordering, time::Duration};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use mayfly_pager::{Attachment, FailureKind, Mode, SessionEvent};

use super::{
    child::{GuestMemory, Vmm, map_guest},
    support::{CHUNK, PAGE, Pager, TestSource, next_event, page_content, wait_until},
};

const LEN: u64 = 8 << 20;
const C: u64 = CHUNK as u64;
/// Guest-physical layout: page tables and code in a slot of their own, the paged memory at 1 GiB.
const CODE: u64 = 0x8000;
const PAGED: u64 = 1 << 30;

/// Long mode, plain integer code:
/// ```text
///   mov rax, [rdi]      48 8b 07
///   add rbx, rax        48 01 c3
///   add rdi, rcx        48 01 cf
///   dec rsi             48 ff ce
///   jnz start           75 f2
///   mov rax, rbx        48 89 d8
///   out 0x10, eax       e7 10
///   shr rax, 32         48 c1 e8 20
///   out 0x11, eax       e7 11
///   hlt                 f4
/// ```
const PROGRAM: [u8; 28] = [
    0x48, 0x8b, 0x07, 0x48, 0x01, 0xc3, 0x48, 0x01, 0xcf, 0x48, 0xff, 0xce, 0x75, 0xf2, 0x48, 0x89,
    0xd8, 0xe7, 0x10, 0x48, 0xc1, 0xe8, 0x20, 0xe7, 0x11, 0xf4, 0x90, 0x90,
];

/// Interrupts off: KVM resolves a fault in the vCPU's own thread.
const CALM: u64 = 2;
/// Interrupts on (RFLAGS.IF): with an interrupt controller in the kernel, as every real guest has
/// one, KVM leaves a fault to a kernel thread and halts the vCPU meanwhile (`kvm_can_do_async_pf`,
/// arch/x86/kvm/x86.c).
const INTERRUPTIBLE: u64 = CALM | 1 << 9;

struct Guest {
    vcpu: VcpuFd,
    rflags: u64,
    len: u64,
    _vm: VmFd,
    _low: Box<Low>,
}

/// A guest with what it needs to be served by the pager.
struct Attached {
    guest: Guest,
    _memory: GuestMemory,
    _socket: OwnedFd,
}

impl Attached {
    fn new(kvm: &Kvm, attachment: &mut Attachment, rflags: u64) -> Self {
        let ram = attachment.take_ram_file().map(File::from);
        let socket = attachment.take_handshake().unwrap();
        let memory = map_guest(ram.as_ref(), attachment.ram_bytes(), &socket);
        Self { guest: Guest::new(kvm, &memory, LEN, rflags), _memory: memory, _socket: socket }
    }

    fn sum(&mut self) -> u64 {
        self.guest.sum()
    }
}

#[repr(C, align(4096))]
struct Low([u8; 0x10000]);

impl Guest {
    /// `memory` must outlive it.
    fn new(kvm: &Kvm, memory: &GuestMemory, len: u64, rflags: u64) -> Self {
        let mut low = Box::new(Low([0; 0x10000]));
        let mut put = |at: u64, value: u64| {
            low.0[usize::try_from(at).unwrap()..][..8].copy_from_slice(&value.to_le_bytes());
        };
        put(0x1000, 0x2003);
        put(0x2000, 0x3003);
        put(0x2008, 0x4003);
        put(0x3000, 0x83);
        for i in 0..len >> 21 {
            put(0x4000 + 8 * i, (PAGED + (i << 21)) | 0x83);
        }
        low.0[usize::try_from(CODE).unwrap()..][..PROGRAM.len()].copy_from_slice(&PROGRAM);
        let vm = kvm.create_vm().unwrap();
        if rflags == INTERRUPTIBLE {
            vm.create_irq_chip().unwrap();
        }
        let slots = [
            (0, 0, low.0.len() as u64, low.0.as_ptr() as u64),
            (1, PAGED, len, memory.base.as_ptr() as u64),
        ];
        for (slot, guest_phys_addr, memory_size, userspace_addr) in slots {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr,
                memory_size,
                userspace_addr,
                flags: 0,
            };
            // SAFETY: both mappings outlive the VM: they are dropped after it.
            unsafe { vm.set_user_memory_region(region).unwrap() };
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        // Without long mode in its CPUID a vCPU may not be put into it.
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.cr3 = 0x1000;
        sregs.cr4 = 1 << 5;
        sregs.cr0 = 1 << 31 | 1 << 5 | 1;
        sregs.efer = 1 << 8 | 1 << 10;
        for segment in [
            &mut sregs.cs,
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.ss,
            &mut sregs.fs,
            &mut sregs.gs,
        ] {
            segment.base = 0;
            segment.limit = u32::MAX;
            segment.present = 1;
            segment.s = 1;
            segment.g = 1;
            segment.db = 1;
            segment.type_ = 3;
            segment.selector = 0x10;
        }
        sregs.cs.type_ = 11;
        sregs.cs.selector = 0x8;
        sregs.cs.l = 1;
        sregs.cs.db = 0;
        vcpu.set_sregs(&sregs).unwrap();
        Self { vcpu, rflags, len, _vm: vm, _low: low }
    }

    /// The sum of one u64 per page over the paged memory, as the guest computes it.
    fn sum(&mut self) -> u64 {
        let Self { rflags, len, .. } = *self;
        let regs = kvm_regs {
            rip: CODE,
            rflags,
            rdi: PAGED,
            rsi: len / PAGE,
            rcx: PAGE,
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
        let mut sum = 0;
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(0x10, bytes) => {
                    sum |= u64::from(u32::from_le_bytes(bytes.try_into().unwrap()));
                }
                // The last word. A halt is no exit where the interrupt controller is the kernel's.
                VcpuExit::IoOut(0x11, bytes) => {
                    return sum | u64::from(u32::from_le_bytes(bytes.try_into().unwrap())) << 32;
                }
                exit => panic!("{exit:?}"),
            }
        }
    }
}

fn expected(source: &TestSource) -> u64 {
    (0..LEN / PAGE)
        .map(|page| {
            let bytes = source.expected(page * PAGE, PAGE);
            u64::from_le_bytes(bytes[..8].try_into().unwrap())
        })
        .fold(0, u64::wrapping_add)
}

fn kvm() -> Option<Kvm> {
    let kvm = Kvm::new().ok();
    if kvm.is_none() {
        mayfly_skip::skip("this host has no /dev/kvm, so the kernel-mode fault path is not tested");
    }
    kvm
}

#[test]
fn a_guest_in_shared_mode_sees_the_image_also_after_eviction() {
    let Some(kvm) = kvm() else { return };
    let source = TestSource::new(LEN, [3, 4, 77]);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    let mut guest = Attached::new(&kvm, &mut attachment, CALM);
    assert_ne!(page_content(1), [0; 4096]);
    assert_eq!(guest.sum(), expected(&source));
    let first = attachment.stats().unwrap().counters;
    assert!(
        first.faults >= LEN / C - 3 && first.fills == LEN / C - 3 && first.zero_pages > 0,
        "{first:?}"
    );
    assert_eq!(guest.sum(), expected(&source));
    assert_eq!(attachment.stats().unwrap().counters.fills, first.fills, "all of it is resident");

    assert_eq!(pager.client.evict(u64::MAX).unwrap(), LEN - 3 * C);
    assert_eq!(guest.sum(), expected(&source));
    let second = attachment.stats().unwrap().counters;
    assert_eq!(second.fills, 2 * first.fills, "evicted chunks fault again, in the guest");

    let mut later = pager.attach(Mode::Shared);
    let mut sibling = Attached::new(&kvm, &mut later, CALM);
    assert_eq!(sibling.sum(), expected(&source));
    assert_eq!(later.stats().unwrap().counters.fills, 0);
    assert_eq!((attachment.try_event(), later.try_event()), (None, None));
}

#[test]
fn a_guest_in_copy_mode_sees_the_image() {
    let Some(kvm) = kvm() else { return };
    let source = TestSource::new(LEN, [0, 5]);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Copy);
    let mut guest = Attached::new(&kvm, &mut attachment, CALM);
    assert_eq!(guest.sum(), expected(&source));
    pager.client.evict(u64::MAX).unwrap();
    assert_eq!(guest.sum(), expected(&source), "its memory is its own");
    let counters = attachment.stats().unwrap().counters;
    assert_eq!((counters.bytes_copied, counters.fills), (LEN - 2 * C, LEN / C - 2));
    assert_eq!(attachment.try_event(), None);
}

/// Runs a guest over all of its memory in a thread of its own; in the test VMM's process.
pub fn run_in_background(memory: &GuestMemory, len: u64) {
    let mut guest = Guest::new(&Kvm::new().unwrap(), memory, len, INTERRUPTIBLE);
    std::thread::spawn(move || super::child::say(&format!("sum {}", guest.sum())));
}

#[test]
fn a_guest_whose_faults_kvm_leaves_to_its_own_threads_sees_the_image() {
    if kvm().is_none() {
        return;
    }
    let source = TestSource::new(LEN, [3, 4, 77]);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    let mut vmm = Vmm::start_with_kvm(&mut attachment);
    assert_eq!(vmm.ask("guest"), format!("sum {}", expected(&source)));
    assert_eq!(attachment.try_event(), None);
}

/// The pause cannot make a sound pager fail the test, it only gives a broken one the time to show.
fn show_harm() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn a_guest_that_died_of_a_bad_chunk_harms_no_sibling() {
    if kvm().is_none() {
        return;
    }
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let (mut attachment, mut other) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let mut sibling = Vmm::start(&mut other);
    let mut vmm = Vmm::start_with_kvm(&mut attachment);
    source.corrupt(5, true);
    vmm.tell("guest");
    assert!(matches!(
        next_event(&attachment),
        SessionEvent::Failed { kind: FailureKind::Chunk, .. }
    ));
    vmm.kill();
    drop(attachment);
    show_harm();
    source.corrupt(5, false);
    assert_eq!(sibling.read(0, LEN), source.hash(0, LEN));
    assert_eq!(other.try_event(), None);
}

#[test]
fn a_guest_whose_owner_died_first_harms_no_sibling() {
    if kvm().is_none() {
        return;
    }
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let (mut attachment, mut other) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let mut sibling = Vmm::start(&mut other);
    let mut vmm = Vmm::start_with_kvm(&mut attachment);
    source.hold(5);
    vmm.tell("guest");
    wait_until("the fault", || source.waiting.load(Ordering::SeqCst) == 1);
    drop(attachment);
    wait_until("the end of the session", || pager.client.ping().unwrap().sessions == 1);
    source.release(5);
    assert!(vmm.is_silent());
    vmm.kill();
    show_harm();
    assert_eq!(sibling.read(0, LEN), source.hash(0, LEN));
    assert_eq!(other.try_event(), None);
}
