//! Turns a golden into what stock QEMU can restore: an internal snapshot, and migration streams
//! with memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_vmm::qmp::schema::{
    Capability, CapabilityStatus, Command, Empty, Migrate, MigrateIncoming, MigrateSetCapabilities,
    Migration, MigrationStatus, Negotiate, QueryMigrate,
};
use mayfly_vmm::qmp::{QmpError, within};
use mayfly_vmm::{MachineShape, VmmError};
use serde::Serialize;
use tokio::io::AsyncWriteExt;

use super::artifacts::Artifacts;
use super::qemu::{IMPORT_FD, Memory, Qemu, Spec, Start, create_image};
use crate::error::{BenchError, io};

/// Name of the internal snapshot.
pub const SNAPSHOT: &str = "golden";
/// Bound on each step; a gigabyte through a slow disk is well within it.
const LIMIT: Duration = Duration::from_secs(120);
/// As fast as it goes, in bytes per second.
const BANDWIDTH: u64 = 1 << 40;

/// Files that stock QEMU restores.
#[derive(Debug)]
pub struct Exported {
    /// Top disk layer with the internal snapshot [`SNAPSHOT`].
    pub snapshot: PathBuf,
    /// A whole migration stream.
    pub stream: PathBuf,
    /// The same with memory at fixed places, where QEMU can do that.
    pub mapped: Option<PathBuf>,
    /// Major and minor version of QEMU.
    pub version: (u32, u32),
}

/// Loads the golden into QEMU, stopped, and has QEMU save it in its own ways.
///
/// # Errors
/// [`BenchError`].
pub async fn export(artifacts: &Artifacts, version: &str) -> Result<Exported, BenchError> {
    let version = parse_version(version);
    let path = |name: &str| artifacts.dir().join(name);
    let (snapshot, stream, mapped) = (path("snapshot.qcow2"), path("stream"), path("mapped-ram"));
    create_image(&snapshot, artifacts.disk_bytes)?;
    save_snapshot(artifacts, &snapshot).await?;
    save_stream(artifacts, &stream, version, false).await?;
    let mapped = match version >= (9, 0) {
        true => {
            save_stream(artifacts, &mapped, version, true).await?;
            Some(mapped)
        }
        false => None,
    };
    Ok(Exported { snapshot, stream, mapped, version })
}

/// Returns the migration URI for a file: `file:` is there since QEMU 8.2; before, a command has to
/// read or write the file.
pub fn uri(path: &Path, version: (u32, u32), writes: bool) -> String {
    let path = path.display();
    match (version >= (8, 2), writes) {
        (true, _) => format!("file:{path}"),
        (false, true) => format!("exec:exec cat >'{path}'"),
        (false, false) => format!("exec:exec cat '{path}'"),
    }
}

fn parse_version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Takes the images into use, which QEMU 10 puts off until the guest runs.
#[derive(Debug, Serialize)]
struct SetActive {
    active: bool,
}

impl Command for SetActive {
    const NAME: &'static str = "blockdev-set-active";
    type Ok = Empty;
}

/// A command of the monitor for people, which answers with text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HumanMonitorCommand {
    command_line: String,
}

impl Command for HumanMonitorCommand {
    const NAME: &'static str = "human-monitor-command";
    type Ok = String;
}

/// Sets how fast a migration may go, in bytes per second.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MigrateSetParameters {
    max_bandwidth: u64,
}

impl Command for MigrateSetParameters {
    const NAME: &'static str = "migrate-set-parameters";
    type Ok = Empty;
}

/// Ends QEMU.
#[derive(Debug, Serialize)]
struct Quit {}

impl Command for Quit {
    const NAME: &'static str = "quit";
    type Ok = Empty;
}

async fn save_snapshot(artifacts: &Artifacts, top: &Path) -> Result<(), BenchError> {
    let mut qemu = import(artifacts, Some(top)).await?;
    // Without events: those of savevm are of no use.
    capabilities(&mut qemu, &[(Capability::Events, false)]).await?;
    match within(LIMIT, "blockdev-set-active", qemu.qmp.execute(SetActive { active: true })).await {
        // A QEMU that does not know the command has taken the images into use by itself.
        Ok(_) | Err(QmpError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let save = HumanMonitorCommand { command_line: format!("savevm {SNAPSHOT}") };
    let answer = within(LIMIT, "savevm", qemu.qmp.execute(save)).await?;
    if !answer.trim().is_empty() {
        return Err(BenchError::Peer {
            system: "stock QEMU",
            reason: format!("savevm: {}", answer.trim()),
        });
    }
    quit(qemu).await
}

async fn save_stream(
    artifacts: &Artifacts,
    path: &Path,
    version: (u32, u32),
    mapped_ram: bool,
) -> Result<(), BenchError> {
    let mut qemu = import(artifacts, None).await?;
    if mapped_ram {
        capabilities(&mut qemu, &[(Capability::MappedRam, true)]).await?;
    }
    let parameters = MigrateSetParameters { max_bandwidth: BANDWIDTH };
    within(LIMIT, "migrate-set-parameters", qemu.qmp.execute(parameters)).await?;
    let migrate = Migrate { uri: uri(path, version, true) };
    within(LIMIT, "migrate", qemu.qmp.execute(migrate)).await?;
    migrated(&mut qemu, "saving").await?;
    quit(qemu).await
}

/// QEMU with the golden loaded and stopped.
async fn import(artifacts: &Artifacts, top: Option<&Path>) -> Result<Qemu, BenchError> {
    let shape: &MachineShape = &artifacts.shape;
    let spec = Spec {
        program: &artifacts.program,
        shape,
        memory: Memory::File(&artifacts.ram),
        disk: artifacts.session_disk(top)?,
        start: Start::Import,
    };
    let mut qemu = Qemu::start(spec).await?;
    within(LIMIT, "QMP negotiation", qemu.qmp.execute(Negotiate {})).await?;
    let ours = [(Capability::XIgnoreShared, true), (Capability::Events, true)];
    capabilities(&mut qemu, &ours).await?;
    let incoming = MigrateIncoming { uri: format!("fd:{IMPORT_FD}") };
    within(LIMIT, "migrate-incoming", qemu.qmp.execute(incoming)).await?;
    let hand_over = async {
        qemu.state.write_all(&artifacts.device_state).await?;
        qemu.state.shutdown().await
    };
    hand_over.await.map_err(io("hand over", "the device state"))?;
    migrated(&mut qemu, "restoring").await?;
    capabilities(&mut qemu, &[(Capability::XIgnoreShared, false)]).await?;
    Ok(qemu)
}

async fn capabilities(qemu: &mut Qemu, wanted: &[(Capability, bool)]) -> Result<(), BenchError> {
    let status = |&(capability, state): &(Capability, bool)| CapabilityStatus { capability, state };
    let wanted: Vec<_> = wanted.iter().map(status).collect();
    let set = MigrateSetCapabilities { capabilities: &wanted };
    within(LIMIT, "migrate-set-capabilities", qemu.qmp.execute(set)).await?;
    Ok(())
}

async fn migrated(qemu: &mut Qemu, action: &'static str) -> Result<(), BenchError> {
    loop {
        match within(LIMIT, "migration", qemu.qmp.wait_event::<Migration>()).await?.status {
            MigrationStatus::Completed => return Ok(()),
            MigrationStatus::Failed | MigrationStatus::Cancelled => {
                let info =
                    within(LIMIT, "query-migrate", qemu.qmp.execute(QueryMigrate {})).await?;
                let reason = info.error_desc.unwrap_or_else(|| qemu.process.last_words());
                return Err(VmmError::DeviceState { action, reason }.into());
            }
            MigrationStatus::Other => {}
        }
    }
}

/// Ends QEMU in order, so that its images are closed.
async fn quit(mut qemu: Qemu) -> Result<(), BenchError> {
    within(LIMIT, "quit", qemu.qmp.execute(Quit {})).await?;
    match tokio::time::timeout(LIMIT, qemu.process.exited()).await {
        Ok(exit) => exit.map(drop).map_err(Into::into),
        Err(_) => Err(BenchError::Silent {
            what: "QEMU asked to quit",
            seconds: LIMIT.as_secs(),
            context: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_files_where_qemu_knows_them() {
        let debian = parse_version("10.0.2 (Debian 1:10.0.2+ds-2)");
        assert_eq!(debian, (10, 0));
        assert_eq!(uri(Path::new("/x"), debian, false), "file:/x");
        assert_eq!(
            uri(Path::new("/x"), parse_version("7.2.22 (Debian)"), false),
            "exec:exec cat '/x'"
        );
        assert_eq!(uri(Path::new("/x"), (8, 1), true), "exec:exec cat >'/x'");
    }
}
