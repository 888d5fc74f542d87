//! Core scheduling of this host's kernel: whether a process can keep others off the processor cores
//! that it runs on.

/// What the kernel says (prctl(2), `PR_SCHED_CORE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreScheduling {
    /// Cores have several threads, and a process can have a core to itself.
    Available,
    /// Each core has one thread that is in use, so that there is nothing to keep apart.
    Pointless,
    /// The kernel was built without, or is older than Linux 5.14.
    Missing,
}

/// Asks the kernel; changes nothing.
pub fn look() -> CoreScheduling {
    let mut cookie = 0_u64;
    let (itself, its_thread) = (0, libc::PR_SCHED_CORE_SCOPE_THREAD);
    // SAFETY: with this command the kernel writes one u64, which outlives the call.
    let result = unsafe {
        let get = libc::PR_SCHED_CORE_GET;
        libc::prctl(libc::PR_SCHED_CORE, get, itself, its_thread, &raw mut cookie)
    };
    match (result, nix::errno::Errno::last()) {
        (0, _) => CoreScheduling::Available,
        (_, nix::errno::Errno::ENODEV) => CoreScheduling::Pointless,
        _ => CoreScheduling::Missing,
    }
}
