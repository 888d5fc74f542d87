//! Space of the host's disk, through the one file that a VMM may write.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::{Kind, Lab, Victim};
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::attack::{Attack, run as attack};

/// Where the space is that is asked for, and how much, in bytes: beyond the size of every disk.
const BEYOND: i64 = 1 << 42;
const LENGTH: i64 = 1 << 20;

/// The writable disk of a VMM: the only file without a name, on a disk, that it has open.
pub(in super::super) fn overlay_of(pid: u32) -> Option<(i32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    entries.flatten().find_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        let target = target.to_str()?.to_owned();
        let unnamed = target.ends_with(" (deleted)")
            && !target.starts_with("/memfd:")
            && !target.starts_with("/dev/");
        let found = std::fs::metadata(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        (unnamed && found.is_file()).then(|| (number, entry.path()))
    })
}

type Use = fn(&mut Tracee, i64) -> Result<Outcome, InjectError>;

fn allocate(
    tracee: &mut Tracee,
    file: i64,
    mode: i32,
    (offset, length): (i64, i64),
) -> Result<Outcome, InjectError> {
    tracee.call(&Call::new(libc::SYS_fallocate).arg(file).arg(mode).arg(offset).arg(length))
}

/// `struct space_resv` (kernel `include/linux/falloc.h`) for the place beyond the end.
fn reserve(tracee: &mut Tracee, file: i64, request: i64) -> Result<Outcome, InjectError> {
    let mut space = vec![0; 48];
    space[8..16].copy_from_slice(&BEYOND.to_ne_bytes());
    space[16..24].copy_from_slice(&LENGTH.to_ne_bytes());
    tracee.call(&Call::new(libc::SYS_ioctl).arg(file).arg(request).arg(space))
}

const USES: &[(&str, Use)] = &[
    ("allocate beyond the end (fallocate(2), KEEP_SIZE)", |tracee, file| {
        allocate(tracee, file, libc::FALLOC_FL_KEEP_SIZE, (BEYOND, LENGTH))
    }),
    ("zero beyond the end (fallocate(2), ZERO_RANGE and KEEP_SIZE)", |tracee, file| {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        allocate(tracee, file, mode, (BEYOND, LENGTH))
    }),
    ("move what it has beyond the end (fallocate(2), INSERT_RANGE)", |tracee, file| {
        allocate(tracee, file, libc::FALLOC_FL_INSERT_RANGE, (1 << 16, 1 << 30))
    }),
    ("reserve beyond the end (ioctl(2), FS_IOC_RESVSP64)", |tracee, file| {
        reserve(tracee, file, 0x4030_582a)
    }),
    ("zero beyond the end (ioctl(2), FS_IOC_ZERO_RANGE)", |tracee, file| {
        reserve(tracee, file, 0x4030_5839)
    }),
    // FS_IOC_FSSETXATTR with what it has already, which a file's owner may do.
    ("change its project (ioctl(2), FS_IOC_FSSETXATTR)", |tracee, file| {
        tracee.call(&Call::new(libc::SYS_ioctl).arg(file).arg(0x401c_5820).arg(vec![0; 28]))
    }),
];

/// Opens a file without a name in `dir`, with some content, and uses it.
fn on_a_new_file(tracee: &mut Tracee, dir: &str, work: Use) -> Result<Outcome, InjectError> {
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let open = Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(dir).arg(flags).arg(0o600);
    let Outcome::Returned(file) = tracee.call(&open)? else {
        return Err(InjectError::Trace {
            action: "find the writable disk of",
            pid: tracee.pid().cast_signed(),
            cause: Errno::ENOENT,
        });
    };
    let sized = tracee.call(&Call::new(libc::SYS_ftruncate).arg(file).arg(1_i64 << 17))?;
    let outcome = if sized.succeeded() { work(tracee, file)? } else { sized };
    tracee.call(&Call::new(libc::SYS_close).arg(file))?;
    Ok(outcome)
}

fn using(what: &str, dir: &Path, work: Use) -> Attack {
    let dir = dir.display().to_string();
    let folder = dir.clone();
    Attack::steps(format!("disk: {what}"), move |tracee| match overlay_of(tracee.pid()) {
        Some((file, _)) => work(tracee, file.into()),
        // A planted breach has none, but may make one.
        None => on_a_new_file(tracee, &folder, work),
    })
    .control(move |tracee| on_a_new_file(tracee, &dir, work))
    .absent([Errno::EOPNOTSUPP, Errno::ENOTTY])
}

/// Blocks of a file, in bytes.
fn space(path: &Path) -> u64 {
    // stat(2): blocks of 512 bytes.
    std::fs::metadata(path).map_or(0, |found| found.blocks() * 512)
}

/// Whether a place beyond the end of a VMM's disk has blocks after all: what the calls say is one
/// thing, what the file has another.
async fn measured(lab: &mut Lab, kind: Kind) -> Result<Attempt, AuditError> {
    let what = format!("{}: the disk after all of it", kind.name());
    let victim = lab.victim(kind).await?;
    let found = overlay_of(victim.pid());
    let attempt = match &found {
        None => Attempt::not_proven(what, "the VMM has no writable disk".to_owned()),
        Some((file, path)) => {
            let before = space(path);
            let (pid, file) = (victim.pid(), i64::from(*file));
            let tried = tokio::task::spawn_blocking(move || {
                let mut tracee = Tracee::seize(pid)?;
                USES.iter().try_for_each(|(_, work)| work(&mut tracee, file).map(drop))
            });
            let tried = match tried.await {
                Ok(tried) => tried,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            let grown = space(path).saturating_sub(before);
            let control = control(lab)?;
            match tried {
                Ok(()) => Attempt::judge(
                    what,
                    control,
                    (format!("it has {grown} bytes more"), grown >= LENGTH.cast_unsigned()),
                ),
                Err(error) => Attempt::not_proven(what, error.to_string()),
            }
        }
    };
    if let Victim::Vmm(session) = victim {
        session.discard().await?;
    }
    Ok(attempt)
}

/// A file of root's own grows by such a call.
fn control(lab: &Lab) -> Result<(String, bool), AuditError> {
    let failed = AuditError::host("make a file beside the disks of sessions");
    let file = mayfly_host::cgroup::unnamed_file(&lab.engine.layout().disks()).map_err(failed)?;
    let _ = file.write_all_at(&[1], 0);
    // SAFETY: fallocate(2) takes numbers; the file is open.
    let done = unsafe {
        use std::os::fd::AsRawFd;
        libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 1 << 30, LENGTH)
    };
    let has = file.metadata().map_or(0, |found| found.blocks() * 512);
    Ok((format!("a file of root's has {has} bytes"), done == 0 && has >= LENGTH.cast_unsigned()))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let dir = lab.engine.layout().disks();
    let attacks: Vec<Attack> = USES.iter().map(|(what, work)| using(what, &dir, *work)).collect();
    let mut findings = attack(lab, &attacks).await?;
    for kind in lab.kinds().await? {
        findings.push(measured(lab, kind).await?);
    }
    findings.notes.push(match lab.engine.no_project_quotas() {
        None => "The file system keeps a project quota for each disk.".to_owned(),
        Some(reason) => format!("No project quotas: {reason}."),
    });
    Ok(findings)
}
