//! Confinement that a child imposes on itself so that it can do little else: one sequence for a VMM
//! that is executed and for one that is forked from a zygote.
//!
//! System calls only, of the calling thread: nothing here allocates or takes a lock, so that it may
//! run in the only thread of a process that was forked from one with many (fork(2)).

use std::io;
use std::os::fd::RawFd;

/// Most descriptors of a VMM. It inherits up to 16 and opens a few dozen.
pub const MAX_OPEN_FILES: u64 = 512;

/// Bounds that a process cannot lift (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimits {
    /// Largest file it may write, in bytes: what a disk overlay can grow to.
    pub file_bytes: u64,
    /// Most threads of its user.
    pub threads: u64,
    /// Most open descriptors.
    pub open_files: u64,
}

/// Step at which a child was when the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Entering its cgroups.
    Cgroup,
    /// Bounding itself.
    Limits,
    /// Giving up privileges.
    Privileges,
    /// Becoming its user.
    User,
    /// Asking to be killed when its owner dies.
    Owner,
    /// Taking processor cores that no other process runs on meanwhile.
    Cores,
}

impl Step {
    /// Returns the step in words that follow "cannot".
    pub fn what(self) -> &'static str {
        match self {
            Self::Cgroup => "enter its cgroup",
            Self::Limits => "bound itself",
            Self::Privileges => "give up privileges",
            Self::User => "become its user",
            Self::Owner => "follow its owner",
            Self::Cores => "keep other processes off its processor cores",
        }
    }
}

/// Enters cgroups through files of them that are open for writing: `cgroup.procs`, and on v1
/// `tasks`.
///
/// # Errors
/// The first that the kernel refuses.
pub fn enter_cgroups(files: impl Iterator<Item = RawFd>) -> Result<(), (Step, io::Error)> {
    for file in files {
        // "0" means the writer itself. A single thread that moves itself needs no system-wide grace
        // period (v1 `tasks`).
        // SAFETY: the buffer is a static string of one byte; a bad descriptor only fails.
        if unsafe { libc::write(file, c"0".as_ptr().cast(), 1) } != 1 {
            return Err((Step::Cgroup, io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Bounds the calling process, empties its capabilities, makes it the user `uid` (or leaves it its
/// own), forbids it to gain privileges, and has it killed when the process behind `owner` (a
/// descriptor of pidfd_open(2)) dies.
///
/// The process must have one thread, and the capabilities `CAP_SETPCAP`, `CAP_SETUID` and
/// `CAP_SETGID` in its user namespace.
///
/// # Errors
/// The first step that the kernel refuses; `ESRCH` with [`Step::Owner`] when the owner is gone.
pub fn confine(
    rlimits: Option<Rlimits>,
    uid: Option<u32>,
    owner: RawFd,
) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    if let Some(rlimits) = rlimits {
        bound_all(rlimits).map_err(at(Step::Limits))?;
    }
    drop_capability_bounds().map_err(at(Step::Privileges))?;
    if let Some(uid) = uid {
        become_user(uid).map_err(at(Step::User))?;
    }
    drop_privileges().map_err(at(Step::Privileges))?;
    // After the change of user, which clears the wish (prctl(2)).
    follow(owner).map_err(at(Step::Owner))
}

/// Has the scheduler run no thread of another process on a core while one of the calling process
/// runs there (kernel `admin-guide/hw-vuln/core-scheduling.rst`); what it forks from then on has to
/// ask anew. False where this makes no difference or there is no such thing: cores have one thread
/// each, or the kernel was built without.
///
/// The process must have one thread.
///
/// # Errors
/// Any other refusal of the kernel.
pub fn take_cores() -> Result<bool, (Step, io::Error)> {
    let (itself, its_thread, nothing) = (0, libc::PR_SCHED_CORE_SCOPE_THREAD, 0);
    // SAFETY: prctl takes numbers, and no address with this command.
    let result = unsafe {
        let create = libc::PR_SCHED_CORE_CREATE;
        libc::prctl(libc::PR_SCHED_CORE, create, itself, its_thread, nothing)
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV) => Ok(false),
        _ => Err((Step::Cores, error)),
    }
}

fn bound_all(rlimits: Rlimits) -> io::Result<()> {
    bound_core_dumps()?;
    let all = [
        (libc::RLIMIT_FSIZE, rlimits.file_bytes),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_NOFILE, rlimits.open_files),
        (libc::RLIMIT_NPROC, rlimits.threads),
    ];
    all.into_iter().try_for_each(|(resource, most)| bound(resource, most))
}

/// Allows core dumps of one byte: no file can be so small, and it is the one limit at which the
/// kernel starts no helper of a `core_pattern` that is a pipe, which would run as root on the host
/// with input of the VMM's making (core(5), `do_coredump` in the kernel's `fs/coredump.c`). Without
/// the right to raise a limit of 0 that stays: then a dump to a file is what is left to prevent.
fn bound_core_dumps() -> io::Result<()> {
    let one = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: reads one struct that outlives the call.
    match check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const one) }.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => bound(libc::RLIMIT_CORE, 1),
        done => done,
    }
}

/// Lowers a limit; one that is lower already stays, for not every root may raise it
/// (capabilities(7), `CAP_SYS_RESOURCE`).
fn bound(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes and reads one struct that outlives the calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut limit).into())?;
        let most = most.min(limit.rlim_max);
        limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        check(libc::setrlimit(resource, &raw const limit).into())
    }
}

/// No program that is executed can have a capability (capabilities(7), "Capability bounding set").
fn drop_capability_bounds() -> io::Result<()> {
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: prctl takes numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first number that the kernel does not know.
            let is_end = capability > 0 && error.raw_os_error() == Some(libc::EINVAL);
            return if is_end { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// The raw system calls: the C library's would tell all threads to do the same, and looks for
/// threads of the parent.
fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: plain system calls on the calling process; setgroups reads no entry.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

/// Empties all sets of capabilities. A change from root to another user has done so for the host's
/// root (capabilities(7)), but not for the first process of a user namespace.
fn drop_privileges() -> io::Result<()> {
    /// `struct __user_cap_header_struct` (capget(2)).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`, with two `struct __user_cap_data_struct` of three words.
    static HEADER: Header = Header { version: 0x2008_0522, pid: 0 };
    static NONE: [u32; 6] = [0; 6];
    // SAFETY: plain system calls on the calling process; capset reads two statics of the sizes that
    // its version has.
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        check(libc::syscall(libc::SYS_capset, &raw const HEADER, NONE.as_ptr()))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())
    }
}

/// Asks that the calling process be killed when the owner dies, and fails when it has died already.
/// (Its process id is no help: from within another PID namespace it is 0 either way.)
fn follow(owner: RawFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: owner, events: libc::POLLIN, revents: 0 };
    // SAFETY: prctl takes a number; poll reads and writes one entry that outlives the call, and
    // does not wait.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        match libc::poll(&raw mut poll, 1, 0) {
            0 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cookie of the calling thread; threads may share a core only where they have the same.
    fn cookie() -> Option<u64> {
        let mut cookie = 0_u64;
        let (itself, its_thread) = (0, libc::PR_SCHED_CORE_SCOPE_THREAD);
        // SAFETY: with this command the kernel writes one u64, which outlives the call.
        let result = unsafe {
            let get = libc::PR_SCHED_CORE_GET;
            libc::prctl(libc::PR_SCHED_CORE, get, itself, its_thread, &raw mut cookie)
        };
        (result == 0).then_some(cookie)
    }

    #[test]
    fn cores_are_taken_from_everybody_else_also_from_a_parent_that_took_them() {
        // In a thread, for the cookie is a thread's own here.
        let run = std::thread::spawn(|| {
            let Some(none) = cookie() else {
                // No such thing in this kernel, or nothing to keep apart: not an error.
                return assert!(!take_cores().unwrap());
            };
            assert_eq!(none, 0);
            assert!(take_cores().unwrap());
            let own = cookie().unwrap();
            let of_child = std::thread::spawn(move || {
                let inherited = cookie();
                assert!(take_cores().unwrap());
                (inherited, cookie())
            });
            let (inherited, its_own) = of_child.join().unwrap();
            assert_eq!(inherited, Some(own));
            assert!(own != 0 && its_own != Some(0) && its_own != Some(own));
        });
        run.join().unwrap();
    }

    #[test]
    fn one_byte_of_a_core_dump_is_allowed_and_no_more() {
        // SAFETY: the child makes system calls only, and ends by _exit.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                let done = bound_core_dumps();
                let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
                let bounded = limit.rlim_cur <= 1 && limit.rlim_max == limit.rlim_cur;
                libc::_exit(i32::from(done.is_err() || !bounded));
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            status
        };
        assert_eq!(status, 0);
    }
}
