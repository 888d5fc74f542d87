//! The cgroup of a session: entered by its VMM before the first instruction, removed at discard. Speaks v1 and v2 through
//! cgroups-rs.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cgroups_rs::fs::{Cgroup, CpuResources, MaxValue, MemoryResources, PidResources, Resources, hierarchies};

/// Parent of all our cgroups, in every hierarchy.
pub const ROOT: &str = "mayfly";

/// Bounds of one session, enforced on the VMM process from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Most memory of the VMM process, guest and emulator, in bytes; `None` is guest memory plus [`VMM_OVERHEAD`].
    pub memory_bytes: Option<u64>,
    /// Most processors' worth of CPU time, such as 1.5; `None` is no bound.
    pub cpus: Option<f64>,
    /// Most threads of the VMM.
    pub threads: u32,
    /// Gives way to other sessions when processors are short; for work nobody waits for.
    pub background: bool,
}

/// Room for the emulator beside guest memory, in bytes.
pub const VMM_OVERHEAD: u64 = 256 << 20;
/// Period in which [`Limits::cpus`] is measured out, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Processor weight of a session and of background work: `cpu.shares` (v1, default 1024), `cpu.weight` (v2, default 100).
const WEIGHT_V1: (u64, u64) = (1024, 64);
const WEIGHT_V2: (u64, u64) = (100, 6);

/// `cpu.idle`, since Linux 5.15: the group runs only when its siblings leave a processor over, and leaves it at once when one of
/// them wakes up. Older kernels are content with the weight.
fn idle(value: &str) -> HashMap<String, String> {
    HashMap::from([("cpu.idle".to_owned(), value.to_owned())])
}

fn resources(limits: &Limits, guest_memory: u64, v2: bool) -> Resources {
    let memory = limits.memory_bytes.unwrap_or(guest_memory + VMM_OVERHEAD);
    let (full, background) = if v2 { WEIGHT_V2 } else { WEIGHT_V1 };
    let quota = limits.cpus.map(|cpus| (cpus * CPU_PERIOD_US as f64) as i64);
    Resources {
        memory: MemoryResources {
            memory_hard_limit: Some(i64::try_from(memory).unwrap_or(i64::MAX)),
            ..MemoryResources::default()
        },
        pid: PidResources { maximum_number_of_processes: Some(MaxValue::Value(i64::from(limits.threads))) },
        cpu: CpuResources {
            shares: Some(if limits.background { background } else { full }),
            period: quota.map(|_| CPU_PERIOD_US),
            quota,
            attrs: if limits.background { idle("1") } else { HashMap::new() },
            ..CpuResources::default()
        },
        ..Resources::default()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: None, cpus: None, threads: 64, background: false }
    }
}

/// What can go wrong with a session's cgroup.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} cgroup {name}: {reason}")]
pub struct CgroupError {
    action: &'static str,
    name: String,
    reason: String,
}

/// A cgroup of ours.
#[derive(Debug)]
pub struct SessionCgroup {
    inner: Cgroup,
    name: String,
    removed: bool,
}

impl SessionCgroup {
    /// Makes cgroup `mayfly/<name>` with `limits`; `guest_memory` in bytes sets the default memory bound.
    ///
    /// # Errors
    /// [`CgroupError`] when a controller is missing or refuses.
    pub fn create(name: &str, limits: &Limits, guest_memory: u64) -> Result<Self, CgroupError> {
        let path = format!("{ROOT}/{name}");
        let failed = |reason: String| CgroupError { action: "create", name: path.clone(), reason };
        let controllers = ["memory", "cpu", "pids"].map(String::from).to_vec();
        let inner = Cgroup::new_with_specified_controllers(hierarchies::auto(), &path, Some(controllers))
            .map_err(|e| failed(describe(&e)))?;
        let this = Self { inner, name: path.clone(), removed: false };
        this.inner.apply(&resources(limits, guest_memory, this.is_v2())).map_err(|e| failed(describe(&e)))?;
        Ok(this)
    }

    /// Sets other `limits`, and the full share of the processors; for a standby that becomes somebody's session.
    ///
    /// # Errors
    /// [`CgroupError`] when the kernel refuses, such as a memory bound below what is in use.
    pub fn set(&self, limits: &Limits, guest_memory: u64) -> Result<(), CgroupError> {
        if !limits.background {
            // Before the weight, which an idle group does not take.
            let awake = CpuResources { attrs: idle("0"), ..CpuResources::default() };
            let _ = self.inner.apply(&Resources { cpu: awake, ..Resources::default() });
        }
        self.inner.apply(&resources(limits, guest_memory, self.is_v2())).map_err(|e| CgroupError {
            action: "set limits of",
            name: self.name.clone(),
            reason: describe(&e),
        })
    }

    /// Whether the host uses cgroup v2 alone.
    pub fn is_v2(&self) -> bool {
        self.inner.v2()
    }

    /// The files through which a single-threaded process enters the cgroup by writing `0`.
    ///
    /// # Errors
    /// [`CgroupError`] when one cannot be opened.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let files: Vec<PathBuf> = if self.inner.v2() {
            vec![hierarchies::auto().root().join(&self.name).join("cgroup.procs")]
        } else {
            self.inner.subsystems().iter().map(|s| s.to_controller().path().join("tasks")).collect()
        };
        let open = |path: PathBuf| {
            OpenOptions::new().write(true).open(&path).map(OwnedFd::from).map_err(|e| CgroupError {
                action: "enter",
                name: self.name.clone(),
                reason: format!("{}: {e}", path.display()),
            })
        };
        files.into_iter().map(open).collect()
    }

    /// Removes the cgroup; its processes must be gone.
    ///
    /// # Errors
    /// [`CgroupError`] when one still lives in it.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.removed = true;
        remove(&self.inner, &self.name)
    }
}

impl Drop for SessionCgroup {
    /// For a start that was cancelled; its VMM was dropped, and thereby killed, before.
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = remove(&self.inner, &self.name)
        {
            tracing::warn!(%error, "left behind");
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn remove(cgroup: &Cgroup, name: &str) -> Result<(), CgroupError> {
    cgroup.delete().map_err(|e| CgroupError { action: "remove", name: name.to_owned(), reason: describe(&e) })
}

/// Removes `mayfly/<name>` with everything below it; does nothing when there is none. For the leftovers of a dead engine.
///
/// # Errors
/// [`CgroupError`] when a process still lives in it.
pub fn remove_tree(name: &str) -> Result<(), CgroupError> {
    for dir in directories(name) {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|e| e.path().is_dir()) {
            let child = format!("{name}/{}", entry.file_name().to_string_lossy());
            remove_tree(&child)?;
        }
        if let Err(e) = std::fs::remove_dir(&dir) {
            let reason = format!("{}: {e}", dir.display());
            return Err(CgroupError { action: "remove", name: format!("{ROOT}/{name}"), reason });
        }
    }
    Ok(())
}

/// The folders of `mayfly/<name>` in all hierarchies in which it exists. An empty name means our root.
pub fn directories(name: &str) -> Vec<PathBuf> {
    let path = if name.is_empty() { ROOT.to_owned() } else { format!("{ROOT}/{name}") };
    let hierarchy = hierarchies::auto();
    let candidates: Vec<PathBuf> = if hierarchy.v2() {
        vec![hierarchy.root().join(&path)]
    } else {
        let cgroup = Cgroup::load(hierarchy, &path);
        cgroup.subsystems().iter().map(|s| s.to_controller().path().to_owned()).collect()
    };
    candidates.into_iter().filter(|dir| dir.is_dir()).collect()
}
