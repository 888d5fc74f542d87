//! The guest kernel's command line.
//!
//! Sources: the kernel's `Documentation/admin-guide/kernel-parameters.txt` for every parameter
//! below.

use std::time::{Duration, Instant};

/// Parameters that every golden image boots with. They hold for any host; see [`host_tsc_khz`] for
/// the one that does not.
///
/// - `mitigations=off init_on_alloc=0 apparmor=0 audit=0`: inside one session nothing defends root
///   against root, the boundary is the virtual machine. Under software emulation each of these
///   costs time on every system call or page.
/// - `selinux=0 lsm=capability hardened_usercopy=off psi=0` and, as a variable for PID 1,
///   `GLIBC_TUNABLES` without rseq: the same; they are on the path of every system call and context
///   switch, and so of the first answer after a restore.
/// - `transparent_hugepage=madvise`: a huge page would make a session touch (and copy) 2 MiB where
///   it uses 4 KiB.
/// - `rcupdate.rcu_expedited=1`: network namespaces of containers go away without waiting for lazy
///   grace periods.
/// - `nowatchdog tsc=reliable`: a session is stopped for an arbitrary time between snapshot and
///   restore; no watchdog may take that for a hang or an unstable clock.
/// - `pci=off`: the machine has virtio-mmio devices only; without it the kernel complains that it
///   finds no PCI bus.
/// - `panic=-1 reboot=t`: a panic ends the VMM at once (it runs with `-no-reboot`) instead of
///   looking like a hang.
pub const BASE: &str = "console=ttyS0 loglevel=4 reboot=t panic=-1 mitigations=off init_on_alloc=0 apparmor=0 audit=0 \
selinux=0 lsm=capability hardened_usercopy=off psi=0 GLIBC_TUNABLES=glibc.pthread.rseq=0 \
transparent_hugepage=madvise rcupdate.rcu_expedited=1 nowatchdog tsc=reliable net.ifnames=0 pci=off";

/// Returns the parameter that makes a boot under QEMU's software emulation reliable:
/// `tsc_early_khz=<kHz>`, with the frequency of the host's time stamp counter, see
/// [`host_tsc_khz`].
///
/// Under emulation the guest calibrates its TSC against an emulated timer. On a busy host the
/// calibration fails and the boot hangs in the delay loop (measured: 5 of 5 boots). QEMU's emulated
/// TSC is the host's own counter, so its frequency can be given instead. It must not be part of a
/// cached command line, and not be given where KVM runs the guest (there the paravirtual clock has
/// the right frequency).
pub fn emulation_parameter(tsc_khz: u64) -> String {
    format!("tsc_early_khz={tsc_khz}")
}

/// Measures the frequency of this host's time stamp counter in kHz, against the monotonic clock
/// over 50 ms.
///
/// `None` when the counter does not run or the machine is no x86-64. Two measurements of one host
/// differ by some parts per million, more when the host is very busy.
pub fn host_tsc_khz() -> Option<u64> {
    const SPAN: Duration = Duration::from_millis(50);
    let (clock0, tsc0) = paired_read()?;
    std::thread::sleep(SPAN);
    let (clock1, tsc1) = paired_read()?;
    let nanos = u64::try_from(clock1.duration_since(clock0).as_nanos()).ok()?;
    let ticks = tsc1.checked_sub(tsc0)?;
    let khz = u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanos.max(1))).ok()?;
    // Outside this range the counter is not a TSC.
    (100_000..=20_000_000).contains(&khz).then_some(khz)
}

/// Reads clock and counter together: the tightest of some tries, so that a preemption between both
/// does not count.
#[cfg(target_arch = "x86_64")]
fn paired_read() -> Option<(Instant, u64)> {
    // SAFETY: RDTSC is unprivileged and has no side effect; it exists on every x86-64.
    let rdtsc = || unsafe { std::arch::x86_64::_rdtsc() };
    (0..16)
        .map(|_| {
            let before = rdtsc();
            let now = Instant::now();
            let after = rdtsc();
            (after.wrapping_sub(before), now, before + after.wrapping_sub(before) / 2)
        })
        .min_by_key(|(width, _, _)| *width)
        .map(|(_, now, middle)| (now, middle))
}

#[cfg(not(target_arch = "x86_64"))]
fn paired_read() -> Option<(Instant, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree() {
        let (a, b) = (host_tsc_khz(), host_tsc_khz());
        let (a, b) = (a.expect("an x86-64 has a counter"), b.expect("an x86-64 has a counter"));
        assert!(a.abs_diff(b) * 1000 < a, "{a} kHz and {b} kHz differ by more than 0.1 %");
    }

    #[test]
    fn base_has_no_host_specific_parameter_and_one_line() {
        assert!(!BASE.contains("tsc_early_khz"));
        assert!(!BASE.contains('\n') && !BASE.contains("  "));
    }
}
