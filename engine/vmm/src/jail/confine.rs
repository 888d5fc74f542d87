//! Confinement of a child process, which it does itself between fork and exec. System calls only:
//! nothing here allocates or takes a lock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use mayfly_vmm_contract::confine::{self, Rlimits};

use super::JailRoot;

/// Host name in a VMM's own UTS namespace.
const HOSTNAME: &str = "vmm";
/// Options of its `/proc`: nothing but processes, and of these only its own (kernel
/// `Documentation/filesystems/proc.rst`).
const PROC_OPTIONS: &std::ffi::CStr = c"subset=pid,hidepid=invisible";
/// The process whose death a child must not survive.
#[derive(Debug)]
pub struct Owner(OwnedFd);

impl Owner {
    /// Returns this process as an owner.
    ///
    /// # Errors
    /// When the kernel has no descriptor for it (pidfd_open(2)).
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    pub(super) fn of(pid: u32) -> io::Result<Self> {
        mayfly_host::pidfd::open(pid).map(Self)
    }
}

impl AsRawFd for Owner {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a child was at when the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Streams,
    OomScore,
    Inherited,
    Namespaces,
    /// A step that a forked VMM takes as well.
    Confine(confine::Step),
    Descriptors,
    Execute,
}

impl Step {
    pub const ALL: [Self; 11] = [
        Self::Streams,
        Self::OomScore,
        Self::Confine(confine::Step::Cgroup),
        Self::Inherited,
        Self::Namespaces,
        Self::Confine(confine::Step::Limits),
        Self::Confine(confine::Step::Privileges),
        Self::Confine(confine::Step::User),
        Self::Confine(confine::Step::Owner),
        Self::Descriptors,
        Self::Execute,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Self::Streams => "take its standard streams",
            Self::OomScore => "reset its score for the OOM killer",
            Self::Inherited => "leave what it inherited",
            Self::Namespaces => "take its namespaces and its root",
            Self::Confine(step) => step.what(),
            Self::Descriptors => "take its descriptors",
            Self::Execute => "execute the program",
        }
    }
}

/// Identity and limits under which a child of ours executes its program.
#[derive(Debug)]
pub struct Child {
    /// Root directory and namespaces; `None` leaves it in ours.
    pub jail: Option<Arc<JailRoot>>,
    /// User and group id; `None` keeps ours.
    pub uid: Option<u32>,
    /// Resource bounds of the process.
    pub rlimits: Rlimits,
    /// Process whose death it does not survive.
    pub owner: Owner,
}

/// Confines the calling process, which enters its cgroups through `cgroups`; in a child between
/// fork and exec.
///
/// # Errors
/// The first step that the kernel refuses.
pub(super) fn child(child: &Child, cgroups: &[OwnedFd]) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    let within = |(step, error)| (Step::Confine(step), error);
    reset_oom_score().map_err(at(Step::OomScore))?;
    confine::enter_cgroups(cgroups.iter().map(AsRawFd::as_raw_fd)).map_err(within)?;
    leave_what_is_ours().map_err(at(Step::Inherited))?;
    if let Some(jail) = &child.jail {
        enter(jail).map_err(at(Step::Namespaces))?;
    }
    confine::confine(Some(child.rlimits), child.uid, child.owner.as_raw_fd()).map_err(within)
}

/// A daemon may be protected from the OOM killer (systemd.exec(5), `OOMScoreAdjust=`); a VMM that
/// inherited that would outlive everything else on the host. One that is meant to be killed rather
/// than others stays so. (proc_pid_oom_score_adj(5))
fn reset_oom_score() -> io::Result<()> {
    // SAFETY: reads and writes bytes of buffers that outlive the calls, on a descriptor of its own.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut first = 0_u8;
        let is_negative = libc::read(file, (&raw mut first).cast(), 1) == 1 && first == b'-';
        let reset = !is_negative || libc::pwrite(file, c"0".as_ptr().cast(), 1, 0) == 1;
        let error = io::Error::last_os_error();
        libc::close(file);
        if reset { Ok(()) } else { Err(error) }
    }
}

/// As [`child`], for the process that keeps a PID namespace: it gives up its capabilities and
/// follows its owner, and has no bounds and no user of its own.
pub(super) fn keeper(owner: &Owner) -> io::Result<()> {
    leave_what_is_ours()?;
    confine::confine(None, None, owner.as_raw_fd()).map_err(|(_, error)| error)
}

/// Leaves this process's terminal, its descriptors and how it takes signals.
fn leave_what_is_ours() -> io::Result<()> {
    // SAFETY: plain system calls on the calling process, whose descriptors are only closed at exec;
    // the signal set is initialised by sigemptyset. A just forked child leads no process group, so
    // that setsid cannot fail.
    unsafe {
        // What this process itself inherited from whoever started it, and nobody thought of, ends
        // at exec. The descriptors that a VMM is to have are duplicated to their places after this.
        check(libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()))?;
        // A Ctrl-C in the terminal is ours to handle, and the terminal nothing for a VMM.
        libc::setsid();
        // Our signal mask must not leak: tokio or a caller may have blocked signals in the spawning
        // thread.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        // Nor that this process ignores broken pipes, as programs in Rust do.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// Takes namespaces of its own, with the jail as its root.
fn enter(jail: &JailRoot) -> io::Result<()> {
    let own = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    // SAFETY: plain system calls on the calling process, which has one thread; strings are static
    // and NUL-terminated, and sethostname reads as many bytes as it is told.
    unsafe {
        // The jail's mount namespace first, then a copy of it: what this process mounts is its own.
        check(libc::setns(jail.raw(), libc::CLONE_NEWNS))?;
        check(libc::unshare(own))?;
        check(libc::sethostname(HOSTNAME.as_ptr().cast(), HOSTNAME.len()))?;
        check(libc::mount(
            c"proc".as_ptr(),
            c"/proc".as_ptr(),
            c"proc".as_ptr(),
            flags,
            PROC_OPTIONS.as_ptr().cast(),
        ))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
