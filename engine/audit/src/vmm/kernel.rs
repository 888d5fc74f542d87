//! Parts of the kernel that a VMM has no need of.

use mayfly_vmm::hardening::{self, UnlistedCalls};
use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, Outcome};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::attack::{Attack, closing, run as attack};

/// `arch/x86/entry/syscalls/syscall_64.tbl` of Linux 6.5.
const CACHESTAT: i64 = 451;

/// A call that makes a descriptor, or must not.
fn making(what: &str, call: Call) -> Attack {
    Attack::steps(what, move |tracee| {
        let outcome = tracee.call(&call)?;
        closing(tracee, outcome)
    })
    .absent([Errno::ENOSYS])
}

/// A call with arguments that the kernel refuses in this way, after it has found the caller to be
/// allowed.
fn reaching(what: &str, call: Call, reached: &'static [Errno]) -> Attack {
    Attack::steps(what, move |tracee| {
        let outcome = tracee.call(&call)?;
        Ok(match outcome {
            Outcome::Failed(errno) if reached.contains(&errno) => Outcome::Returned(0),
            outcome => outcome,
        })
    })
    .absent([Errno::ENOSYS])
}

/// What only the list of what a VMM may call denies, where the operator wants it to.
fn unlisted() -> Vec<Attack> {
    // KVM_CREATE_VM of `<linux/kvm.h>`.
    let create = Call::new(libc::SYS_ioctl).arg(-1).arg(0xae01).arg(0);
    vec![
        Attack::call(
            "a call on no list (getcpu(2))",
            Call::new(libc::SYS_getcpu).arg(0).arg(0).arg(0),
        ),
        reaching("make another virtual machine (ioctl(2))", create, &[Errno::EBADF]),
    ]
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut attacks = vec![
        making("userfaultfd(2)", Call::new(libc::SYS_userfaultfd).arg(libc::O_CLOEXEC)),
        // BPF_MAP_CREATE = 0; `union bpf_attr`: an array of one 4-byte key and value.
        making("bpf(2): make a map", {
            let attributes = [2_u32, 4, 4, 1].map(u32::to_ne_bytes).concat();
            Call::new(libc::SYS_bpf).arg(0).arg(attributes).arg(16)
        }),
        making("perf_event_open(2)", {
            // `struct perf_event_attr`: software event (1), its size (64), CPU clock (0); this
            // process, any processor.
            let mut attributes = vec![0_u8; 64];
            attributes[0] = 1;
            attributes[4] = 64;
            Call::new(libc::SYS_perf_event_open).arg(attributes).arg(0).arg(-1).arg(-1).arg(0)
        })
        .absent([Errno::ENOENT, Errno::EOPNOTSUPP]),
        Attack::call("keyctl(2): its session keyring", {
            // KEYCTL_GET_KEYRING_ID = 0, KEY_SPEC_SESSION_KEYRING = -3, create.
            Call::new(libc::SYS_keyctl).arg(0).arg(-3).arg(1)
        })
        .absent([Errno::ENOSYS]),
        Attack::call("add_key(2)", {
            let text = b"mayfly".to_vec();
            // KEY_SPEC_THREAD_KEYRING = -1.
            Call::new(libc::SYS_add_key).arg("user").arg("mayfly-audit").arg(text).arg(6).arg(-1)
        })
        .absent([Errno::ENOSYS]),
        // `struct io_uring_params` is 120 bytes.
        making(
            "io_uring_setup(2)",
            Call::new(libc::SYS_io_uring_setup).arg(1).arg(vec![0_u8; 120]),
        ),
        // Huge pages count towards no memory cgroup. A file of them needs none yet.
        making(
            "memfd_create(2) of huge pages",
            Call::new(libc::SYS_memfd_create).arg("mayfly-audit").arg(i64::from(libc::MFD_HUGETLB)),
        )
        .absent([Errno::EINVAL, Errno::ENODEV, Errno::EACCES]),
        // Without any in the pool the kernel has none to map, which it finds out after it has
        // agreed.
        reaching(
            "mmap(2) of huge pages",
            Call::new(libc::SYS_mmap)
                .arg(0)
                .arg(2 << 20)
                .arg(libc::PROT_NONE)
                .arg(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB)
                .arg(-1)
                .arg(0),
            &[Errno::ENOMEM],
        )
        .absent([Errno::EINVAL, Errno::ENODEV]),
        Attack::steps("io_setup(2)", |tracee| {
            let (outcome, buffers) =
                tracee.call_reading(&Call::new(libc::SYS_io_setup).arg(1).arg(vec![0_u8; 8]))?;
            if let (Outcome::Returned(_), Some(Ok(context))) =
                (&outcome, buffers.first().map(|bytes| bytes.as_slice().try_into()))
            {
                let context = i64::from_ne_bytes(context);
                tracee.call(&Call::new(libc::SYS_io_destroy).arg(context))?;
            }
            Ok(outcome)
        })
        .absent([Errno::ENOSYS]),
        reaching(
            "splice(2)",
            Call::new(libc::SYS_splice).arg(-1).arg(0).arg(-1).arg(0).arg(1).arg(0),
            &[Errno::EBADF],
        ),
        reaching(
            "vmsplice(2)",
            Call::new(libc::SYS_vmsplice).arg(-1).arg(0).arg(0).arg(0),
            &[Errno::EBADF],
        ),
        reaching(
            "a call that is newer than Linux 6.1 (cachestat(2))",
            Call::new(CACHESTAT).arg(-1).arg(0).arg(0).arg(0),
            &[Errno::EBADF],
        ),
        making("fanotify_init(2)", Call::new(libc::SYS_fanotify_init).arg(0).arg(0)),
        reaching(
            "finit_module(2)",
            Call::new(libc::SYS_finit_module).arg(-1).arg("").arg(0),
            &[Errno::EBADF],
        ),
        reaching(
            "kexec_load(2)",
            // More segments than there may be.
            Call::new(libc::SYS_kexec_load).arg(0).arg(1 << 20).arg(0).arg(0),
            &[Errno::EINVAL],
        ),
        reaching(
            "swapon(2)",
            Call::new(libc::SYS_swapon).arg("/no/such/file").arg(0),
            &[Errno::ENOENT],
        ),
        reaching(
            "reboot(2), with a command that there is not",
            Call::new(libc::SYS_reboot)
                .arg(0xfee1_dead_u32.cast_signed())
                .arg(672_274_793)
                .arg(0x1111_1111)
                .arg(0),
            &[Errno::EINVAL],
        ),
        reaching(
            "open_by_handle_at(2)",
            {
                // `struct file_handle`: 8 bytes of handle, type 1.
                let handle = [&8_u32.to_ne_bytes()[..], &1_i32.to_ne_bytes(), &[0; 8]].concat();
                Call::new(libc::SYS_open_by_handle_at)
                    .arg(libc::AT_FDCWD)
                    .arg(handle)
                    .arg(libc::O_RDONLY)
            },
            &[Errno::ESTALE, Errno::EOPNOTSUPP, Errno::EINVAL],
        ),
        Attack::call("read the kernel's log (syslog(2))", {
            // SYSLOG_ACTION_READ_ALL = 3.
            Call::new(libc::SYS_syslog).arg(3).arg(vec![0_u8; 4096]).arg(4096)
        }),
        // Neither time nor zone: the kernel looks at the right to set them, and at nothing else.
        Attack::call(
            "set the clock (settimeofday(2))",
            Call::new(libc::SYS_settimeofday).arg(0).arg(0),
        ),
        Attack::call("I/O ports (iopl(2))", Call::new(libc::SYS_iopl).arg(3))
            .absent([Errno::ENOSYS]),
    ];
    let enforced = hardening::from_env().is_ok_and(|now| now.unlisted_calls == UnlistedCalls::Deny);
    if enforced {
        attacks.extend(unlisted());
    }
    let mut findings = attack(lab, &attacks).await?;
    if !enforced {
        let variable = hardening::CALLS_VARIABLE;
        findings.notes.push(format!("Calls on no list are not denied here ({variable})."));
    }
    Ok(findings)
}
