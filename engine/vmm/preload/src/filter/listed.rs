//! What a VMM asks the kernel for once its machine is built: the list of what it may, for operators
//! who want the rest denied or logged.
//!
//! The list was made from all calls of QEMU 10.0.2 under software emulation, in each of its roles
//! (a golden's build, restored sessions, zygotes, forks), with their close relatives, what the C
//! library may call besides, and [`kvm`]'s requests. It stands on top of what is denied by number
//! or argument, and gives nothing of that back.

use std::collections::BTreeMap;

use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER};
use mayfly_vmm_contract::hardening::UnlistedCalls;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::{Kind, TO_BECOME_A_FORK, kvm};
use crate::register::USERFAULTFD_IOC_NEW;

const LISTED: &[i64] = &[
    // Files and streams.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_pause,
    // Its sockets. It makes none.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_membarrier,
    // Threads and signals.
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time, which not every host has in memory of the process (vdso(7)).
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    // Randomness, and who it is.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    // To install the filters after this one, the last of which denies it.
    libc::SYS_seccomp,
];

/// What a zygote needs besides [`TO_BECOME_A_FORK`]: to look at its own threads and descriptors, and
/// to go to another root.
const LISTED_FOR_A_ZYGOTE: &[i64] = &[
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_get_robust_list,
    libc::SYS_chdir,
];

/// Requests of ioctl(2) with which a fork registers its memory.
const USERFAULTFD: &[u64] = &[USERFAULTFD_IOC_NEW, UFFDIO_API as u64, UFFDIO_REGISTER as u64];

/// The program that denies or logs what is not listed; `None` where that may pass.
pub(super) fn program(
    kind: Kind,
    unlisted: UnlistedCalls,
) -> Result<Option<BpfProgram>, BackendError> {
    let action = match unlisted {
        UnlistedCalls::Allow => return Ok(None),
        UnlistedCalls::Log => SeccompAction::Log,
        UnlistedCalls::Deny => SeccompAction::Errno(libc::EPERM.cast_unsigned()),
    };
    let (of_zygotes, userfaultfd) = match kind {
        Kind::Vmm => ([&[][..]; 2], &[][..]),
        Kind::Zygote => ([TO_BECOME_A_FORK, LISTED_FOR_A_ZYGOTE], USERFAULTFD),
    };
    let calls = LISTED.iter().chain(of_zygotes.into_iter().flatten());
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
        calls.map(|call| (*call, Vec::new())).collect();
    let requests =
        kvm::REQUESTS.iter().map(|request| u64::from(*request)).chain(userfaultfd.iter().copied());
    // The kernel takes a request as an `int`.
    let rule = |request| {
        let length = SeccompCmpArgLen::Dword;
        let equal = SeccompCondition::new(1, length, SeccompCmpOp::Eq, request)?;
        SeccompRule::new(vec![equal])
    };
    allowed.insert(libc::SYS_ioctl, requests.map(rule).collect::<Result<_, _>>()?);
    let filter = SeccompFilter::new(allowed, action, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(Some(filter.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::super::for_vmm;
    use super::super::tests::{answers, filtered};
    use super::*;

    #[test]
    fn what_is_on_no_list_is_denied_where_that_is_wanted() {
        // KVM_RUN and KVM_CREATE_VCPU on no descriptor, getcpu(2) with nowhere to write to.
        let outcome = filtered(&for_vmm(UnlistedCalls::Deny).unwrap(), || {
            let listed = answers(libc::SYS_ioctl, [-1, 0xae80], libc::EBADF)
                && answers(libc::SYS_read, [-1, 0], libc::EBADF);
            let unlisted = answers(libc::SYS_getcpu, [0, 0], libc::EPERM)
                && answers(libc::SYS_ioctl, [-1, 0xae41], libc::EPERM)
                && answers(libc::SYS_seccomp, [9, 9], libc::EPERM);
            let unlisted = unlisted
                && answers(libc::SYS_clone3, [0, 0], libc::ENOSYS)
                && answers(451, [-1, 0], libc::ENOSYS);
            i32::from(!(listed && unlisted))
        });
        assert_eq!(outcome, 0);
        for unlisted in [UnlistedCalls::Allow, UnlistedCalls::Log] {
            let outcome = filtered(&for_vmm(unlisted).unwrap(), || {
                // SAFETY: writes nowhere.
                let made = unsafe { libc::syscall(libc::SYS_getcpu, 0, 0, 0) } == 0;
                i32::from(!(made && answers(libc::SYS_ioctl, [-1, 0xae41], libc::EBADF)))
            });
            assert_eq!(outcome, 0);
        }
    }
}
