//! Other processes.

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, Outcome};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::unconfined::Unconfined;
use super::attack::{Attack, closing, run as attack};

/// A writable private mapping of a process: its address, for reading its memory.
fn some_memory(pid: u32) -> Option<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let line = maps.lines().find(|line| line.contains(" rw-p ") && line.contains("[heap]"));
    let line = line.or_else(|| maps.lines().find(|line| line.contains(" rw-p ")))?;
    u64::from_str_radix(line.split('-').next()?, 16).ok()
}

/// process_vm_readv(2) and process_vm_writev(2): one `struct iovec` on each side. The local one is
/// not mapped, so that nothing is copied: the kernel answers EFAULT after it has found the caller
/// to be allowed.
fn memory_of(what: &str, number: i64, pid: u32) -> Attack {
    let address = some_memory(pid).unwrap_or(0x1000);
    let vector = |address: u64| [address.to_ne_bytes(), 16_u64.to_ne_bytes()].concat();
    let call = Call::new(number)
        .arg(i64::from(pid))
        .arg(vector(0x10))
        .arg(1)
        .arg(vector(address))
        .arg(1)
        .arg(0);
    Attack::steps(what, move |tracee| {
        let outcome = tracee.call(&call)?;
        Ok(if outcome == Outcome::Failed(Errno::EFAULT) { Outcome::Returned(0) } else { outcome })
    })
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let neighbour = lab.neighbour().await?.session.vmm_pid();
    let engine = std::process::id();
    // Traced in place of the neighbour by the control, which would stop it.
    let bystander = Unconfined::start()?;
    let pid_of = |number: u32| i64::from(number);
    let signal = |what: &str, pid: i64| {
        // Signal 0 asks whether it could be sent (kill(2)).
        Attack::call(what, Call::new(libc::SYS_kill).arg(pid).arg(0))
    };
    let pidfd = move |pid: u32| Call::new(libc::SYS_pidfd_open).arg(i64::from(pid)).arg(0);
    let seize = |pid: u32| {
        // PTRACE_SEIZE = 0x4206 (ptrace(2)).
        Call::new(libc::SYS_ptrace).arg(0x4206).arg(i64::from(pid)).arg(0).arg(0)
    };
    let (bystander_seize, neighbour_seize) = (seize(bystander.pid()), seize(neighbour));
    let attacks = [
        signal("signal the engine (kill(2), signal 0)", pid_of(engine)),
        signal("signal a neighbour's VMM", pid_of(neighbour)),
        signal("find any other process to signal (kill(2), -1: ESRCH where there is none)", -1),
        Attack::call("signal a neighbour's VMM (tgkill(2))", {
            Call::new(libc::SYS_tgkill).arg(pid_of(neighbour)).arg(pid_of(neighbour)).arg(0)
        }),
        Attack::steps("a handle on a neighbour's VMM (pidfd_open(2))", move |tracee| {
            let outcome = tracee.call(&pidfd(neighbour))?;
            closing(tracee, outcome)
        }),
        Attack::steps("trace a neighbour's VMM (ptrace(2))", move |tracee| {
            tracee.call(&neighbour_seize)
        })
        .control(move |tracee| tracee.call(&bystander_seize)),
        memory_of(
            "read the memory of a neighbour's VMM (process_vm_readv(2))",
            libc::SYS_process_vm_readv,
            neighbour,
        ),
        memory_of(
            "write the memory of a neighbour's VMM (process_vm_writev(2))",
            libc::SYS_process_vm_writev,
            neighbour,
        ),
        Attack::call("limits of the engine (prlimit(2))", {
            Call::new(libc::SYS_prlimit64).arg(pid_of(engine)).arg(7).arg(0).arg(vec![0_u8; 16])
        }),
        Attack::call("compare descriptors with a neighbour's (kcmp(2))", {
            Call::new(libc::SYS_kcmp)
                .arg(pid_of(engine))
                .arg(pid_of(neighbour))
                .arg(1)
                .arg(0)
                .arg(0)
        })
        .absent([Errno::ENOSYS]),
        Attack::call("start a process (fork(2))", Call::new(libc::SYS_fork)),
        Attack::call("start a process (vfork(2))", Call::new(libc::SYS_vfork)),
        Attack::call("start a process (clone(2) without CLONE_THREAD)", {
            Call::new(libc::SYS_clone).arg(libc::SIGCHLD).arg(0).arg(0).arg(0).arg(0)
        }),
        Attack::call("start a process (clone3(2))", {
            // `struct clone_args`, 64 bytes, exit_signal is the fifth field.
            let mut args = vec![0_u8; 64];
            args[32..36].copy_from_slice(&libc::SIGCHLD.to_ne_bytes());
            Call::new(libc::SYS_clone3).arg(args).arg(64)
        }),
        Attack::call(
            "run /bin/true (execve(2))",
            Call::new(libc::SYS_execve).arg("/bin/true").arg(0).arg(0),
        ),
        Attack::call("run its own program again (execve(2) of /proc/self/exe)", {
            Call::new(libc::SYS_execve).arg("/proc/self/exe").arg(0).arg(0)
        }),
        Attack::steps(
            "run a program that exists in memory only (memfd_create(2), execveat(2))",
            |tracee| {
                let made = tracee.call(&Call::new(libc::SYS_memfd_create).arg("x").arg(0))?;
                let Outcome::Returned(file) = made else { return Ok(made) };
                let program: &[u8] = b"#!/bin/true\n";
                tracee.call(
                    &Call::new(libc::SYS_write).arg(file).arg(program.to_vec()).arg(program.len()),
                )?;
                tracee.call(
                    &Call::new(libc::SYS_execveat)
                        .arg(file)
                        .arg("")
                        .arg(0)
                        .arg(0)
                        .arg(libc::AT_EMPTY_PATH),
                )
            },
        ),
    ];
    attack(lab, &attacks).await
}
