//! System calls that a VMM may not make, from the moment its machine is built: what QEMU's own
//! `-sandbox` denies with all its options, and what opens new ways out. A zygote is denied all but
//! what it takes to fork; its children deny themselves the rest. Where the operator wants it, what
//! is on no list is denied or logged, too (`listed`).

mod arguments;
mod kvm;
mod listed;

use std::collections::BTreeMap;

use mayfly_vmm_contract::hardening::UnlistedCalls;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// io_pgetevents(2), `arch/x86/entry/syscalls/syscall_64.tbl` of Linux.
const IO_PGETEVENTS: i64 = 333;

/// Denied with `EPERM`.
const DENIED: &[i64] = &[
    // -sandbox spawn=deny
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    // -sandbox elevateprivileges=deny, but for what a fork needs
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setpgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    // Other processes, namespaces, the kernel itself.
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_chroot,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_personality,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    // System V and POSIX message queues, shared memory, semaphores: a VMM has none.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Guest memory that is moved is not registered with its userfaultfd any more. realloc(3) copies
    // where it cannot move.
    libc::SYS_mremap,
    // New connections: everything a VMM talks to, it has.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_socketpair,
    // Descriptors that take long to close: for each watch a grace period of the kernel, for each
    // page a change of its own map. One that is sent to the engine and not wanted there is closed by
    // the thread that reads.
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_memfd_secret,
    // Asynchronous I/O and moves of pages between files and pipes: QEMU's disks work with threads.
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_io_submit,
    libc::SYS_io_cancel,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_sendfile,
];

/// What a fork of a zygote needs until it denies it to itself as well.
const TO_BECOME_A_FORK: &[i64] = &[
    libc::SYS_setsid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
    libc::SYS_prlimit64,
    libc::SYS_setrlimit,
    libc::SYS_seccomp,
];

/// Flags of the clone(2) that makes a fork of a zygote: a sibling of it in namespaces of its own,
/// of which its owner decides who it is in them.
pub(crate) const FORK: i32 = libc::CLONE_PARENT
    | libc::CLONE_PIDFD
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::SIGCHLD;

/// Kinds of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vmm,
    Zygote,
}

/// Modes of fallocate(2) that a VMM may ask for: those that QEMU zeroes and discards with. They
/// allocate nothing beyond the end of a file, which `RLIMIT_FSIZE` bounds. The kernel looks at that
/// bound neither with `FALLOC_FL_KEEP_SIZE`, nor when a range is inserted.
const ALLOCATIONS: [i32; 3] =
    [0, libc::FALLOC_FL_ZERO_RANGE, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE];

/// Requests of ioctl(2) that allocate as fallocate(2) does with `FALLOC_FL_KEEP_SIZE`, of any file:
/// `FS_IOC_RESVSP`, `FS_IOC_RESVSP64` and `FS_IOC_ZERO_RANGE` (kernel `include/linux/falloc.h`).
const ALLOCATING_IOCTLS: [u32; 3] = [0x4030_5828, 0x4030_582a, 0x4030_5839];

/// The programs of one kind of process, in the order in which they are to be installed.
pub(crate) type Programs = Vec<BpfProgram>;

/// For a VMM.
pub(crate) fn for_vmm(unlisted: UnlistedCalls) -> Result<Programs, String> {
    programs(Kind::Vmm, TO_BECOME_A_FORK, None, unlisted)
}

/// For a zygote.
pub(crate) fn for_zygote(unlisted: UnlistedCalls) -> Result<Programs, String> {
    programs(Kind::Zygote, &[], Some(FORK), unlisted)
}

fn programs(
    kind: Kind,
    more: &[i64],
    allowed_clone: Option<i32>,
    unlisted: UnlistedCalls,
) -> Result<Programs, String> {
    let arch = TargetArch::x86_64;
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(more).map(|call| (*call, Vec::new())).collect();
    // A clone that makes a process, not a thread; of the whole word of flags, but for the one that
    // may.
    let flags = |operator, value: u64| {
        SeccompCondition::new(0, SeccompCmpArgLen::Qword, operator, value)
            .map_err(|e| e.to_string())
    };
    let mut process = vec![flags(SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0)?];
    if let Some(allowed) = allowed_clone {
        process.push(flags(SeccompCmpOp::Ne, i64::from(allowed).cast_unsigned())?);
    }
    denied.insert(libc::SYS_clone, vec![SeccompRule::new(process).map_err(|e| e.to_string())?]);
    denied.extend(arguments::denied(kind).map_err(|e| e.to_string())?);
    // The arguments of clone3 are in memory, where a filter cannot see them; libc falls back to
    // clone.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let program = |rules, errno: i32| {
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(errno.cast_unsigned()),
            arch,
        );
        filter.and_then(BpfProgram::try_from).map_err(|e| e.to_string())
    };
    // First: of several errors the kernel gives that of the filter installed last (seccomp(2)), and
    // a call that is said not to exist has a way around it in the C library.
    let mut all: Programs =
        listed::program(kind, unlisted).map_err(|e| e.to_string())?.into_iter().collect();
    all.extend([
        no_other_numbers(),
        program(unknown, libc::ENOSYS)?,
        // As from a file system that cannot do it; QEMU then writes zeros.
        program(allocations()?, libc::EOPNOTSUPP)?,
        program(denied, libc::EPERM)?,
    ]);
    Ok(all)
}

/// What would take more of a disk than `RLIMIT_FSIZE` allows.
fn allocations() -> Result<BTreeMap<i64, Vec<SeccompRule>>, String> {
    // Both arguments have 32 bits; the kernel does not look at the rest of the register.
    let word = |argument, operator, value: u32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())
            .map_err(|e| e.to_string())
    };
    let rule = |conditions| SeccompRule::new(conditions).map_err(|e| e.to_string());
    let other_modes = ALLOCATIONS
        .iter()
        .map(|mode| word(1, SeccompCmpOp::Ne, mode.cast_unsigned()))
        .collect::<Result<Vec<_>, _>>()?;
    let requests = ALLOCATING_IOCTLS
        .iter()
        .map(|request| rule(vec![word(1, SeccompCmpOp::Eq, *request)?]))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(BTreeMap::from([
        (libc::SYS_fallocate, vec![rule(other_modes)?]),
        (libc::SYS_ioctl, requests),
    ]))
}

/// Denies every call that is newer than the oldest kernel on which all of this runs, as that would:
/// nothing depends on one, and nobody has looked at what it opens. And every call of the x32 ABI,
/// whose numbers are those of x86-64 with bit 30 set and which a filter by numbers would let pass
/// (seccomp(2), "Architecture").
#[expect(
    clippy::cast_possible_truncation,
    reason = "a code has 16 bits, and its constants are small; a number is no larger than 450"
)]
fn no_other_numbers() -> BpfProgram {
    /// The last one of Linux 6.1 (`arch/x86/entry/syscalls/syscall_64.tbl`).
    const LAST: u32 = libc::SYS_set_mempolicy_home_node as u32;
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let give = |action: u32| step(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    vec![
        // The number is the first field of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, LAST + 1),
        give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
        give(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Installs programs in the calling thread, and in all threads of the process when `everywhere`;
/// threads made later inherit them. Allocates nothing. False when the kernel refuses; then some may
/// be installed.
pub(crate) fn install(programs: &Programs, everywhere: bool) -> bool {
    programs.iter().all(|program| install_one(program, everywhere))
}

fn install_one(program: &BpfProgram, everywhere: bool) -> bool {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const sock_filter,
    }
    let Ok(len) = u16::try_from(program.len()) else { return false };
    let program = Program { len, filter: program.as_ptr() };
    let flags = if everywhere { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: seccomp(2) reads the program, which outlives the call.
    unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
            == 0
    }
}

#[cfg(test)]
mod tests {
    use super::arguments::{HUGE_PAGES, KVM_CREATE_VM, STATUS_FLAGS};
    use super::*;

    /// Runs `check` in a child that has installed `programs`; it makes system calls only. Its
    /// answer must be 0.
    pub(super) fn filtered(programs: &Programs, check: fn() -> i32) -> i32 {
        // SAFETY: the child of this multi-threaded process makes system calls only, and ends by
        // _exit.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let before = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
                libc::_exit(if before < 0 || !install(programs, false) { 99 } else { check() });
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            status
        }
    }

    pub(super) fn answers(number: i64, arguments: [i64; 2], errno: i32) -> bool {
        // SAFETY: calls with these numbers are denied, or harmless with these arguments.
        unsafe {
            let result = libc::syscall(number, arguments[0], arguments[1], 0, 0, 0);
            if number == libc::SYS_clone && result == 0 {
                libc::_exit(0);
            }
            result < 0 && crate::die::errno() == errno
        }
    }

    #[test]
    fn a_vmm_makes_no_processes_and_no_sockets() {
        let outcome = filtered(&for_vmm(UnlistedCalls::Allow).unwrap(), || {
            let denied = [
                (libc::SYS_socket, [i64::from(libc::AF_UNIX), 1]),
                (libc::SYS_clone, [i64::from(libc::SIGCHLD), 0]),
                (libc::SYS_clone, [i64::from(FORK), 0]),
                (libc::SYS_setresuid, [0, 0]),
                (libc::SYS_setsid, [0, 0]),
                (libc::SYS_kill, [0, 0]),
                (libc::SYS_inotify_init1, [0, 0]),
                (libc::SYS_ioctl, [-1, i64::from(KVM_CREATE_VM)]),
            ];
            let all =
                denied.iter().all(|(number, arguments)| answers(*number, *arguments, libc::EPERM));
            let x32 = answers(libc::SYS_getpid | 0x4000_0000, [0, 0], libc::ENOSYS);
            i32::from(!(all && x32 && answers(libc::SYS_clone3, [0, 0], libc::ENOSYS)))
        });
        assert_eq!(outcome, 0);
    }

    /// Memory moves, and flags that hurt are set, where they may be; 0 when all is as `denied`
    /// says.
    fn tries(denied: bool) -> i32 {
        let errno = |result: i64| if result < 0 { crate::die::errno() } else { 0 };
        // SAFETY: calls on memory and descriptors made here.
        unsafe {
            let (anonymous, len) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 8192_usize);
            let (read, null) = (libc::PROT_READ, std::ptr::null_mut());
            let map = libc::mmap(null, len, read, anonymous, -1, 0);
            let file = libc::memfd_create(c"flags".as_ptr(), 0);
            // To where it is.
            let moved = libc::syscall(libc::SYS_mremap, map, len, len, 0);
            let mut wrong = i32::from((errno(moved) == libc::EPERM) != denied);
            for flag in STATUS_FLAGS {
                for more in [0, libc::O_NONBLOCK] {
                    let set = libc::fcntl(file, libc::F_SETFL, flag | more);
                    wrong |= i32::from((errno(set.into()) == libc::EPERM) != denied) << 1;
                }
            }
            for advice in HUGE_PAGES {
                let advised = libc::syscall(libc::SYS_madvise, map, len, advice);
                wrong |= i32::from((errno(advised) == libc::EPERM) != denied) << 2;
            }
            // What QEMU does.
            let kept = [
                libc::fcntl(file, libc::F_SETFL, libc::O_NONBLOCK),
                libc::fcntl(file, libc::F_SETFL, 0),
                libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC),
                libc::madvise(map, len, libc::MADV_DONTNEED),
            ];
            wrong | i32::from(kept != [0; 4]) << 3
        }
    }

    #[test]
    fn no_memory_moves_and_no_status_flag_that_hurts_is_set() {
        assert_eq!(tries(false), 0, "without a filter all of it can be done");
        for programs in
            [for_vmm(UnlistedCalls::Allow).unwrap(), for_zygote(UnlistedCalls::Allow).unwrap()]
        {
            // The status of exit codes is in the second byte (wait(2)).
            assert_eq!(filtered(&programs, || tries(true)) >> 8, 0);
        }
    }

    #[test]
    fn a_zygote_makes_only_the_one_kind_of_process() {
        let outcome = filtered(&for_zygote(UnlistedCalls::Allow).unwrap(), || {
            let denied = [
                i64::from(libc::SIGCHLD),
                i64::from(FORK | libc::CLONE_VM),
                i64::from(libc::CLONE_NEWUSER),
            ];
            let all = denied.iter().all(|flags| answers(libc::SYS_clone, [*flags, 0], libc::EPERM));
            // Whether the kernel then makes it is not the filter's: anything but EPERM from a clone
            // without a place for the descriptor shows that it was let through.
            let forked = answers(libc::SYS_clone, [i64::from(FORK), 0], libc::EFAULT);
            i32::from(!(all && forked && answers(libc::SYS_socket, [1, 1], libc::EPERM)))
        });
        assert_eq!(outcome, 0);
    }

    #[test]
    fn calls_that_are_newer_than_the_list_do_not_exist() {
        for programs in [for_vmm(UnlistedCalls::Allow), for_zygote(UnlistedCalls::Allow)] {
            let outcome = filtered(&programs.unwrap(), || {
                // cachestat(2) of Linux 6.5, on no descriptor; and what no kernel has yet.
                i32::from(
                    !(answers(451, [-1, 0], libc::ENOSYS) && answers(999, [0; 2], libc::ENOSYS)),
                )
            });
            assert_eq!(outcome, 0);
        }
    }

    /// A file of 1 MiB without a name, by a number that the child of [`filtered`] has, too.
    fn shared_file() -> i32 {
        use std::os::{fd::IntoRawFd, unix::fs::OpenOptionsExt};
        static FILE: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
        *FILE.get_or_init(|| {
            let mut options = std::fs::OpenOptions::new();
            let unnamed = options.read(true).write(true).custom_flags(libc::O_TMPFILE);
            let file = unnamed.open(std::env::temp_dir()).unwrap();
            file.set_len(1 << 20).unwrap();
            file.into_raw_fd()
        })
    }

    #[test]
    fn no_disk_space_is_taken_beyond_the_end_of_a_file() {
        shared_file();
        let check = || {
            let file = i64::from(shared_file());
            let mode = |mode: i32, offset: i64| {
                // SAFETY: a file of this test's own.
                let done = unsafe {
                    libc::syscall(libc::SYS_fallocate, file, i64::from(mode), offset, 4096_i64)
                };
                if done == 0 { 0 } else { crate::die::errno() }
            };
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            let zero = libc::FALLOC_FL_ZERO_RANGE;
            let refused = [
                keep,
                keep | zero,
                libc::FALLOC_FL_INSERT_RANGE,
                libc::FALLOC_FL_COLLAPSE_RANGE,
                keep | libc::FALLOC_FL_UNSHARE_RANGE,
                1 << 30,
            ];
            let all = refused.iter().all(|refused| mode(*refused, 0) == libc::EOPNOTSUPP);
            // The upper half of the register is nothing to the kernel.
            let high = answers(libc::SYS_fallocate, [file, 1 << 32 | 1], libc::EOPNOTSUPP);
            let reserved = ALLOCATING_IOCTLS.iter().all(|request| {
                answers(libc::SYS_ioctl, [file, (*request).into()], libc::EOPNOTSUPP)
            });
            // What QEMU uses, and other requests, pass.
            let passes = mode(0, 0) == 0 && mode(keep | libc::FALLOC_FL_PUNCH_HOLE, 0) == 0;
            let other = answers(libc::SYS_ioctl, [file, 0x5401], libc::ENOTTY);
            i32::from(!(all && high && reserved && passes && other))
        };
        assert_eq!(filtered(&for_vmm(UnlistedCalls::Allow).unwrap(), check), 0);
        assert_eq!(filtered(&for_zygote(UnlistedCalls::Allow).unwrap(), check), 0);
        // Without a filter such an allocation succeeds, so that the refusal is not the file
        // system's.
        // SAFETY: a file of this test's own.
        let alone = unsafe { libc::fallocate(shared_file(), libc::FALLOC_FL_KEEP_SIZE, 0, 4096) };
        assert_eq!(alone, 0);
    }
}
