//! The files that all sessions of a golden share, through the descriptors a VMM has.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::attack::{Attack, closing, run as attack};
use nix::errno::Errno;

/// A file that sessions share.
#[derive(Debug, Clone)]
pub(super) enum Shared {
    /// The golden's memory.
    PageCache,
    /// A disk, by device and inode.
    Disk(u64, u64),
}

impl Shared {
    fn is(&self, entry: &Path) -> bool {
        match self {
            Self::PageCache => std::fs::read_link(entry).is_ok_and(|target| {
                let name = target.to_string_lossy();
                name.starts_with("/memfd:mayfly")
            }),
            Self::Disk(device, inode) => std::fs::metadata(entry)
                .is_ok_and(|found| (found.dev(), found.ino()) == (*device, *inode)),
        }
    }

    /// A descriptor of it in a process, and its size in bytes.
    pub fn find(&self, pid: u32) -> Option<(i64, u64)> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let entry = entries.flatten().find(|entry| self.is(&entry.path()))?;
        let size = std::fs::metadata(entry.path()).map_or(0, |found| found.len());
        Some((entry.file_name().to_str()?.parse().ok()?, size))
    }
}

type Use = fn(&mut Tracee, i64, u64) -> Result<Outcome, InjectError>;

/// Changes that change nothing where they succeed: no bytes, the size it has, and places beyond its
/// end.
const USES: &[(&str, Use)] = &[
    ("write (pwrite(2))", |tracee, file, _| {
        tracee.call(&Call::new(libc::SYS_pwrite64).arg(file).arg(vec![0]).arg(0).arg(0))
    }),
    ("resize (ftruncate(2))", |tracee, file, size| {
        tracee.call(&Call::new(libc::SYS_ftruncate).arg(file).arg(size.cast_signed()))
    }),
    ("allocate (fallocate(2))", |tracee, file, size| {
        let mode = libc::FALLOC_FL_KEEP_SIZE;
        tracee.call(
            &Call::new(libc::SYS_fallocate).arg(file).arg(mode).arg(size.cast_signed()).arg(4096),
        )
    }),
    ("punch a hole (fallocate(2))", |tracee, file, size| {
        let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        tracee.call(
            &Call::new(libc::SYS_fallocate).arg(file).arg(mode).arg(size.cast_signed()).arg(4096),
        )
    }),
    ("map shared and writable (mmap(2))", |tracee, file, _| {
        let call =
            Call::new(libc::SYS_mmap).arg(0).arg(4096).arg(libc::PROT_READ | libc::PROT_WRITE);
        let outcome = tracee.call(&call.arg(libc::MAP_SHARED).arg(file).arg(0))?;
        if let Outcome::Returned(address) = outcome {
            tracee.call(&Call::new(libc::SYS_munmap).arg(address).arg(4096))?;
        }
        Ok(outcome)
    }),
    ("map shared, then make it writable (mprotect(2))", |tracee, file, _| {
        let call =
            Call::new(libc::SYS_mmap).arg(0).arg(4096).arg(libc::PROT_READ).arg(libc::MAP_SHARED);
        let Outcome::Returned(address) = tracee.call(&call.arg(file).arg(0))? else {
            return Ok(Outcome::Failed(Errno::EACCES));
        };
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let outcome =
            tracee.call(&Call::new(libc::SYS_mprotect).arg(address).arg(4096).arg(writable))?;
        if outcome != Outcome::Killed {
            tracee.call(&Call::new(libc::SYS_munmap).arg(address).arg(4096))?;
        }
        Ok(outcome)
    }),
    ("open again for writing (/proc/self/fd)", |tracee, file, _| {
        let path = format!("/proc/self/fd/{file}");
        let call = Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(&*path).arg(libc::O_RDWR);
        let outcome = tracee.call(&call)?;
        closing(tracee, outcome)
    }),
    ("change its mode (fchmod(2))", |tracee, file, _| {
        tracee.call(&Call::new(libc::SYS_fchmod).arg(file).arg(0o600))
    }),
];

/// Does it with the descriptor a process has of a shared file.
fn using(name: &str, what: &str, shared: Shared, work: Use) -> Attack {
    Attack::steps(format!("{what}: {name}"), move |tracee| match shared.find(tracee.pid()) {
        Some((file, size)) => work(tracee, file, size),
        // It has none.
        None => Ok(Outcome::Failed(Errno::EBADF)),
    })
    .control(move |tracee| {
        let made = tracee.call(&Call::new(libc::SYS_memfd_create).arg("mayfly-control").arg(0))?;
        let Outcome::Returned(file) = made else { return Ok(made) };
        let sized = tracee.call(&Call::new(libc::SYS_ftruncate).arg(file).arg(8192))?;
        if sized.succeeded() { work(tracee, file, 8192) } else { Ok(sized) }
    })
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut files = vec![("page cache", Shared::PageCache)];
    for (name, layer) in ["base disk", "disk delta"].into_iter().zip(lab.golden.disk_layers()?) {
        let path = format!("/proc/self/fd/{}", layer.file.as_raw_fd());
        let found =
            std::fs::metadata(path).map_err(AuditError::host("look at a disk of the golden"))?;
        files.push((name, Shared::Disk(found.dev(), found.ino())));
    }
    let attacks: Vec<Attack> = files
        .iter()
        .flat_map(|(name, shared)| {
            USES.iter().map(|(what, work)| using(name, what, shared.clone(), *work))
        })
        .collect();
    let mut findings = attack(lab, &attacks).await?;
    for kind in lab.kinds().await? {
        let victim = lab.victim(kind).await?;
        let has = |(name, shared): &(&str, Shared)| match shared.find(victim.pid()) {
            Some((number, size)) => format!("{name} as {number} ({size} bytes)"),
            None => format!("{name} not at all"),
        };
        let found: Vec<String> = files.iter().map(has).collect();
        findings.notes.push(format!("{}: the VMM has open {}.", kind.name(), found.join(", ")));
        if let super::super::lab::Victim::Vmm(session) = victim {
            session.discard().await?;
        }
    }
    Ok(findings)
}
