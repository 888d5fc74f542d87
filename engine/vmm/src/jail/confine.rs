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
/// Score of a VMM for the OOM killer, from -1000 for never to 1000 for first: as if it had half of
/// the host's memory more than it has (proc_pid_oom_score_adj(5)).
const OOM_SCORE: u32 = 500;
const OOM_SCORE_TEXT: &[u8] = b"500";

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
    pub const ALL: [Self; 12] = [
        Self::Streams,
        Self::OomScore,
        Self::Confine(confine::Step::Cgroup),
        Self::Inherited,
        Self::Namespaces,
        Self::Confine(confine::Step::Limits),
        Self::Confine(confine::Step::Privileges),
        Self::Confine(confine::Step::User),
        Self::Confine(confine::Step::Owner),
        Self::Confine(confine::Step::Cores),
        Self::Descriptors,
        Self::Execute,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Self::Streams => "take its standard streams",
            Self::OomScore => "set its score for the OOM killer",
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
    /// Whether it keeps other processes off its processor cores, where the kernel can.
    pub own_cores: bool,
}

/// Confines the calling process, which enters its cgroups through `cgroups`; in a child between
/// fork and exec.
///
/// # Errors
/// The first step that the kernel refuses.
pub(super) fn child(child: &Child, cgroups: &[OwnedFd]) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    let within = |(step, error)| (Step::Confine(step), error);
    raise_oom_score().map_err(at(Step::OomScore))?;
    confine::enter_cgroups(cgroups.iter().map(AsRawFd::as_raw_fd)).map_err(within)?;
    leave_what_is_ours().map_err(at(Step::Inherited))?;
    if let Some(jail) = &child.jail {
        enter(jail).map_err(at(Step::Namespaces))?;
    }
    if child.own_cores {
        confine::take_cores().map_err(within)?;
    }
    confine::confine(Some(child.rlimits), child.uid, child.owner.as_raw_fd()).map_err(within)
}

/// Makes it one of the first that the kernel kills when the host is out of memory, before what
/// serves everybody; a daemon may even be protected from that (systemd.exec(5), `OOMScoreAdjust=`).
/// One that is to be killed still earlier stays so. It cannot lower the score again, for that takes
/// CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)), and its forks inherit it.
fn raise_oom_score() -> io::Result<()> {
    // SAFETY: reads and writes bytes of buffers that outlive the calls, on a descriptor of its own.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut text = [0_u8; 8];
        let length = libc::read(file, text.as_mut_ptr().cast(), text.len());
        let own = usize::try_from(length).ok().and_then(|length| number(&text[..length]));
        let raised = own.is_some_and(|own| own >= OOM_SCORE)
            || libc::pwrite(file, OOM_SCORE_TEXT.as_ptr().cast(), OOM_SCORE_TEXT.len(), 0) >= 0;
        let error = io::Error::last_os_error();
        libc::close(file);
        if raised { Ok(()) } else { Err(error) }
    }
}

/// A number that is not negative, as the kernel prints it on a line.
fn number(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.trim_end().parse().ok()
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
        // Nor that the host merges equal pages of all memory, which a service manager may have
        // asked for and is inherited (systemd.exec(5), `MemoryKSM=`). Older kernels know no such
        // thing.
        libc::prctl(libc::PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
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
