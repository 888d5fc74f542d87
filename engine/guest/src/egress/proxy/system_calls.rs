//! System calls of the proxy process: what it takes to carry bytes between sockets that it is given.
//!
//! Some of these sockets are of the host's network, which the process itself is not in. A socket
//! must lead nowhere else than where the engine connected it to, and tell nothing of that network.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Allowed, whatever their arguments; those of [`rules`] with some; all others get `EPERM`. None of
/// them opens a file, makes a socket, connects one or starts a program.
const ALLOWED: &[i64] = &[
    // Sockets that were given to it.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_shutdown,
    libc::SYS_close,
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
    seccompiler::apply_filter_all_threads(&filter()?).map_err(io::Error::other)
}

/// Condition that an argument, of which 32 bits count, has a value.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Condition that flags are without the one with which sendto(2) and sendmsg(2) connect a socket
/// that is connected no more, and so to anywhere (tcp(7), `MSG_FASTOPEN`).
fn connects_nothing(argument: u8) -> Result<SeccompCondition, BackendError> {
    let flag = SeccompCmpOp::MaskedEq(bits(libc::MSG_FASTOPEN));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, flag, 0)
}

fn bits(number: i32) -> u64 {
    number.cast_unsigned().into()
}

/// Calls that are allowed with some arguments only.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let no_address = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    let fcntl = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD]
        .map(|command| SeccompRule::new(vec![is(1, bits(command))?]));
    // Those that change nothing, and tell nothing of the network.
    let option = [libc::SO_ERROR, libc::SO_TYPE]
        .map(|option| SeccompRule::new(vec![is(1, bits(libc::SOL_SOCKET))?, is(2, bits(option))?]));
    Ok(BTreeMap::from([
        (libc::SYS_sendto, vec![SeccompRule::new(vec![connects_nothing(3)?, no_address])?]),
        (libc::SYS_sendmsg, vec![SeccompRule::new(vec![connects_nothing(2)?])?]),
        (libc::SYS_getsockopt, option.into_iter().collect::<Result<_, _>>()?),
        (libc::SYS_fcntl, fcntl.into_iter().collect::<Result<_, _>>()?),
        (libc::SYS_ioctl, vec![SeccompRule::new(vec![is(1, libc::FIONBIO)?])?]),
    ]))
}

fn filter() -> io::Result<BpfProgram> {
    let mut rules = rules().map_err(io::Error::other)?;
    rules.extend(ALLOWED.iter().map(|call| (*call, Vec::new())));
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch);
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{MsgFlags, SockaddrIn, connect, sendto, setsockopt, sockopt::ReuseAddr};

    use super::*;

    /// Runs `work` in a thread that has given up what the proxy gives up: a filter is for ever.
    fn confined<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                seccompiler::apply_filter(&filter().unwrap()).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn sockets_that_are_there_carry_bytes_and_no_other_can_be_had() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut other, _) = server.accept().unwrap();
        let denied = confined(|| {
            client.set_nonblocking(true).unwrap();
            client.set_nonblocking(false).unwrap();
            client.write_all(b"ask").unwrap();
            let mut asked = [0; 3];
            other.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"ask");
            assert!(client.take_error().unwrap().is_none());
            [
                TcpListener::bind("127.0.0.1:0").map(drop),
                File::open("/dev/null").map(drop),
                client.set_ttl(1),
                client.local_addr().map(drop),
                setsockopt(&client, ReuseAddr, &true).map_err(Into::into),
            ]
        });
        for outcome in denied {
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn a_socket_does_not_become_a_connection_to_somewhere_else() {
        let trap = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = match trap.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => SockaddrIn::from(address),
            other => panic!("{other}"),
        };
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        confined(|| {
            let number = client.as_raw_fd();
            for flags in [MsgFlags::empty(), MsgFlags::from_bits_retain(libc::MSG_FASTOPEN)] {
                let sent = sendto(number, b"x", &to, flags);
                assert_eq!(sent, Err(nix::errno::Errno::EPERM), "{flags:?}");
            }
            assert_eq!(connect(number, &to), Err(nix::errno::Errno::EPERM));
        });
        trap.set_nonblocking(true).unwrap();
        assert_eq!(trap.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
