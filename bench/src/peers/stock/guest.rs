//! Guest of stock QEMU, from its start to its end.

use std::time::{Duration, Instant};

use mayfly_engine::session::identity;
use mayfly_guest::channel::{Channel, ChannelError};
use mayfly_vmm::VmmError;

use super::artifacts::Artifacts;
use super::export::{Exported, SNAPSHOT, uri};
use super::qemu::{Memory, Qemu, Spec, Start};
use crate::docker;
use crate::error::{BenchError, io};
use crate::peers::sample::{Sample, cpu_time, private_mib};

/// Bound on a restore; it catches what hangs.
const RESTORE_LIMIT: Duration = Duration::from_secs(60);
/// Bound on a boot until Docker answers.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// A started guest, and when it was asked for.
pub struct Guest {
    qemu: Qemu,
    begun: Instant,
    limit: Duration,
    booted: bool,
}

/// Starts QEMU with `-loadvm`.
///
/// # Errors
/// [`BenchError`].
pub async fn load_vm(artifacts: &Artifacts, exported: &Exported) -> Result<Guest, BenchError> {
    // One image serves one guest after another: loading the snapshot throws away what the last one
    // wrote.
    let disk = artifacts.session_disk(Some(&exported.snapshot))?;
    start(artifacts, disk, Start::LoadVm(SNAPSHOT), RESTORE_LIMIT).await
}

/// Starts QEMU with `-incoming` of a whole migration stream; `mapped` chooses the one with memory
/// at fixed places, where there is one.
///
/// # Errors
/// [`BenchError`].
pub async fn incoming(
    artifacts: &Artifacts,
    exported: &Exported,
    mapped: bool,
) -> Result<Guest, BenchError> {
    let path = exported.mapped.as_ref().filter(|_| mapped).unwrap_or(&exported.stream);
    let first = Start::Incoming { uri: uri(path, exported.version, false), mapped_ram: mapped };
    start(artifacts, artifacts.session_disk(None)?, first, RESTORE_LIMIT).await
}

/// Starts QEMU with the kernel.
///
/// # Errors
/// [`BenchError`].
pub async fn boot(artifacts: &Artifacts) -> Result<Guest, BenchError> {
    let Artifacts { kernel, initramfs, cmdline, .. } = artifacts;
    start(artifacts, artifacts.boot_disk()?, Start::Boot { kernel, initramfs, cmdline }, BOOT_LIMIT)
        .await
}

async fn start(
    artifacts: &Artifacts,
    disk: Vec<mayfly_vmm::DiskLayer>,
    start: Start<'_>,
    limit: Duration,
) -> Result<Guest, BenchError> {
    let booted = matches!(start, Start::Boot { .. });
    let begun = Instant::now();
    let Artifacts { program, shape, .. } = artifacts;
    let qemu = Qemu::start(Spec { program, shape, memory: Memory::Anonymous, disk, start }).await?;
    Ok(Guest { qemu, begun, limit, booted })
}

impl Guest {
    /// Gives the guest an identity, waits for its agent and for its Docker, and ends it.
    ///
    /// # Errors
    /// [`BenchError`]; the guest is gone then.
    pub async fn measure(self) -> Result<Sample, BenchError> {
        let Self { qemu: Qemu { mut process, qmp, channel, state, console }, begun, limit, booted } =
            self;
        let answers = async {
            let (channel, ack) =
                Channel::open(channel, &identity::hello(&identity::new_id()?)?).await?;
            let agent = begun.elapsed();
            if let Some(error) = ack.errors.first() {
                return Err(BenchError::Peer { system: "stock QEMU", reason: error.to_string() });
            }
            if booted {
                channel.wait_ready(limit).await?;
            }
            let stream = channel.connect_unix(docker::GUEST_SOCKET).await?;
            docker::ping(stream).await.map_err(io("ping", "Docker in a guest of stock QEMU"))?;
            Ok((agent, begun.elapsed()))
        };
        let seconds = limit.as_secs();
        let outcome = tokio::select! {
            answers = tokio::time::timeout(limit, answers) => answers.unwrap_or_else(|_| {
                Err(BenchError::Silent { what: "a guest of stock QEMU", seconds, context: console.last_lines(5) })
            }),
            _ = process.exited() => Err(ChannelError::Closed { reason: "QEMU ended".into() }.into()),
        };
        let (agent, docker) = match outcome {
            Ok(answers) => answers,
            Err(error) => return Err(died(&mut process).await.unwrap_or(error)),
        };
        let pid = process.pid();
        let sample =
            Sample::new(agent, Some(docker)).with_memory(private_mib(pid)).with_cpu(cpu_time(pid));
        process.kill().await?;
        drop((qmp, state));
        Ok(sample)
    }
}

/// The end of QEMU, which explains a silent guest better than the silence.
async fn died(process: &mut mayfly_vmm::VmmProcess) -> Option<BenchError> {
    let exit =
        tokio::time::timeout(Duration::from_millis(200), process.exited()).await.ok()?.ok()?;
    Some(VmmError::Died { exit, stderr: process.last_words() }.into())
}
