//! The end of the pager process when it cannot serve any more.
//!
//! A pager without one of its threads would leave faults unanswered and sessions hanging, with
//! nobody told. When the process ends instead, each owner sees its connection close, fails its
//! session and kills the VMM, and the next session starts another pager.

/// Exit status (`EX_SOFTWARE` of sysexits.h). Not a signal: a core dump would hold guest memory.
const STATUS: i32 = 70;

/// Says why on standard error and ends the process at once.
pub(crate) fn end(why: &str) -> ! {
    eprintln!("pager: {why}; it ends, and with it all its sessions");
    // SAFETY: ends the process without running anything of it, in whatever state its threads are.
    unsafe { libc::_exit(STATUS) }
}

/// Ends the process when the thread that has it panics. The panic's own message has been printed by
/// then.
pub(crate) struct EndOnPanic(pub &'static str);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end(&format!("the thread {} has panicked", self.0));
        }
    }
}
