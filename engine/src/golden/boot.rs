//! A guest that is booted from its artifacts, until its agent has answered.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mayfly_golden_images::BootArtifacts;
use mayfly_golden_images::cmdline::emulation_parameter;
use mayfly_guest::channel::{Channel, ChannelError};
use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};
use mayfly_host::layout::Layout;
use mayfly_host::time_scale::{factor, scaled};
use mayfly_host::uid::Uid;
use mayfly_protocol::{HelloAck, TIME_SCALE_PARAMETER};
use mayfly_vmm::{
    Accel, Confinement, ConsoleTail, Descriptors, DirectBoot, DiskFormat, DiskLayer, Driver,
    LaunchSpec, MachineShape, Purpose, RamDescriptors, Vmm,
};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::artifacts::ArtifactSeal;
use super::error::GoldenError;
use super::tsc;
use crate::disk_space::{DiskSpace, OverlayBound};
use crate::engine::Engine;
use crate::session::{OverlayError, OverlayTemplate, identity};

/// User and cgroup that bound the VMM of a boot, and the file that holds its disk.
#[derive(Debug)]
pub struct Confines {
    uid: Uid,
    cgroup: SessionCgroup,
    dir: PathBuf,
    disks: Arc<DiskSpace>,
}

impl Confines {
    /// Takes a user of its own and a cgroup of this name below the engine's.
    pub fn take(engine: &Engine, cgroup: &str, shape: &MachineShape) -> Result<Self, GoldenError> {
        let dir = engine.layout().disks();
        let uid = engine.uids().take()?;
        Layout::create(&dir)
            .map_err(|e| io("start a VM with a disk in", &dir, std::io::Error::other(e)))?;
        let subject = Subject { guest_memory: shape.memory_bytes, disk_dir: dir.clone() };
        let cgroup = SessionCgroup::create(
            &engine.instance().cgroup_name(cgroup),
            &Limits::default(),
            subject,
        )?;
        Ok(Self { uid, cgroup, dir, disks: engine.disks().clone() })
    }

    /// Gives all of it back; the VMM must be gone.
    pub fn leave(self) -> Result<(), GoldenError> {
        Ok(self.cgroup.remove()?)
    }
}

/// Description of a boot: what to boot, and where.
#[derive(Debug, Clone, Copy)]
pub struct Boot<'a> {
    /// Name of the golden.
    pub name: &'a str,
    /// Artifacts to boot.
    pub artifacts: &'a BootArtifacts,
    /// What they are checked with.
    pub seal: &'a ArtifactSeal,
    /// The machine to boot it on.
    pub shape: &'a MachineShape,
    /// Confines of its VMM.
    pub confines: &'a Confines,
}

/// A booted guest, with the files that it works on.
pub struct Booted {
    /// VMM of the boot. Dropping it kills it.
    pub vmm: Box<dyn Vmm>,
    /// Channel to its agent.
    pub channel: Channel,
    /// Answer of the agent to its identity.
    pub ack: HelloAck,
    /// Blames what fails.
    pub watch: Watch,
    /// Memory of the guest.
    pub ram: OwnedFd,
    /// Delta that it writes to its disk: a qcow2 image without a name.
    pub disk_delta: OwnedFd,
    /// How much that may be; to be dropped before the confines.
    pub bound: OverlayBound,
}

impl Boot<'_> {
    /// Boots the kernel and waits for the agent, at most `limit`.
    pub async fn run(self, driver: &dyn Driver, limit: Duration) -> Result<Booted, GoldenError> {
        let Self { name, artifacts, seal, shape, confines } = self;
        let ram = memory_file(shape.memory_bytes)?;
        let virtual_size = artifacts.base_disk.len;
        let disk_delta: OwnedFd = OverlayTemplate::new(virtual_size)?.instantiate(&confines.dir)?;
        let most = Limits::default().file_bytes(virtual_size);
        let bound = confines.disks.bound(disk_delta.as_fd(), confines.uid.get(), most);
        let bound =
            bound.map_err(|cause| OverlayError::Quota { dir: confines.dir.clone(), cause })?;
        let duplicate =
            |fd: &OwnedFd| fd.try_clone().map_err(|cause| io("use", &confines.dir, cause));
        let spec = LaunchSpec {
            shape: shape.clone(),
            purpose: Purpose::Boot(DirectBoot {
                kernel: seal.open(&artifacts.kernel)?,
                initramfs: seal.open(&artifacts.initramfs)?,
                cmdline: cmdline(&artifacts.cmdline, shape.accel),
            }),
            descriptors: Descriptors {
                ram: RamDescriptors::Template { file: duplicate(&ram)? },
                disk: vec![
                    DiskLayer { file: seal.open(&artifacts.base_disk)?, format: DiskFormat::Raw },
                    DiskLayer { file: duplicate(&disk_delta)?, format: DiskFormat::Qcow2 },
                ],
            },
            confinement: Confinement {
                uid: Some(confines.uid.get()),
                cgroup: confines.cgroup.entrance()?,
                file_bytes: most,
                ..Confinement::default()
            },
        };
        let mut launched = driver.launch(spec).await?;
        launched.vmm.wait_ready(limit).await?;
        let watch = Watch { name: name.to_owned(), console: launched.console };
        let hello = identity::hello(&identity::new_id()?)?;
        let open_channel = Channel::open(launched.channel, &hello);
        let (channel, ack) = watch.step("boot", limit, open_channel, &mut *launched.vmm).await?;
        Ok(Booted { vmm: launched.vmm, channel, ack, watch, ram, disk_delta, bound })
    }
}

impl Booted {
    /// Waits until the guest's Docker daemon has started, at most `limit`.
    pub async fn docker_started(&mut self, limit: Duration) -> Result<(), GoldenError> {
        let ready = self.channel.wait_ready(limit);
        // The guest keeps the limit itself, and then says why; ours is for one that does not.
        let bound = limit + scaled(Duration::from_secs(5));
        self.watch.step("start of Docker", bound, ready, &mut *self.vmm).await?;
        Ok(())
    }
}

/// The golden's own command line, with what only this host knows.
pub(crate) fn cmdline(own: &str, accel: Accel) -> String {
    let clock =
        Some(tsc::khz()).filter(|khz| accel == Accel::Tcg && *khz != 0).map(emulation_parameter);
    let scale = Some(factor())
        .filter(|factor| *factor != 1)
        .map(|factor| format!("{TIME_SCALE_PARAMETER}={factor}"));
    [Some(own.to_owned()), clock, scale].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Watches a booted guest while something is done with it.
pub struct Watch {
    name: String,
    console: ConsoleTail,
}

impl Watch {
    /// Waits for one step, its limit, or the end of the VMM, and blames the right one.
    pub async fn step<T>(
        &self,
        stage: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, ChannelError>>,
        vmm: &mut dyn Vmm,
    ) -> Result<T, GoldenError> {
        let failed = |reason: String| self.failed(stage, reason);
        tokio::select! {
            result = work => match result {
                Ok(value) => Ok(value),
                Err(error) => {
                    // A guest that powers off closes the channel first; its VMM follows.
                    match tokio::time::timeout(scaled(Duration::from_secs(1)), vmm.exited()).await {
                        Ok(died) => Err(failed(died.to_string())),
                        Err(_) => Err(failed(error.to_string())),
                    }
                }
            },
            died = vmm.exited() => {
                // What the guest said last may still be on its way.
                tokio::time::sleep(scaled(Duration::from_millis(50))).await;
                Err(failed(died.to_string()))
            }
            () = tokio::time::sleep(limit) => {
                Err(GoldenError::NotReady { name: self.name.clone(), stage, limit, console: self.said() })
            }
        }
    }

    /// Creates the error of a step that failed for this reason.
    pub fn failed(&self, stage: &'static str, reason: String) -> GoldenError {
        GoldenError::Guest { name: self.name.clone(), stage, reason, console: self.said() }
    }

    fn said(&self) -> String {
        self.console.last_lines(8)
    }
}

fn memory_file(bytes: u64) -> Result<OwnedFd, GoldenError> {
    let make = || {
        let fd = memfd_create("mayfly-template", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, i64::try_from(bytes).unwrap_or(i64::MAX))?;
        Ok::<_, nix::Error>(fd)
    };
    make().map_err(|e| io("create the memory file of", Path::new("a VM that boots"), e.into()))
}

fn io(action: &'static str, path: &Path, cause: std::io::Error) -> GoldenError {
    GoldenError::Io { action, path: PathBuf::from(path), cause }
}
