//! What a child process does to itself between fork and exec. System calls only: nothing here allocates or takes a lock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::JailRoot;

/// Host name in a VMM's own UTS namespace.
const HOSTNAME: &str = "vmm";
/// Options of its `/proc`: nothing but processes, and of these only its own (kernel `Documentation/filesystems/proc.rst`).
const PROC_OPTIONS: &std::ffi::CStr = c"subset=pid,hidepid=invisible";
/// Most descriptors of a VMM; it inherits up to 16 and opens a few dozen.
const MAX_DESCRIPTORS: u64 = 512;

/// Bounds that a process cannot lift (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimits {
    /// Largest file it may write, in bytes: what a disk overlay can grow to.
    pub file_bytes: u64,
    /// Most threads of its user.
    pub threads: u64,
}

impl Rlimits {
    fn all(self) -> [(libc::__rlimit_resource_t, u64); 5] {
        [
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_FSIZE, self.file_bytes),
            (libc::RLIMIT_MSGQUEUE, 0),
            (libc::RLIMIT_NOFILE, MAX_DESCRIPTORS),
            (libc::RLIMIT_NPROC, self.threads),
        ]
    }
}

/// The process whose death a child must not survive.
#[derive(Debug)]
pub struct Owner(OwnedFd);

impl Owner {
    /// This process.
    ///
    /// # Errors
    /// When the kernel has no descriptor for it (pidfd_open(2)).
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    pub(super) fn of(pid: u32) -> io::Result<Self> {
        mayfly_host::pidfd::open(pid, 0).map(Self)
    }

    /// Asks that the calling process be killed when it dies, and fails when it has died already. (Its process id is no help: from within another
    /// PID namespace it is 0 either way.)
    fn follow(&self) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: prctl takes a number; poll reads and writes one entry that outlives the call, and does not wait.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            match libc::poll(&raw mut poll, 1, 0) {
                0 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            }
        }
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
    Cgroup,
    Inherited,
    Namespaces,
    Limits,
    Privileges,
    User,
    Owner,
    Descriptors,
    Execute,
}

impl Step {
    /// In their order.
    pub const ALL: [Self; 11] = [
        Self::Streams,
        Self::OomScore,
        Self::Cgroup,
        Self::Inherited,
        Self::Namespaces,
        Self::Limits,
        Self::Privileges,
        Self::User,
        Self::Owner,
        Self::Descriptors,
        Self::Execute,
    ];

    pub fn what(self) -> &'static str {
        match self {
            Self::Streams => "take its standard streams",
            Self::OomScore => "reset its score for the OOM killer",
            Self::Cgroup => "enter its cgroup",
            Self::Inherited => "leave what it inherited",
            Self::Namespaces => "take its namespaces and its root",
            Self::Limits => "bound itself",
            Self::Privileges => "give up privileges",
            Self::User => "become its user",
            Self::Owner => "follow its owner",
            Self::Descriptors => "take its descriptors",
            Self::Execute => "execute the program",
        }
    }
}

/// Under which identity and limits a child of ours executes its program.
#[derive(Debug)]
pub struct Child {
    /// Its root directory and namespaces; `None` leaves it in ours.
    pub jail: Option<Arc<JailRoot>>,
    /// User and group id; `None` keeps ours.
    pub uid: Option<u32>,
    /// Its bounds.
    pub rlimits: Rlimits,
    /// Who owns it.
    pub owner: Owner,
}

/// Confines the calling process, which enters its cgroups through `cgroups`; in a child between
/// fork and exec. The system calls that change users are made without the C library, which would
/// have all threads make them, and looks for threads of the parent.
///
/// # Errors
/// The first step that the kernel refuses.
pub(super) fn child(child: &Child, cgroups: &[OwnedFd]) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    reset_oom_score().map_err(at(Step::OomScore))?;
    for cgroup in cgroups {
        // "0" means the writer itself; a single thread that moves itself needs no system-wide grace period (v1 `tasks`).
        // SAFETY: the buffer is a static one-byte string and the descriptor is open.
        if unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
            return Err((Step::Cgroup, io::Error::last_os_error()));
        }
    }
    leave_what_is_ours().map_err(at(Step::Inherited))?;
    if let Some(jail) = &child.jail {
        enter(jail).map_err(at(Step::Namespaces))?;
    }
    for (resource, most) in child.rlimits.all() {
        bound(resource, most).map_err(at(Step::Limits))?;
    }
    drop_capability_bounds().map_err(at(Step::Privileges))?;
    if let Some(uid) = child.uid {
        become_user(uid).map_err(at(Step::User))?;
    }
    drop_privileges().map_err(at(Step::Privileges))?;
    // After the change of user, which clears the wish (prctl(2)).
    child.owner.follow().map_err(at(Step::Owner))
}

/// Changes of all ids from root to another user clear every capability (capabilities(7)).
fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: plain system calls on the calling process; setgroups reads no entry.
    unsafe {
        check_long(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check_long(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        check_long(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
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

/// As [`child`], for the process that keeps a PID namespace: it only gives up its capabilities.
pub(super) fn keeper(owner: &Owner) -> io::Result<()> {
    leave_what_is_ours()?;
    drop_capability_bounds()?;
    drop_privileges()?;
    owner.follow()
}

/// Leaves this process's terminal and its descriptors.
fn leave_what_is_ours() -> io::Result<()> {
    // SAFETY: they take numbers, or nothing (close_range(2), setsid(2)); nothing is closed before exec. A just forked child
    // leads no process group, so that setsid cannot fail.
    unsafe {
        // What this process itself inherited from whoever started it, and nobody thought of, ends at exec. The descriptors
        // that a VMM is to have are duplicated to their places after this.
        check(libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int))?;
        // A Ctrl-C in the terminal is ours to handle, and the terminal nothing for a VMM.
        libc::setsid();
    }
    Ok(())
}

fn drop_privileges() -> io::Result<()> {
    // SAFETY: plain system calls on the calling process; the signal set is initialised by sigemptyset.
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // Our signal mask must not leak: tokio or a caller may have blocked signals in the spawning thread.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        // Nor that this process ignores broken pipes, as programs in Rust do.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// Lowers a limit; one that is lower already stays, for not every root may raise it (capabilities(7), `CAP_SYS_RESOURCE`).
fn bound(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes and reads one struct that outlives the calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut limit))?;
        let most = most.min(limit.rlim_max);
        limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        check(libc::setrlimit(resource, &raw const limit))
    }
}

/// Takes namespaces of its own, with the jail as its root.
fn enter(jail: &JailRoot) -> io::Result<()> {
    let own = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    // SAFETY: plain system calls on the calling process, which has one thread; strings are static and NUL-terminated, and
    // sethostname reads as many bytes as it is told.
    unsafe {
        // The jail's mount namespace first, then a copy of it: what this process mounts is its own.
        check(libc::setns(jail.raw(), libc::CLONE_NEWNS))?;
        check(libc::unshare(own))?;
        check(libc::sethostname(HOSTNAME.as_ptr().cast(), HOSTNAME.len()))?;
        check(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), flags, PROC_OPTIONS.as_ptr().cast()))
    }
}

/// No program that is executed can have a capability (capabilities(7), "Capability bounding set").
fn drop_capability_bounds() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: prctl takes numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first number the kernel does not know.
            return if capability > 0 && error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
