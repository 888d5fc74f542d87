//! A guest that boots as far as user space and says so.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};
use mayfly_host::instance::Instance;
use mayfly_host::time_scale::scaled;
use mayfly_host::uid::{UidPool, UidRange};
use mayfly_protocol::{PROBE_ANSWER, PROBE_PARAMETER};
use mayfly_vmm::{
    Accel, Confinement, ConsoleTail, Descriptors, DirectBoot, Driver, LaunchSpec, MachineShape,
    Purpose, RamDescriptors, Vmm, VmmError,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::Instant;

/// Memory of the guest, in bytes.
const MEMORY: u64 = 256 << 20;
/// Largest file that its VMM may write, in bytes: it has nothing to write but its last words.
const FILE_BYTES: u64 = 1 << 20;
const TICK: Duration = Duration::from_millis(20);
const LAST_WORD: Duration = Duration::from_millis(100);

/// Host resources that a probe needs.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    /// Driver that starts the guest.
    pub driver: &'a dyn Driver,
    /// Instance that names its cgroup.
    pub instance: &'a Instance,
    /// A kernel that boots a golden image.
    pub kernel: &'a Path,
    /// Initial ramdisk, with a guest agent in it.
    pub initramfs: &'a Path,
}

impl std::fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("Probe");
        text.field("instance", &self.instance)
            .field("kernel", &self.kernel)
            .field("initramfs", &self.initramfs);
        text.finish_non_exhaustive()
    }
}

/// Bounds on the time a probe guest may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Time between two signs of life: output on its console, or memory that it touches for the
    /// first time.
    pub silence: Duration,
    /// Time in all.
    pub total: Duration,
}

impl Default for Bounds {
    /// Under hardware KVM a guest needs well under a second. One that goes on is given more.
    fn default() -> Self {
        Self { silence: scaled(Duration::from_secs(5)), total: scaled(Duration::from_secs(30)) }
    }
}

/// Progress that a probe guest made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest came to user space.
    Answered,
    /// The guest ended, or stood still; why.
    Stopped(String),
    /// The guest was not started, for lack of something of the host's; what.
    NotStarted(String),
    /// The guest was still going on when its time was over; how far it was.
    TooSlow(String),
}

/// Runs a probe guest with `accel`; nothing of it is left afterwards.
pub async fn run(probe: Probe<'_>, accel: Accel, bounds: Bounds) -> Outcome {
    boot(probe, accel, bounds).await.unwrap_or_else(Outcome::NotStarted)
}

async fn boot(probe: Probe<'_>, accel: Accel, bounds: Bounds) -> Result<Outcome, String> {
    let open =
        |path: &Path| File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()));
    let uids = UidRange::from_env().map_err(|e| e.to_string())?;
    let uid = Arc::new(UidPool::new(uids)).take().map_err(|e| e.to_string())?;
    let memory = memory()?;
    let touched = memory.try_clone().map(File::from).map_err(|e| e.to_string())?;
    // Before the VMM, so that it is dropped after it.
    let subject = Subject { guest_memory: MEMORY, disk_dir: probe.instance.dir().to_owned() };
    let cgroup =
        SessionCgroup::create(&probe.instance.cgroup_name("probe"), &Limits::default(), subject)
            .map_err(|e| e.to_string())?;
    let spec = LaunchSpec {
        shape: MachineShape { accel, vcpus: 1, memory_bytes: MEMORY },
        purpose: Purpose::Boot(DirectBoot {
            kernel: open(probe.kernel)?.into(),
            initramfs: open(probe.initramfs)?.into(),
            cmdline: crate::golden::cmdline(
                &format!("console=ttyS0 reboot=t panic=-1 {PROBE_PARAMETER}"),
                accel,
            ),
        }),
        descriptors: Descriptors {
            ram: RamDescriptors::Template { file: memory },
            disk: Vec::new(),
        },
        confinement: Confinement {
            uid: Some(uid.get()),
            cgroup: cgroup.entrance().map_err(|e| e.to_string())?,
            file_bytes: FILE_BYTES,
            ..Confinement::default()
        },
    };
    let mut launched = probe.driver.launch(spec).await.map_err(|e| e.to_string())?;
    let outcome = watch(&mut *launched.vmm, &launched.console, &touched, bounds).await;
    // What it leaves behind changes nothing of what it has shown.
    if let Err(error) = launched.vmm.kill().await {
        tracing::warn!(%error, "left behind");
    }
    drop(launched);
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "left behind");
    }
    Ok(outcome)
}

fn memory() -> Result<OwnedFd, String> {
    let memory = memfd_create("mayfly-probe", MFdFlags::MFD_CLOEXEC).map_err(|e| e.to_string())?;
    nix::unistd::ftruncate(&memory, MEMORY.cast_signed()).map_err(|e| e.to_string())?;
    Ok(memory)
}

/// A guest that has answered turns itself off, and its word may still be on its way.
async fn ended(died: VmmError, console: &ConsoleTail) -> Outcome {
    tokio::time::sleep(scaled(LAST_WORD)).await;
    if has_answered(console) {
        return Outcome::Answered;
    }
    Outcome::Stopped(match died {
        VmmError::Died { exit, stderr } if !stderr.is_empty() => {
            format!("QEMU ended with {exit}: {stderr}")
        }
        VmmError::Died { exit, .. } => match console.last_lines(1) {
            last if last.is_empty() => format!("QEMU ended with {exit}"),
            last => format!("QEMU ended with {exit} after `{last}`"),
        },
        other => other.to_string(),
    })
}

fn has_answered(console: &ConsoleTail) -> bool {
    console.last_lines(200).contains(PROBE_ANSWER)
}

/// Waits for the guest's word, its end, or until it has no time left.
async fn watch(vmm: &mut dyn Vmm, console: &ConsoleTail, memory: &File, bounds: Bounds) -> Outcome {
    let begun = Instant::now();
    // A kernel touches memory from its first moments, and prints much later.
    let signs = || (console.printed(), memory.metadata().map_or(0, |m| m.blocks()));
    let (mut seen, mut alive) = (signs(), begun);
    loop {
        tokio::select! {
            biased;
            died = vmm.exited() => return ended(died, console).await,
            () = tokio::time::sleep(TICK) => {}
        }
        if has_answered(console) {
            return Outcome::Answered;
        }
        if signs() != seen {
            (seen, alive) = (signs(), Instant::now());
        }
        let last = match console.last_lines(1) {
            last if last.is_empty() => None,
            last => Some(last),
        };
        if alive.elapsed() >= bounds.silence {
            let still = bounds.silence;
            return Outcome::Stopped(match last {
                None => format!("a probe guest printed nothing, and stood still for {still:?}"),
                Some(last) => format!("a probe guest stood still for {still:?} after `{last}`"),
            });
        }
        if begun.elapsed() >= bounds.total {
            let at = last
                .map_or_else(|| "before its first line".to_owned(), |last| format!("at `{last}`"));
            return Outcome::TooSlow(format!(
                "a probe guest was still booting after {:?}, {at}",
                bounds.total
            ));
        }
    }
}
