//! The VM that becomes a golden image: booted from its artifacts, made warm, stopped.

use std::fs::File;
use std::time::Duration;

use mayfly_guest::channel::{Channel, ChannelError, ExecRequest};
use mayfly_host::time_scale::scaled;
use mayfly_vmm::Driver;

use super::boot::{Boot, Booted};
use super::error::GoldenError;
use super::first_steps::{Extent, FirstStepError, FirstSteps, StepLimits};
use crate::progress::{Progress, Unit};

/// Rest before the snapshot, so that every task of the guest sleeps where a session is to wake it.
const SETTLE: Duration = Duration::from_millis(300);

/// Bounds on the steps of a golden's making.
#[derive(Debug, Clone)]
pub struct TemplateLimits {
    /// Time from power-on to the guest agent's answer.
    pub boot: Duration,
    /// Time from there to Docker's answer.
    pub docker: Duration,
    /// Time of each warm-up command.
    pub command: Duration,
    /// Time of making the guest small, and of saving its device state.
    pub quiesce: Duration,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        let seconds = |seconds| scaled(Duration::from_secs(seconds));
        Self {
            boot: seconds(120),
            docker: seconds(120),
            command: seconds(300),
            quiesce: seconds(120),
        }
    }
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

/// Boots what is to become a golden image, runs its warm-up commands, quiesces and stops the guest.
pub async fn make(
    driver: &dyn Driver,
    boot: Boot<'_>,
    first_steps: &FirstSteps,
    limits: &TemplateLimits,
    progress: &dyn Progress,
) -> Result<StoppedTemplate, GoldenError> {
    let Boot { name, artifacts, .. } = boot;
    progress.begin("boot", None, Unit::Items);
    let mut booted = boot.run(driver, limits.boot).await?;
    if artifacts.docker {
        progress.begin("start Docker", None, Unit::Items);
        booted.docker_started(limits.docker).await?;
    }
    let Booted { mut vmm, channel, watch: guest, ram, disk_delta, bound, .. } = booted;

    progress.begin("warm up", Some(artifacts.warm_commands.len() as u64), Unit::Items);
    for (done, command) in artifacts.warm_commands.iter().enumerate() {
        progress.detail(&command.join(" "));
        let run = warm(&channel, name, command);
        guest.step("warm-up", limits.command, run, &mut *vmm).await??;
        progress.advance(done as u64 + 1);
    }

    progress.begin("quiesce", None, Unit::Items);
    let report = guest.step("quiescing", limits.quiesce, channel.quiesce(), &mut *vmm).await?;
    tracing::debug!(?report, "guest quiesced");
    // Dropping caches made the first steps of a session cold again.
    progress.begin("first steps", None, Unit::Items);
    // No less time for what had as much before, and is given up when it takes longer now.
    let bounds = StepLimits { command: limits.command, all: limits.command };
    let rehearsal = rehearse(&channel, first_steps, bounds, name);
    guest.step("the first steps", 3 * limits.command, rehearsal, &mut *vmm).await??;
    let parked = guest.step("parking", limits.quiesce, channel.park(), &mut *vmm).await?;
    // The guest says that it is parked just before it is: let it reach the read it is to be
    // restored in.
    tokio::time::sleep(scaled(SETTLE)).await;

    progress.begin("save device state", None, Unit::Items);
    let device_state = vmm.save(limits.quiesce).await?;
    vmm.kill().await?;
    drop((parked, bound));
    Ok(StoppedTemplate { ram: File::from(ram), device_state, disk_delta: File::from(disk_delta) })
}

/// Runs one warm-up command; its failure is the recipe's, not the channel's.
async fn warm(
    channel: &Channel,
    name: &str,
    command: &[String],
) -> Result<Result<(), GoldenError>, ChannelError> {
    tracing::debug!(?command, "warm-up");
    let output =
        channel.exec(ExecRequest::new(command.iter().map(String::as_str))).await?.output().await?;
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

/// Takes the first steps, and has what they wrote on disk: no session should write it again.
async fn rehearse(
    channel: &Channel,
    steps: &FirstSteps,
    limits: StepLimits,
    name: &str,
) -> Result<Result<(), GoldenError>, ChannelError> {
    match steps.take(channel, Extent::All, limits).await {
        Err(FirstStepError::Channel(error)) => return Err(error),
        Err(error) => {
            let name = name.to_owned();
            return Ok(Err(GoldenError::FirstStep { name, reason: error.to_string() }));
        }
        Ok(()) => {}
    }
    channel.exec(ExecRequest::new(["sync"])).await?.output().await?;
    Ok(Ok(()))
}
