//! What would let a VMM put pages into the page cache, or change what others have open: a second
//! way to guest memory, its userfaultfd, and open file descriptions in common with others.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::{Lab, Victim};
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::attack::{Attack, closing, run as attack};
use super::descriptors::Shared;

/// `USERFAULTFD_IOC_NEW` of `<linux/userfaultfd.h>`.
const USERFAULTFD_IOC_NEW: i64 = 0xAA00;
const PAGE: i64 = 4096;

/// A descriptor of the process that leads to `target`, as `/proc` names it.
fn leading_to(pid: u32, target: &str) -> Option<i64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let entry = entries.flatten().find(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == target)
    })?;
    entry.file_name().to_str()?.parse().ok()
}

/// Looks at the status flags of its userfaultfd: who can do that can do the rest.
fn own_userfaultfd(tracee: &mut Tracee) -> Result<Outcome, InjectError> {
    match leading_to(tracee.pid(), "anon_inode:[userfaultfd]") {
        Some(file) => tracee.call(&Call::new(libc::SYS_fcntl).arg(file).arg(libc::F_GETFL)),
        None => Ok(Outcome::Failed(Errno::EBADF)),
    }
}

fn userfaultfd() -> Attack {
    let what = "take over its own page faults: a userfaultfd that it holds";
    Attack::steps(what, own_userfaultfd)
        .control(|tracee| {
            let path = "/dev/userfaultfd";
            let open = Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(path).arg(libc::O_RDWR);
            let device = match tracee.call(&open)? {
                Outcome::Returned(device) => device,
                failed => return Ok(failed),
            };
            let make = Call::new(libc::SYS_ioctl).arg(device).arg(USERFAULTFD_IOC_NEW);
            let made = tracee.call(&make.arg(libc::O_CLOEXEC))?;
            if made.succeeded() { own_userfaultfd(tracee) } else { Ok(made) }
        })
        .absent([Errno::ENOENT])
}

/// Maps the page cache privately through a descriptor that it holds.
fn map_again(tracee: &mut Tracee) -> Result<Outcome, InjectError> {
    let Some((file, _)) = Shared::PageCache.find(tracee.pid()) else {
        return Ok(Outcome::Failed(Errno::EBADF));
    };
    let call = Call::new(libc::SYS_mmap).arg(0).arg(PAGE).arg(libc::PROT_READ);
    tracee.call(&call.arg(libc::MAP_PRIVATE).arg(file).arg(0))
}

/// Where it has the page cache mapped; mapped now where it is not.
fn mapped(tracee: &mut Tracee) -> Result<Outcome, InjectError> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", tracee.pid()));
    let found = maps.unwrap_or_default().lines().find_map(|line| {
        let start = line.split('-').next().filter(|_| line.contains("/memfd:mayfly-page-cache"))?;
        i64::from_str_radix(start, 16).ok()
    });
    found.map_or_else(|| map_again(tracee), |start| Ok(Outcome::Returned(start)))
}

/// A call on guest memory, by its address.
fn on_memory(what: &str, call: fn(i64) -> Call) -> Attack {
    Attack::steps(what, move |tracee| match mapped(tracee)? {
        Outcome::Returned(start) => tracee.call(&call(start)),
        failed => Ok(failed),
    })
}

/// Status flags of a descriptor, as another process has them (proc_pid_fdinfo(5)).
fn flags(pid: u32, file: i64) -> Option<i32> {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{file}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

/// Changes a status flag of `file`, and changes it back; the outcome is of the first, or what
/// `meanwhile` makes of it.
fn change(
    tracee: &mut Tracee,
    file: i64,
    flag: i32,
    meanwhile: impl FnOnce() -> bool,
) -> Result<Outcome, InjectError> {
    let Some(before) = flags(tracee.pid(), file) else {
        return Ok(Outcome::Failed(Errno::EBADF));
    };
    let set = |flags: i32| Call::new(libc::SYS_fcntl).arg(file).arg(libc::F_SETFL).arg(flags);
    let outcome = tracee.call(&set(before ^ flag))?;
    if !outcome.succeeded() {
        return Ok(outcome);
    }
    let seen = meanwhile();
    tracee.call(&set(before))?;
    Ok(Outcome::Returned(seen.into()))
}

fn set_flag(name: &str, shared: Shared, path: String, (flag, label): (i32, &str)) -> Attack {
    let what = format!("set {label} on its descriptor (fcntl(2), F_SETFL): {name}");
    Attack::steps(what, move |tracee| match shared.find(tracee.pid()) {
        Some((file, _)) => change(tracee, file, flag, || true),
        None => Ok(Outcome::Failed(Errno::EBADF)),
    })
    .control(move |tracee| {
        let open = Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(&*path).arg(libc::O_RDONLY);
        let Outcome::Returned(file) = tracee.call(&open)? else {
            return Ok(Outcome::Failed(Errno::ENOENT));
        };
        let outcome = change(tracee, file, flag, || true)?;
        closing(tracee, Outcome::Returned(file))?;
        Ok(outcome)
    })
    // A file system without O_DIRECT.
    .absent([Errno::EINVAL])
}

/// Changes a status flag that nothing forbids, and looks whether somebody else has it then.
fn flag_seen(name: &str, shared: Shared, path: String, other: u32) -> Attack {
    let what = format!("change a status flag for a neighbour (1: the neighbour has it): {name}");
    let flag = libc::O_NONBLOCK;
    Attack::steps(what, move |tracee| {
        let pair = shared.find(tracee.pid()).zip(shared.find(other));
        let Some(((mine, _), (theirs, _))) = pair else {
            return Ok(Outcome::Failed(Errno::EBADF));
        };
        let before = flags(other, theirs);
        change(tracee, mine, flag, || flags(other, theirs) != before)
    })
    .control(move |tracee| {
        let open = Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(&*path).arg(libc::O_RDONLY);
        let Outcome::Returned(file) = tracee.call(&open)? else {
            return Ok(Outcome::Failed(Errno::ENOENT));
        };
        let Outcome::Returned(twin) = tracee.call(&Call::new(libc::SYS_dup).arg(file))? else {
            return Ok(Outcome::Failed(Errno::EMFILE));
        };
        let pid = tracee.pid();
        let before = flags(pid, twin);
        change(tracee, file, flag, || flags(pid, twin) != before)
    })
    .success_is(|seen| seen == 1)
}

/// One descriptor of a process, with device and inode of what it leads to.
struct Open {
    number: i32,
    target: String,
    identity: (u64, u64),
}

fn open(pid: u32) -> std::io::Result<Vec<Open>> {
    let found = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Open {
            number: path.file_name()?.to_str()?.parse().ok()?,
            target: std::fs::read_link(path).ok()?.display().to_string(),
            identity: (metadata.dev(), metadata.ino()),
        })
    };
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(entries.flatten().filter_map(|entry| found(&entry.path())).collect())
}

/// Whether two descriptors are of one open file description (kcmp(2), `KCMP_FILE`).
fn is_same(one: (u32, i32), other: (u32, i32)) -> nix::Result<bool> {
    const KCMP_FILE: i32 = 0;
    let ((pid, file), (other_pid, other_file)) = (one, other);
    // SAFETY: numbers are passed, and one comes back.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, pid, other_pid, KCMP_FILE, file, other_file) };
    Errno::result(order).map(|order| order == 0)
}

/// The descriptors of `pid` that share their open file description with one of `other`; of a
/// process and itself, with one of another number.
fn in_common(pid: u32, other: u32) -> std::io::Result<Vec<String>> {
    let (mine, theirs) = (open(pid)?, open(other)?);
    let mut common = Vec::new();
    for one in &mine {
        for two in theirs.iter().filter(|two| two.identity == one.identity) {
            if (pid, one.number) == (other, two.number) {
                continue;
            }
            match is_same((pid, one.number), (other, two.number)) {
                Ok(true) => common.push(format!("{} {}", one.number, one.target)),
                // Closed meanwhile.
                Ok(false) | Err(Errno::EBADF) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(common)
}

fn list(common: &[String]) -> String {
    if common.is_empty() { "none".into() } else { common.join(", ") }
}

/// Compares descriptors of each kind of VMM with those of others.
async fn compare(lab: &mut Lab, findings: &mut Findings) -> Result<(), AuditError> {
    let own = std::process::id();
    let file = File::open("/dev/null").map_err(AuditError::host("open /dev/null"))?;
    let twin = file.try_clone().map_err(AuditError::host("duplicate a descriptor"))?;
    let control = in_common(own, own);
    drop((file, twin));
    let neighbour = lab.neighbour().await?.session.vmm_pid();
    let zygote = lab.zygote().await?.map(|zygote| zygote.vmm_pid());
    let others = [Some(("a neighbour", neighbour)), Some(("the engine", own))];
    let others = others.into_iter().chain([zygote.map(|pid| ("the zygote", pid))]).flatten();
    let others: Vec<(&str, u32)> = others.collect();
    for kind in lab.kinds().await? {
        let victim = lab.victim(kind).await?;
        for (name, pid) in &others {
            let what = format!("{}: an open file description in common with {name}", kind.name());
            let control = match &control {
                Ok(found) => (format!("this process: {}", list(found)), !found.is_empty()),
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    findings.push(Attempt::not_applicable(what, "the kernel has no kcmp(2)"));
                    continue;
                }
                Err(error) => (error.to_string(), false),
            };
            let found =
                in_common(victim.pid(), *pid).map_err(AuditError::host("compare descriptors"))?;
            findings.push(Attempt::judge(what, control, (list(&found), !found.is_empty())));
        }
        if let Victim::Vmm(session) = victim {
            session.discard().await?;
        }
    }
    Ok(())
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let neighbour = lab.neighbour().await?.session.vmm_pid();
    let layers = lab.golden.disk_layers()?;
    let mut attacks = vec![
        userfaultfd(),
        Attack::steps("map guest memory once more (mmap(2)), not registered", |tracee| {
            let outcome = map_again(tracee)?;
            if let Outcome::Returned(address) = outcome {
                tracee.call(&Call::new(libc::SYS_munmap).arg(address).arg(PAGE))?;
            }
            Ok(outcome)
        }),
        // To where it is, with the size it has.
        on_memory("move guest memory (mremap(2)), which ends its registration", |start| {
            Call::new(libc::SYS_mremap).arg(start).arg(PAGE).arg(PAGE).arg(0)
        }),
        // Of no bytes.
        on_memory("fill holes of guest memory (madvise(2), MADV_COLLAPSE)", |start| {
            Call::new(libc::SYS_madvise).arg(start).arg(0).arg(libc::MADV_COLLAPSE)
        })
        .absent([Errno::EINVAL]),
    ];
    for (name, layer) in ["base disk", "disk delta"].into_iter().zip(&layers) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), layer.file.as_raw_fd());
        let found =
            std::fs::metadata(&path).map_err(AuditError::host("look at a disk of the golden"))?;
        let disk = Shared::Disk(found.dev(), found.ino());
        for flag in [(libc::O_DIRECT, "O_DIRECT"), (libc::O_APPEND, "O_APPEND")] {
            attacks.push(set_flag(name, disk.clone(), path.clone(), flag));
        }
        attacks.push(flag_seen(name, disk, path, neighbour));
    }
    let mut findings = attack(lab, &attacks).await?;
    compare(lab, &mut findings).await?;
    Ok(findings)
}
