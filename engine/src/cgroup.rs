//! The cgroup of a session: entered by its VMM before the first instruction, removed at discard. Speaks v1 and v2 through
//! cgroups-rs.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::memory::MemController;
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
    /// Largest disk overlay, in bytes: what the session can write to its disk that was not there, and what that costs in
    /// metadata. `None` is the size of its disk plus [`OVERLAY_OVERHEAD`]. Beyond it the guest gets I/O errors.
    pub disk_bytes: Option<u64>,
    /// Most bytes read from, and most bytes written to, the device of its disk per second; `None` is no bound. On cgroup v1
    /// the kernel counts no write that goes through the page cache.
    pub io_bytes_per_second: Option<u64>,
    /// Gives way to other sessions when processors are short; for work nobody waits for.
    pub background: bool,
}

/// Room for the emulator beside guest memory, in bytes. Half of it may be translated code.
pub const VMM_OVERHEAD: u64 = 512 << 20;
/// Room for the metadata of a disk overlay beside the content of the disk, in bytes.
pub const OVERLAY_OVERHEAD: u64 = 64 << 20;
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

impl Limits {
    /// Largest file the VMM may write, in bytes, with a disk of `disk` bytes.
    pub fn file_bytes(&self, disk: u64) -> u64 {
        self.disk_bytes.unwrap_or(disk.saturating_add(OVERLAY_OVERHEAD))
    }
}

/// What the bounds of a session depend on besides [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Memory of its guest, in bytes.
    pub guest_memory: u64,
    /// Where its disk overlay is.
    pub disk_dir: PathBuf,
}

fn memory(limits: &Limits, subject: &Subject) -> i64 {
    let memory = limits.memory_bytes.unwrap_or(subject.guest_memory + VMM_OVERHEAD);
    i64::try_from(memory).unwrap_or(i64::MAX)
}

fn resources(limits: &Limits, subject: &Subject, v2: bool) -> Resources {
    let (full, background) = if v2 { WEIGHT_V2 } else { WEIGHT_V1 };
    let quota = limits.cpus.map(|cpus| (cpus * CPU_PERIOD_US as f64) as i64);
    Resources {
        memory: MemoryResources { memory_hard_limit: Some(memory(limits, subject)), ..MemoryResources::default() },
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

/// The whole disk that holds `dir`, as major and minor number: bounds on partitions are refused by the kernel. `None` for a
/// file system without a device of its own, such as tmpfs.
fn disk_of(dir: &Path) -> std::io::Result<Option<(u64, u64)>> {
    let device = std::fs::metadata(dir)?.dev();
    let (major, minor) = (u64::from(libc::major(device)), u64::from(libc::minor(device)));
    if major == 0 {
        return Ok(None);
    }
    let node = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let whole = if node.join("partition").exists() { node.join("..") } else { node };
    let numbers = std::fs::read_to_string(whole.join("dev"))?;
    let parsed = numbers.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    Ok(Some(parsed.unwrap_or((major, minor))))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            cpus: None,
            threads: 64,
            disk_bytes: None,
            io_bytes_per_second: None,
            background: false,
        }
    }
}

/// The controllers in use; cgroups-rs calls v2's `io` by its name of v1. A host without one of them lacks that bound only
/// where it is asked for.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

/// Whether the kernel bounds swap for each cgroup. Where it does not and there is swap, `mayfly doctor` says so.
pub(crate) fn swap_is_bounded(v2: bool) -> bool {
    static BOUNDED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *BOUNDED.get_or_init(|| {
        let root = hierarchies::auto().root();
        // v2 has no such file in its root group, and the controller has it unless it was booted with swapaccount=0.
        if v2 {
            std::fs::exists("/proc/swaps").unwrap_or(false)
        } else {
            root.join("memory/memory.memsw.limit_in_bytes").exists()
        }
    })
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
    subject: Subject,
    removed: bool,
}

impl SessionCgroup {
    /// Makes cgroup `mayfly/<name>` with `limits` for `subject`.
    ///
    /// # Errors
    /// [`CgroupError`] when a controller is missing or refuses.
    pub fn create(name: &str, limits: &Limits, subject: Subject) -> Result<Self, CgroupError> {
        let path = format!("{ROOT}/{name}");
        let failed = |reason: String| CgroupError { action: "create", name: path.clone(), reason };
        let controllers = CONTROLLERS.map(String::from).to_vec();
        let inner = Cgroup::new_with_specified_controllers(hierarchies::auto(), &path, Some(controllers))
            .map_err(|e| failed(describe(&e)))?;
        let this = Self { inner, name: path.clone(), subject, removed: false };
        this.apply(limits).map_err(failed)?;
        Ok(this)
    }

    /// Sets other `limits`, and the full share of the processors; for a standby that becomes somebody's session.
    ///
    /// # Errors
    /// [`CgroupError`] when the kernel refuses, such as a memory bound below what is in use.
    pub fn set(&self, limits: &Limits) -> Result<(), CgroupError> {
        if !limits.background {
            // Before the weight, which an idle group does not take.
            let awake = CpuResources { attrs: idle("0"), ..CpuResources::default() };
            let _ = self.inner.apply(&Resources { cpu: awake, ..Resources::default() });
        }
        let failed = |reason| CgroupError { action: "set limits of", name: self.name.clone(), reason };
        self.apply(limits).map_err(failed)
    }

    fn apply(&self, limits: &Limits) -> Result<(), String> {
        let said = |e: cgroups_rs::fs::error::Error| describe(&e);
        let v2 = self.is_v2();
        let memory_controller: Option<&MemController> = self.inner.controller_of();
        if let Some(controller) = memory_controller.filter(|_| swap_is_bounded(v2)) {
            // v1 bounds memory and swap together, and refuses a bound on memory above that one: lift it first.
            if !v2 {
                controller.set_memswap_limit(-1).map_err(said)?;
            }
            self.inner.apply(&resources(limits, &self.subject, v2)).map_err(said)?;
            // No swap: what a guest touches has to fit into its memory bound.
            let bound = if v2 { 0 } else { memory(limits, &self.subject) };
            controller.set_memswap_limit(bound).map_err(said)?;
        } else {
            self.inner.apply(&resources(limits, &self.subject, v2)).map_err(said)?;
        }
        match limits.io_bytes_per_second {
            Some(rate) => self.bound_io(rate),
            None => Ok(()),
        }
    }

    fn bound_io(&self, rate: u64) -> Result<(), String> {
        let said = |e: cgroups_rs::fs::error::Error| describe(&e);
        let dir = &self.subject.disk_dir;
        let disk = disk_of(dir).map_err(|e| format!("cannot tell the device of {}: {e}", dir.display()))?;
        let (major, minor) = disk.ok_or_else(|| {
            format!("{} is on a file system without a device, on which I/O cannot be bounded", dir.display())
        })?;
        let controller: &BlkIoController =
            self.inner.controller_of().ok_or("this host has no io (v2) or blkio (v1) controller")?;
        controller.throttle_read_bps_for_device(major, minor, rate).map_err(said)?;
        controller.throttle_write_bps_for_device(major, minor, rate).map_err(said)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel has for a bound of a cgroup of ours.
    fn bound(cgroup: &SessionCgroup, v1: (&str, &str), v2: &str) -> String {
        let (controller, v1) = v1;
        let dirs = directories(cgroup.name.trim_start_matches(&format!("{ROOT}/")));
        let found =
            dirs.iter().find(|dir| cgroup.is_v2() || dir.components().any(|part| part.as_os_str() == controller));
        let file = found.expect("its folder").join(if cgroup.is_v2() { v2 } else { v1 });
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    }

    #[test]
    fn the_kernel_has_the_bounds_that_were_set_also_when_they_are_raised() {
        let dir = tempfile::tempdir().unwrap();
        let subject = Subject { guest_memory: 64 << 20, disk_dir: dir.path().to_owned() };
        let name = format!("test-{}-bounds", std::process::id());
        let limits = |mib: u64| Limits { memory_bytes: Some(mib << 20), cpus: Some(0.5), ..Limits::default() };
        let cgroup = SessionCgroup::create(&name, &limits(100), subject).unwrap();
        for mib in [100, 200, 50] {
            cgroup.set(&limits(mib)).unwrap();
            let bytes = (mib << 20).to_string();
            assert_eq!(bound(&cgroup, ("memory", "memory.limit_in_bytes"), "memory.max"), bytes);
            if swap_is_bounded(cgroup.is_v2()) {
                let swap = bound(&cgroup, ("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max");
                assert_eq!(swap, if cgroup.is_v2() { "0" } else { &*bytes });
            }
        }
        assert_eq!(bound(&cgroup, ("pids", "pids.max"), "pids.max"), "64");
        let cpu = bound(&cgroup, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
        assert_eq!(cpu.split(' ').next(), Some("50000"));
        cgroup.remove().unwrap();
        assert!(directories(&name).is_empty());
    }

    #[test]
    fn disk_io_is_bounded_on_the_disk_that_holds_the_overlays_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let subject = Subject { guest_memory: 64 << 20, disk_dir: dir.path().to_owned() };
        let name = format!("test-{}-io", std::process::id());
        let limits = Limits { io_bytes_per_second: Some(5 << 20), ..Limits::default() };
        match (disk_of(dir.path()).unwrap(), SessionCgroup::create(&name, &limits, subject)) {
            (Some((major, minor)), Ok(cgroup)) => {
                let read = bound(&cgroup, ("blkio", "blkio.throttle.read_bps_device"), "io.max");
                assert!(
                    read.starts_with(&format!("{major}:{minor} ")) && read.contains(&(5 << 20).to_string()),
                    "{read}"
                );
                let write = bound(&cgroup, ("blkio", "blkio.throttle.write_bps_device"), "io.max");
                assert!(write.contains(&(5 << 20).to_string()), "{write}");
                cgroup.remove().unwrap();
            }
            (None, Err(error)) => assert!(error.to_string().contains("without a device"), "{error}"),
            (disk, made) => panic!("{disk:?}: {made:?}"),
        }
    }
}
