//! The VM that becomes a golden image: booted from its artifacts, made warm, stopped.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_golden_images::BootArtifacts;
use mayfly_golden_images::cmdline::emulation_parameter;
use mayfly_protocol::TIME_SCALE_PARAMETER;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::GoldenError;
use crate::cgroup::{Limits, SessionCgroup};
use crate::channel::{Channel, ChannelError, ExecRequest};
use crate::progress::{Progress, Unit};
use crate::session::{OverlayTemplate, Uid, identity};
use crate::time_scale::{factor, scaled};
use crate::vmm::{
    Accel, Confinement, ConsoleTail, Descriptors, DirectBoot, DiskFormat, DiskLayer, Driver, LaunchSpec, MachineShape,
    Purpose, RamDescriptors, Vmm,
};

/// Rest before the snapshot, so that every task of the guest sleeps where a session is to wake it.
const SETTLE: Duration = Duration::from_millis(300);

/// Bounds on the steps of a golden's making.
#[derive(Debug, Clone)]
pub struct TemplateLimits {
    /// From power-on to the guest agent's answer.
    pub boot: Duration,
    /// From there to Docker's answer.
    pub docker: Duration,
    /// Of each warm-up command.
    pub command: Duration,
    /// Of making the guest small, and of saving its device state.
    pub quiesce: Duration,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        let seconds = |seconds| scaled(Duration::from_secs(seconds));
        Self { boot: seconds(120), docker: seconds(120), command: seconds(300), quiesce: seconds(120) }
    }
}

/// What is to become a golden image.
#[derive(Debug, Clone, Copy)]
pub struct Template<'a> {
    /// Name of the golden.
    pub name: &'a str,
    /// What to boot.
    pub artifacts: &'a BootArtifacts,
    /// The machine to boot it on.
    pub shape: &'a MachineShape,
    /// Folder for the disk overlay, which has no name in it.
    pub dir: &'a Path,
    /// User of the VMM.
    pub uid: &'a Uid,
    /// Cgroup of its process.
    pub cgroup: &'a SessionCgroup,
}

/// A stopped VM, ready to be stored.
#[derive(Debug)]
pub struct StoppedTemplate {
    /// Guest memory.
    pub ram: File,
    /// Device state.
    pub device_state: Vec<u8>,
    /// Disk delta (qcow2 without backing file in its header).
    pub disk_delta: File,
}

/// Boots `artifacts`, runs their warm-up commands, quiesces and stops the guest.
pub async fn make(
    driver: &dyn Driver,
    template: Template<'_>,
    limits: &TemplateLimits,
    progress: &dyn Progress,
) -> Result<StoppedTemplate, GoldenError> {
    let Template { name, artifacts, shape, dir, uid, cgroup } = template;
    let ram = memory_file(shape.memory_bytes)?;
    let base = open(&artifacts.base_disk)?;
    let virtual_size = base.metadata().map_err(|source| io("look at", &artifacts.base_disk, source))?.len();
    let delta: OwnedFd = OverlayTemplate::new(virtual_size)?.instantiate(dir)?;
    let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(|source| io("use", dir, source));
    let spec = LaunchSpec {
        shape: shape.clone(),
        purpose: Purpose::Boot(DirectBoot {
            kernel: open(&artifacts.kernel)?.into(),
            initramfs: open(&artifacts.initramfs)?.into(),
            cmdline: cmdline(&artifacts.cmdline, shape.accel),
        }),
        descriptors: Descriptors {
            ram: RamDescriptors::Template { file: duplicate(&ram)? },
            disk: vec![
                DiskLayer { file: base.into(), format: DiskFormat::Raw },
                DiskLayer { file: duplicate(&delta)?, format: DiskFormat::Qcow2 },
            ],
        },
        confinement: Confinement {
            uid: Some(uid.get()),
            cgroup: cgroup.entrance()?,
            file_bytes: Limits::default().file_bytes(virtual_size),
            ..Confinement::default()
        },
    };
    progress.begin("boot", None, Unit::Items);
    let mut launched = driver.launch(spec).await?;
    launched.vmm.wait_ready(limits.boot).await?;
    let guest = Guest { name, console: launched.console.clone() };

    let hello = identity::hello(&identity::new_id()?)?;
    let open_channel = Channel::open(launched.channel, &hello);
    let (channel, _) = guest.step("boot", limits.boot, open_channel, &mut *launched.vmm).await?;

    if artifacts.docker {
        progress.begin("start Docker", None, Unit::Items);
        let ready = channel.wait_ready(limits.docker);
        guest
            .step("start of Docker", limits.docker + scaled(Duration::from_secs(5)), ready, &mut *launched.vmm)
            .await?;
    }

    progress.begin("warm up", Some(artifacts.warm_commands.len() as u64), Unit::Items);
    for (done, command) in artifacts.warm_commands.iter().enumerate() {
        progress.detail(&command.join(" "));
        let run = warm(&channel, name, command);
        guest.step("warm-up", limits.command, run, &mut *launched.vmm).await??;
        progress.advance(done as u64 + 1);
    }

    progress.begin("quiesce", None, Unit::Items);
    let report = guest.step("quiescing", limits.quiesce, channel.quiesce(), &mut *launched.vmm).await?;
    tracing::debug!(?report, "guest quiesced");
    // Dropping caches made the first steps of a session cold again: take them once more.
    guest.step("warm-up", limits.command, rehearse(&channel, artifacts.docker), &mut *launched.vmm).await?;
    let parked = guest.step("parking", limits.quiesce, channel.park(), &mut *launched.vmm).await?;
    // The guest says that it is parked just before it is: let it reach the read it is to be restored in.
    tokio::time::sleep(scaled(SETTLE)).await;

    progress.begin("save device state", None, Unit::Items);
    let device_state = launched.vmm.save(limits.quiesce).await?;
    launched.vmm.kill().await?;
    drop(parked);
    Ok(StoppedTemplate { ram: File::from(ram), device_state, disk_delta: File::from(delta) })
}

/// The golden's own command line, with what only this host knows.
pub(crate) fn cmdline(own: &str, accel: Accel) -> String {
    let clock = (accel == Accel::Tcg).then(emulation_parameter).flatten();
    let scale = Some(factor()).filter(|factor| *factor != 1).map(|factor| format!("{TIME_SCALE_PARAMETER}={factor}"));
    [Some(own.to_owned()), clock, scale].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Runs one warm-up command; its failure is the recipe's, not the channel's.
async fn warm(channel: &Channel, name: &str, command: &[String]) -> Result<Result<(), GoldenError>, ChannelError> {
    tracing::debug!(?command, "warm-up");
    let output = channel.exec(ExecRequest::new(command.iter().map(String::as_str))).await?.output().await?;
    if output.success() {
        return Ok(Ok(()));
    }
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    Ok(Err(GoldenError::Command {
        name: name.to_owned(),
        command: command.join(" "),
        outcome: output.status.to_string(),
        output: lines[lines.len().saturating_sub(5)..].join(" | "),
    }))
}

/// What nearly every session does first.
async fn rehearse(channel: &Channel, docker: bool) -> Result<(), ChannelError> {
    channel.exec(ExecRequest::new(["/bin/true"])).await?.output().await?;
    if docker {
        crate::session::ping_docker(channel).await?;
    }
    Ok(())
}

struct Guest<'a> {
    name: &'a str,
    console: ConsoleTail,
}

impl Guest<'_> {
    /// Waits for one step, its limit, or the end of the VMM, and blames the right one.
    async fn step<T>(
        &self,
        stage: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, ChannelError>>,
        vmm: &mut dyn Vmm,
    ) -> Result<T, GoldenError> {
        let console = || self.console.last_lines(8);
        let failed =
            |reason: String| GoldenError::Guest { name: self.name.to_owned(), stage, reason, console: console() };
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
                Err(GoldenError::NotReady { name: self.name.to_owned(), stage, limit, console: console() })
            }
        }
    }
}

fn memory_file(bytes: u64) -> Result<OwnedFd, GoldenError> {
    let make = || {
        let fd = memfd_create("mayfly-template", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, i64::try_from(bytes).unwrap_or(i64::MAX))?;
        Ok::<_, nix::Error>(fd)
    };
    make().map_err(|e| io("create the memory file of", Path::new("the template VM"), e.into()))
}

fn open(path: &Path) -> Result<File, GoldenError> {
    File::open(path).map_err(|source| io("open", path, source))
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> GoldenError {
    GoldenError::Io { action, path: PathBuf::from(path), source }
}
