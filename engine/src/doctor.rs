//! Checks of `mayfly doctor`: each tries what sessions need on this host, and names the remedy.

mod isolation;
mod kernel;
mod kvm;
mod programs;

use std::path::{Path, PathBuf};

use mayfly_host::cgroup::{CgroupError, Limits, Place, SessionCgroup, Subject};
use mayfly_host::instance::Instance;
use mayfly_host::layout::{self, Layout};
use mayfly_host::project_quota;
use mayfly_host::time_scale;
use serde::Serialize;

/// Free space below which a golden build may fail, in bytes.
const SPACE_FOR_A_BUILD: u64 = 4 << 30;
/// Free memory below which sessions are few, in bytes.
const MEMORY_FOR_SESSIONS: u64 = 2 << 30;

/// Outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The subject is as it should be.
    Ok,
    /// Mayfly works, but slower or with less; or the host keeps sessions less apart than it could.
    Limited,
    /// Mayfly does not work.
    Missing,
}

/// Result of checking one thing.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Name of what was checked.
    pub subject: &'static str,
    /// Outcome of the check.
    pub outcome: Outcome,
    /// Finding, in words.
    pub found: String,
    /// Advice on what to do about it; empty when nothing needs doing.
    pub advice: String,
}

impl Check {
    fn new(
        subject: &'static str,
        outcome: Outcome,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { subject, outcome, found: found.into(), advice: advice.into() }
    }

    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Ok, found, "")
    }

    fn missing(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Missing, found, advice)
    }
}

/// Checks everything. Runs a probe guest when there is a kernel to run; leaves nothing behind.
pub async fn examine(layout: &Layout) -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let mut checks = vec![
        if root {
            Check::ok("root", "yes")
        } else {
            Check::missing("root", "no", "run mayfly with sudo")
        },
        kernel::release(),
        kernel::userfaultfd(),
        cgroups(layout),
        kernel::user_namespaces(),
        programs::qemu(layout),
        kvm::check(layout).await,
    ];
    checks.extend(time_scale());
    checks.extend(programs::others());
    checks.push(helper("preload library", layout::preload_library()));
    checks.push(helper("guest agent", layout::guest_agent()));
    checks.push(space(layout));
    checks.push(quotas(layout));
    checks.push(memory());
    checks.extend(isolation::checks());
    checks
}

/// The factor of slow hosts, when somebody has set one.
fn time_scale() -> Option<Check> {
    const SUBJECT: &str = "time scale";
    match time_scale::from_env() {
        Ok(1) => None,
        Ok(factor) => {
            let found = format!(
                "{}={factor}: bounds on steps are {factor} times as long",
                time_scale::VARIABLE
            );
            Some(Check::ok(SUBJECT, found))
        }
        Err(error) => {
            Some(Check::missing(SUBJECT, error.to_string(), "set it to such a number, or unset it"))
        }
    }
}

fn helper(subject: &'static str, found: Result<PathBuf, layout::LayoutError>) -> Check {
    match found {
        Ok(path) => Check::ok(subject, path.display().to_string()),
        Err(error) => Check::missing(subject, error.to_string(), "build it with ./mayfly"),
    }
}

fn cgroups(layout: &Layout) -> Check {
    const SUBJECT: &str = "cgroups";
    let instance = match Instance::enter(layout) {
        Ok(instance) => instance,
        Err(error) => {
            return Check::missing(SUBJECT, error.to_string(), "run as root, or set MAYFLY_RUN");
        }
    };
    let subject = Subject { guest_memory: 64 << 20, disk_dir: layout.disks() };
    let try_one = || {
        let cgroup =
            SessionCgroup::create(&instance.cgroup_name("doctor"), &Limits::default(), subject)?;
        let found = (cgroup.version(), cgroup.bounds_swap());
        cgroup.entrance()?;
        cgroup.remove()?;
        Ok::<_, CgroupError>((Place::of_this_process()?, found))
    };
    match try_one() {
        Ok((_, (_, bounds_swap))) if !bounds_swap && has_swap() => {
            let found = "memory, cpu and pids can be limited, swap cannot: a session may swap beyond its memory limit";
            Check::new(
                SUBJECT,
                Outcome::Limited,
                found,
                "boot with swapaccount=1, or turn swap off",
            )
        }
        Ok((place, (version, _))) => {
            if let Some(limitation) = place.limitation() {
                Check::new(SUBJECT, Outcome::Limited, limitation.found(), limitation.remedy())
            } else {
                let folders: Vec<String> =
                    place.folders("").iter().map(|dir| dir.display().to_string()).collect();
                let found = format!(
                    "{version}, memory with swap, cpu and pids can be limited; {}",
                    folders.join(", ")
                );
                Check::ok(SUBJECT, found)
            }
        }
        Err(error) => Check::missing(SUBJECT, error.found(), error.remedy()),
    }
}

fn has_swap() -> bool {
    // One line of headings, then one for each swap area (proc(5)).
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().nth(1).is_some())
}

fn space(layout: &Layout) -> Check {
    const SUBJECT: &str = "disk space";
    let existing = layout.home().ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let free = nix::sys::statvfs::statvfs(existing)
        .map_or(0, |s| s.blocks_available() * s.fragment_size());
    let found = format!("{} free below {}", indicatif::HumanBytes(free), layout.home().display());
    if free >= SPACE_FOR_A_BUILD {
        return Check::ok(SUBJECT, found);
    }
    Check::new(
        SUBJECT,
        Outcome::Limited,
        found,
        "a golden build needs about 4 GiB; MAYFLY_HOME names another place",
    )
}

/// Whether the file system bounds what a VMM takes of the disk, or its seccomp filter alone.
fn quotas(layout: &Layout) -> Check {
    const SUBJECT: &str = "disk quotas";
    let dir = layout.disks();
    let existing = dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let Err(reason) = project_quota::check(existing) else {
        return Check::ok(SUBJECT, format!("project quotas on {}", existing.display()));
    };
    // It works without, and most hosts have none.
    let (outcome, more) = if keeps_overwritten(existing) {
        (Outcome::Limited, ", which btrfs may exceed")
    } else {
        (Outcome::Ok, "")
    };
    let found =
        format!("{reason}; a disk is bounded by the size of its file and a seccomp filter{more}");
    Check::new(
        SUBJECT,
        outcome,
        found,
        format!(
            "for a bound kept by the kernel, put {} on ext4 or XFS mounted with prjquota",
            dir.display()
        ),
    )
}

/// btrfs keeps all of an extent while a block of it is in use: a file may take more space than it
/// has bytes.
fn keeps_overwritten(dir: &Path) -> bool {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};
    statfs(dir).is_ok_and(|found| found.filesystem_type() == BTRFS_SUPER_MAGIC)
}

fn memory() -> Check {
    const SUBJECT: &str = "memory";
    let info: Option<procfs::Meminfo> = procfs::Current::current().ok();
    let available = info.and_then(|m| m.mem_available).unwrap_or(0);
    let found = format!("{} available", indicatif::HumanBytes(available));
    if available >= MEMORY_FOR_SESSIONS {
        return Check::ok(SUBJECT, found);
    }
    Check::new(
        SUBJECT,
        Outcome::Limited,
        found,
        "a golden build needs its guest's memory; a session some tens of MiB",
    )
}
