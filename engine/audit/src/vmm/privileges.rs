//! Users, namespaces, mounts and limits.

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::attack::{Attack, run as attack};

/// Opens a namespace of this process, which is the host's, and enters it.
fn enter(name: &'static str, flag: i32) -> Attack {
    Attack::steps(format!("enter the host's {name} namespace (setns(2))"), move |tracee| {
        let path = format!("/proc/{}/ns/{name}", std::process::id());
        let open = tracee.call(
            &Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(&*path).arg(libc::O_RDONLY),
        )?;
        // What cannot be opened is tried with a descriptor that is no namespace: the filter answers
        // first.
        let file = if let Outcome::Returned(file) = open { file } else { -1 };
        let entered = tracee.call(&Call::new(libc::SYS_setns).arg(file).arg(flag))?;
        Ok(if matches!(open, Outcome::Failed(_)) && entered == Outcome::Failed(Errno::EBADF) {
            open
        } else {
            entered
        })
    })
}

/// `RLIM_INFINITY` (getrlimit(2)).
const NO_LIMIT: u64 = u64::MAX;

/// The soft and hard limit of the process itself.
fn limit(tracee: &mut Tracee, resource: u32) -> Result<(Outcome, [u64; 2]), InjectError> {
    let call =
        Call::new(libc::SYS_prlimit64).arg(0).arg(i64::from(resource)).arg(0).arg(vec![0_u8; 16]);
    let (outcome, buffers) = tracee.call_reading(&call)?;
    let half = |at: usize| {
        let bytes = buffers
            .first()
            .and_then(|buffer| buffer.get(at..at + 8))
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    Ok((outcome, [half(0), half(8)]))
}

/// Sets its own limit.
fn set(tracee: &mut Tracee, resource: u32, limits: [u64; 2]) -> Result<Outcome, InjectError> {
    let limits = limits.map(u64::to_ne_bytes).concat();
    tracee.call(&Call::new(libc::SYS_prlimit64).arg(0).arg(i64::from(resource)).arg(limits).arg(0))
}

/// Raises a hard limit by one; without a limit that is not even necessary. The control sets the
/// soft limit to the hard one, for more than that needs CAP_SYS_RESOURCE, which not every root has.
fn raise(what: &str, resource: u32) -> Attack {
    Attack::steps(format!("go beyond a limit on {what} (prlimit(2))"), move |tracee| {
        let (outcome, [soft, hard]) = limit(tracee, resource)?;
        match outcome {
            // There is none to go beyond.
            Outcome::Returned(_) if hard == NO_LIMIT => Ok(Outcome::Returned(0)),
            Outcome::Returned(_) => set(tracee, resource, [soft, hard + 1]),
            outcome => Ok(outcome),
        }
    })
    .control(move |tracee| {
        let (outcome, [_, hard]) = limit(tracee, resource)?;
        if outcome.succeeded() { set(tracee, resource, [hard, hard]) } else { Ok(outcome) }
    })
}

/// What an ordinary process may ask for itself with prctl(2).
fn prctl(what: &str, option: i32, value: i32) -> Attack {
    let call = Call::new(libc::SYS_prctl).arg(option).arg(value).arg(0).arg(0).arg(0);
    Attack::call(format!("{what} (prctl(2))"), call)
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let unshare = |what: &str, flag: i32| {
        Attack::call(
            format!("make a {what} namespace (unshare(2))"),
            Call::new(libc::SYS_unshare).arg(flag),
        )
    };
    let attacks = [
        Attack::call("become root (setuid(2))", Call::new(libc::SYS_setuid).arg(0)),
        Attack::call(
            "become root (setresuid(2))",
            Call::new(libc::SYS_setresuid).arg(0).arg(0).arg(0),
        ),
        Attack::call("become root's group (setgid(2))", Call::new(libc::SYS_setgid).arg(0)),
        Attack::call(
            "join groups (setgroups(2))",
            Call::new(libc::SYS_setgroups).arg(1).arg(vec![0_u8; 4]),
        ),
        Attack::call("take all capabilities (capset(2))", {
            // `struct __user_cap_header_struct`, version 3; effective and permitted: CAP_SYS_ADMIN
            // (bit 21).
            let header = [0x2008_0522_u32.to_ne_bytes(), [0; 4]].concat();
            let bit = (1_u32 << 21).to_ne_bytes();
            let sets = [bit, bit, [0; 4], [0; 4], [0; 4], [0; 4]].concat();
            Call::new(libc::SYS_capset).arg(header).arg(sets)
        }),
        Attack::call("raise an ambient capability (prctl(2))", {
            let (ambient, raise, net_raw) = (47, 2, 13);
            Call::new(libc::SYS_prctl).arg(ambient).arg(raise).arg(net_raw).arg(0).arg(0)
        })
        .control(|tracee| {
            // Only what is inheritable can be raised; an ordinary root first makes it so.
            let header = [0x2008_0522_u32.to_ne_bytes(), [0; 4]].concat();
            let bit = (1_u32 << 13).to_ne_bytes();
            let sets = [bit, bit, bit, [0; 4], [0; 4], [0; 4]].concat();
            tracee.call(&Call::new(libc::SYS_capset).arg(header).arg(sets))?;
            tracee.call(&Call::new(libc::SYS_prctl).arg(47).arg(2).arg(13).arg(0).arg(0))
        }),
        Attack::call("undo no_new_privs (prctl(2)): the attribute read back", {
            // PR_GET_NO_NEW_PRIVS = 39.
            Call::new(libc::SYS_prctl).arg(39).arg(0).arg(0).arg(0).arg(0)
        })
        .success_is(|value| value == 0),
        prctl("outlive its engine: wish for no signal at its death", libc::PR_SET_PDEATHSIG, 0),
        prctl("let its memory be dumped and traced", libc::PR_SET_DUMPABLE, 1),
        prctl(
            "choose with whom it shares processor cores",
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
        )
        .absent([Errno::EINVAL, Errno::ENODEV]),
        prctl("have all its memory merged with others'", libc::PR_SET_MEMORY_MERGE, 1)
            .absent([Errno::EINVAL]),
        unshare("user", libc::CLONE_NEWUSER),
        unshare("mount", libc::CLONE_NEWNS),
        unshare("network", libc::CLONE_NEWNET),
        unshare("process", libc::CLONE_NEWPID),
        enter("mnt", libc::CLONE_NEWNS),
        enter("net", libc::CLONE_NEWNET),
        enter("pid", libc::CLONE_NEWPID),
        // There is no such file system, which the kernel finds out after it has seen that the
        // caller may mount.
        Attack::steps("mount a file system (mount(2))", |tracee| {
            let outcome = tracee.call(
                &Call::new(libc::SYS_mount).arg("none").arg("/").arg("mayflyfs").arg(0).arg(0),
            )?;
            Ok(if outcome == Outcome::Failed(Errno::ENODEV) {
                Outcome::Returned(0)
            } else {
                outcome
            })
        }),
        Attack::call(
            "use the new mount interface (fsopen(2))",
            Call::new(libc::SYS_fsopen).arg("tmpfs").arg(0),
        ),
        Attack::call("clone the mounts (open_tree(2))", {
            // OPEN_TREE_CLONE = 1.
            Call::new(libc::SYS_open_tree).arg(libc::AT_FDCWD).arg("/").arg(1)
        }),
        Attack::call("change its root (chroot(2))", Call::new(libc::SYS_chroot).arg("/")),
        Attack::call(
            "change the root of all (pivot_root(2))",
            Call::new(libc::SYS_pivot_root).arg("/").arg("/"),
        )
        // Pivoting to where it is fails with EBUSY for root: it was allowed to try.
        .control(|tracee| {
            let outcome = tracee.call(&Call::new(libc::SYS_pivot_root).arg("/").arg("/"))?;
            let tried = matches!(outcome, Outcome::Failed(Errno::EBUSY | Errno::EINVAL));
            Ok(if tried { Outcome::Returned(0) } else { outcome })
        }),
        Attack::call("set the host's name (sethostname(2))", {
            let name = nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            Call::new(libc::SYS_sethostname).arg(name.clone().into_bytes()).arg(name.len())
        }),
        raise("files", libc::RLIMIT_NOFILE),
        raise("core dumps", libc::RLIMIT_CORE),
        raise("the size of a file", libc::RLIMIT_FSIZE),
        raise("processes", libc::RLIMIT_NPROC),
        Attack::call(
            "take a better priority (setpriority(2))",
            Call::new(libc::SYS_setpriority).arg(0).arg(0).arg(-10),
        ),
        Attack::call("take real-time scheduling (sched_setscheduler(2))", {
            Call::new(libc::SYS_sched_setscheduler)
                .arg(0)
                .arg(libc::SCHED_FIFO)
                .arg(50_i32.to_ne_bytes().to_vec())
        })
        .absent([Errno::EPERM]),
    ];
    attack(lab, &attacks).await
}
