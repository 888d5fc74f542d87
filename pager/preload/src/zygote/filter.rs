//! What a forked VMM may not ask the kernel for: what QEMU's own `-sandbox` denies with all its options, which a zygote
//! cannot have because it must fork and its children must change their user, and what opens new ways out.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Denied with `EPERM`.
const DENIED: &[i64] = &[
    // -sandbox spawn=deny
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    // -sandbox elevateprivileges=deny
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // Other processes, namespaces, the kernel itself.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_open_by_handle_at,
    // New connections: everything a VMM talks to, it has.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
];

/// The programs, in the order in which they are to be installed.
pub(super) fn programs() -> Result<[BpfProgram; 2], String> {
    let arch = TargetArch::x86_64;
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    // A clone that makes a process, not a thread.
    let process =
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0);
    let rule = SeccompRule::new(vec![process.map_err(|e| e.to_string())?]).map_err(|e| e.to_string())?;
    denied.insert(libc::SYS_clone, vec![rule]);
    // The arguments of clone3 are in memory, where a filter cannot see them; libc falls back to clone.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let program = |rules, errno: i32| {
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.cast_unsigned()), arch);
        filter.and_then(BpfProgram::try_from).map_err(|e| e.to_string())
    };
    Ok([program(unknown, libc::ENOSYS)?, program(denied, libc::EPERM)?])
}

/// Installs a program in the calling thread; threads it makes inherit it. Allocates nothing.
pub(super) fn install(program: &BpfProgram) -> bool {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const seccompiler::sock_filter,
    }
    let Ok(len) = u16::try_from(program.len()) else { return false };
    let program = Program { len, filter: program.as_ptr() };
    // SAFETY: PR_SET_SECCOMP reads the program, which outlives the call.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filtered_process_makes_threads_but_no_processes_and_no_sockets() {
        let programs = programs().unwrap();
        // SAFETY: the child of this multi-threaded process makes system calls only; a thread is made by its parent's
        // test below, not here.
        let outcome = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let before = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
                let installed = programs.iter().all(install);
                let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
                let forked = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
                if forked == 0 {
                    libc::_exit(0);
                }
                let errno = *libc::__errno_location();
                let clone3 = libc::syscall(libc::SYS_clone3, 0, 0);
                let errno3 = *libc::__errno_location();
                let good = before >= 0 && installed && socket < 0 && forked < 0 && errno == libc::EPERM;
                libc::_exit(i32::from(!(good && clone3 < 0 && errno3 == libc::ENOSYS)));
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            status
        };
        assert_eq!(outcome, 0);
    }
}
