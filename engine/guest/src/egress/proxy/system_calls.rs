//! System calls of the proxy process: what it takes to carry bytes between sockets that it is given.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Allowed; all others get `EPERM`. None of them opens a file, makes a socket or starts a program.
const ALLOWED: &[i64] = &[
    // Sockets that were given to it.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    // The runtime waits for them.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    // Memory, and random numbers for hash tables.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Signals and the end.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Gives up all other system calls, for all threads and for ever (seccomp(2)).
///
/// # Errors
/// When the kernel refuses, or this is no x86-64.
pub fn give_up_system_calls() -> io::Result<()> {
    let program = filter(ALLOWED)?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}

fn filter(allowed: &[i64]) -> io::Result<BpfProgram> {
    let rules: BTreeMap<_, _> = allowed.iter().map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_list_goes_on_and_what_is_not_ends() {
        // A filter is for ever: in a thread of its own, and for that one alone.
        let looked = std::thread::spawn(|| {
            seccompiler::apply_filter(&filter(ALLOWED).unwrap()).unwrap();
            let socket = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let file = std::fs::File::open("/dev/null").map(drop);
            (socket, file, std::time::Instant::now())
        });
        let (socket, file, _) = looked.join().unwrap();
        assert_eq!(socket.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(file.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
