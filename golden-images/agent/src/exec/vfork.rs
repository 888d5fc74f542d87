//! Starts a program in a child that shares our memory until it executes, as posix_spawn(3) does.
//!
//! fork(2) copies page tables, and afterwards each page that either side writes; under software
//! emulation that is a fifth of what a short command takes. clone(2) with CLONE_VM and CLONE_VFORK
//! copies neither, and suspends its caller until the child has executed or exited (vfork(2)).
//! posix_spawn(3) itself can neither change the user nor set a controlling terminal.
//!
//! Until then the child works in the memory of its caller:
//! - The child makes system calls, by functions of the C library that do nothing else
//!   (signal-safety(7)), and neither allocates, locks nor panics. The functions set `errno`, which
//!   is the caller's, too, and means nothing to it. The ids of the user are set by the raw calls:
//!   the C library's functions change all threads, by signals and with locks (nptl(7)).
//! - Its stack is an array of its suspended caller.
//! - No signal handler may run in it. All signals are blocked from before clone(2) until the child
//!   has none of our handlers any more.
//! - The command's user must not get at this memory, which for a moment is that of a process of
//!   theirs. The kernel makes it undumpable before it changes the process's ids, so that only root
//!   can trace that process or open its memory (PR_SET_DUMPABLE in prctl(2), ptrace(2)). Where root
//!   has set `fs.suid_dumpable` to 1, anybody can (proc_sys_fs(5)). It stays so until the last child
//!   of that kind is gone: several threads start programs, and none waits for another, whose child
//!   may hang in a file system.

use super::child::Child;
use super::limits;
use super::users::Credentials;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, PoisonError};

nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// What runs executable files of no format that the kernel knows, as by execvp(3).
const SHELL: &CStr = c"/bin/sh";

/// A command is to end by these, whoever started its agent: what ignores signals is inherited
/// (nohup(1), a shell's background), and Rust's runtime ignores SIGPIPE.
const NEVER_IGNORED: [libc::c_int; 5] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTERM];

/// The highest signal number of Linux (signal(7)).
const LAST_SIGNAL: libc::c_int = 64;

/// Bytes of stack. The child's frames take less than 1 KiB; nothing stands guard below.
const STACK: usize = 32 * 1024;

#[repr(C, align(16))]
struct Stack([MaybeUninit<u8>; STACK]);

/// A program with all that it starts with.
pub struct Program {
    executable: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    terminal: bool,
    user: Option<User>,
}

struct User {
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl Program {
    /// Prepares `executable`, which is not looked up in PATH, with all of its arguments, its own
    /// name included. It will run in `directory`, as `user` if there is one, as the leader of a
    /// session, whose controlling terminal is its stdin if it is on a `terminal`.
    pub fn new<'a>(
        executable: &Path,
        arguments: impl IntoIterator<Item = &'a OsStr>,
        environment: BTreeMap<OsString, OsString>,
        directory: &Path,
        terminal: bool,
        user: Option<&Credentials>,
    ) -> io::Result<Self> {
        let variable = |(mut text, value): (OsString, OsString)| {
            text.reserve_exact(value.len() + 2);
            text.push("=");
            text.push(value);
            string(text.into_vec())
        };
        Ok(Self {
            executable: string(executable.as_os_str().as_bytes())?,
            arguments: arguments
                .into_iter()
                .map(|argument| string(argument.as_bytes()))
                .collect::<io::Result<_>>()?,
            environment: environment.into_iter().map(variable).collect::<io::Result<_>>()?,
            directory: string(directory.as_os_str().as_bytes())?,
            terminal,
            user: user.map(|user| User {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                groups: user.groups.iter().map(|group| group.as_raw()).collect(),
            }),
        })
    }

    /// Starts the program with `streams` as its descriptors 0, 1 and 2. When it cannot be started,
    /// there is no child, and the error is that of the system call that failed.
    pub fn start(&self, streams: [BorrowedFd; 3]) -> io::Result<Child> {
        // The child puts descriptor after descriptor in its place, and must not put one on another
        // that it still needs; and dup2(2) leaves close-on-exec on where both are the same.
        let [stdin, stdout, stderr] = streams;
        let moved = [out_of_the_way(stdin)?, out_of_the_way(stdout)?, out_of_the_way(stderr)?];
        let mut argv: Vec<_> = [SHELL.as_ptr()]
            .into_iter()
            .chain(self.arguments.iter().map(|argument| argument.as_ptr()))
            .chain([null()])
            .collect();
        let envp: Vec<_> =
            self.environment.iter().map(|text| text.as_ptr()).chain([null()]).collect();
        let mut plan = Plan {
            program: self,
            streams: std::array::from_fn(|index| {
                moved[index].as_ref().map_or(streams[index].as_raw_fd(), AsRawFd::as_raw_fd)
            }),
            argv: argv.as_mut_ptr(),
            envp: envp.as_ptr(),
            mask: SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?,
            open_files: limits::of_commands(),
            failure: None,
        };
        let mask = plan.mask;
        let guest = self.user.is_some().then(Guest::enter);
        let mut stack = Stack([const { MaybeUninit::uninit() }; STACK]);
        // SAFETY: the child runs `run_child` with `plan` on `stack`, which has no other use. This
        // thread stands still until the child has executed or exited, so that both, and everything
        // that `plan` points to, outlive the child's use of this memory, and are not used by two at
        // a time. What the child does is allowed with shared memory, see the head of this file.
        let pid = unsafe {
            let top = (&raw mut stack).add(1).cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            libc::clone(run_child, top, flags, (&raw mut plan).cast())
        };
        let pid = Errno::result(pid);
        drop(guest);
        // It fails for no mask that it gave itself.
        let _ = mask.thread_set_mask();
        let mut child = Child::new(Pid::from_raw(pid?));
        match plan.failure {
            None => Ok(child),
            Some(errno) => {
                child.wait()?;
                Err(errno.into())
            }
        }
    }
}

/// A child of another user in this memory.
struct Guest;

/// Children of other users in this memory, and whether it is to be dumpable again after the last.
struct Guests {
    count: usize,
    dumpable: bool,
}

impl Guest {
    fn enter() -> Self {
        let mut guests = Self::all();
        if guests.count == 0 {
            // SAFETY: PR_GET_DUMPABLE takes nothing. nix makes no difference between 1 and 2.
            guests.dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) } == 1;
        }
        guests.count += 1;
        Self
    }

    fn all() -> MutexGuard<'static, Guests> {
        static ALL: Mutex<Guests> = Mutex::new(Guests { count: 0, dumpable: false });
        ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = Self::all();
        guests.count -= 1;
        if guests.count == 0 && guests.dumpable {
            // What the change of ids has made of this memory, which is ours alone again.
            let _ = nix::sys::prctl::set_dumpable(true);
        }
    }
}

/// A copy of `stream` when that is one of the descriptors that the child replaces.
fn out_of_the_way(stream: BorrowedFd) -> io::Result<Option<OwnedFd>> {
    let replaced = stream.as_raw_fd() <= libc::STDERR_FILENO;
    let copy = || rustix::io::fcntl_dupfd_cloexec(stream, libc::STDERR_FILENO + 1);
    Ok(replaced.then(copy).transpose()?)
}

fn string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    // The words of std::process.
    let refused =
        |_| io::Error::new(io::ErrorKind::InvalidInput, "nul byte found in provided data");
    CString::new(text).map_err(refused)
}

/// What the child gets, and where it leaves why it failed.
struct Plan<'a> {
    program: &'a Program,
    /// None of them is 0, 1 or 2.
    streams: [RawFd; 3],
    /// [`SHELL`], then the arguments, then null: the arguments of a script are these with the
    /// script in place of the first.
    argv: *mut *const libc::c_char,
    envp: *const *const libc::c_char,
    /// Signal mask of the caller.
    mask: SigSet,
    /// Limit of open files, when it is another than the caller's.
    open_files: Option<libc::rlimit>,
    failure: Option<Errno>,
}

/// What the child runs. It returns to nobody.
extern "C" fn run_child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes its plan, which nobody else uses meanwhile.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    let Err(errno) = plan.execute();
    plan.failure = Some(errno);
    // SAFETY: _exit is one system call, and runs nothing that was registered for the end.
    unsafe { libc::_exit(1) }
}

impl Plan<'_> {
    /// Becomes the program. System calls only: see the head of this file.
    fn execute(&mut self) -> nix::Result<Infallible> {
        for (source, target) in self.streams.iter().zip(0..) {
            // SAFETY: descriptors are integers; the child's table is its own.
            Errno::result(unsafe { libc::dup2(*source, target) })?;
        }
        nix::unistd::chdir(self.program.directory.as_c_str())?;
        nix::unistd::setsid()?;
        default_signals()?;
        if self.program.terminal {
            // SAFETY: TIOCSCTTY takes an int; descriptor 0 is the terminal.
            unsafe { set_controlling_terminal(0, 0) }?;
        }
        if let Some(user) = &self.program.user {
            // SAFETY: the groups are as many as said, and the calls change no memory.
            unsafe {
                let groups = user.groups.as_ptr();
                Errno::result(libc::syscall(libc::SYS_setgroups, user.groups.len(), groups))?;
                Errno::result(libc::syscall(libc::SYS_setgid, libc::c_long::from(user.gid)))?;
                Errno::result(libc::syscall(libc::SYS_setuid, libc::c_long::from(user.uid)))?;
            }
        }
        if let Some(limit) = &self.open_files {
            // SAFETY: setrlimit reads one rlimit; the child's limits are its own.
            Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) })?;
        }
        // No handler of ours is left that one of these could run.
        self.mask.thread_set_mask()?;
        let executable = self.program.executable.as_ptr();
        // SAFETY: both lists end with null, and `argv` has a shell before its first argument, so
        // that there are two pointers at least. All strings end with NUL.
        unsafe {
            libc::execve(executable, self.argv.add(1), self.envp);
            if Errno::last() == Errno::ENOEXEC {
                self.argv.add(1).write(executable);
                libc::execve(SHELL.as_ptr(), self.argv, self.envp);
            }
        }
        Err(Errno::last())
    }
}

/// Takes the handlers off, as execve(2) would, and [`NEVER_IGNORED`] apart leaves ignored what is.
fn default_signals() -> nix::Result<()> {
    for number in 1..=LAST_SIGNAL {
        // SAFETY: a sigaction is integers and a pointer that may be null; of zeros it is SIG_DFL.
        let (mut now, default): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: sigaction writes one sigaction. The C library refuses to tell of its own signals,
        // which it handles in processes of several threads, and nobody sends to this one.
        if unsafe { libc::sigaction(number, null(), &raw mut now) } != 0 {
            continue;
        }
        let handled = ![libc::SIG_DFL, libc::SIG_IGN].contains(&now.sa_sigaction);
        if handled || NEVER_IGNORED.contains(&number) {
            // SAFETY: sigaction reads one sigaction. The child's table of actions is its own.
            Errno::result(unsafe {
                libc::sigaction(number, &raw const default, std::ptr::null_mut())
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
