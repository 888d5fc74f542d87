//! The commands and events of QEMU that are used, as its schema has them (QEMU `qapi/*.json`,
//! described in "QEMU QMP Reference Manual"). Fields that are left to their defaults are not here.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A command; its fields are the arguments.
pub trait Command: Serialize {
    /// Name on the wire.
    const NAME: &'static str;
    /// Type that the reply carries.
    type Ok: DeserializeOwned;
}

/// An event; its fields are the data.
pub trait Event: DeserializeOwned {
    /// Name on the wire.
    const NAME: &'static str;
}

/// The reply of a command that returns nothing: an object whose members do not matter.
#[derive(Debug, Deserialize)]
pub struct Empty {}

macro_rules! commands {
    ($($command:ty, $name:literal -> $ok:ty;)*) => {
        $(impl Command for $command {
            const NAME: &'static str = $name;
            type Ok = $ok;
        })*
    };
}

commands! {
    Negotiate, "qmp_capabilities" -> Empty;
    Stop, "stop" -> Empty;
    Cont, "cont" -> Empty;
    GetFd<'_>, "getfd" -> Empty;
    MigrateSetCapabilities<'_>, "migrate-set-capabilities" -> Empty;
    Migrate, "migrate" -> Empty;
    MigrateIncoming, "migrate-incoming" -> Empty;
    QueryMigrate, "query-migrate" -> MigrationInfo;
    QueryStatus, "query-status" -> RunStatus;
}

/// Leaves the mode in which only capabilities of the connection are negotiated; asks for none.
#[derive(Debug, Serialize)]
pub struct Negotiate {}

/// Stops the guest's processors.
#[derive(Debug, Serialize)]
pub struct Stop {}

/// Lets them run on.
#[derive(Debug, Serialize)]
pub struct Cont {}

/// Command that keeps the descriptor that comes with it.
#[derive(Debug, Serialize)]
pub struct GetFd<'a> {
    /// Name that it gets.
    pub fdname: &'a str,
}

/// Switches capabilities of the migration.
#[derive(Debug, Serialize)]
pub struct MigrateSetCapabilities<'a> {
    /// Capabilities that change.
    pub capabilities: &'a [CapabilityStatus],
}

/// Capability, and whether it is on.
#[derive(Debug, Serialize)]
pub struct CapabilityStatus {
    /// Name of the capability.
    pub capability: Capability,
    /// Whether it is on.
    pub state: bool,
}

/// A capability of the migration.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// [`Migration`] is sent when the state changes.
    Events,
    /// Memory that both sides map is not moved.
    XIgnoreShared,
    /// Memory has a fixed place in the file.
    MappedRam,
}

/// Command that saves the machine.
#[derive(Debug, Serialize)]
pub struct Migrate {
    /// URI to which the state goes.
    pub uri: String,
}

/// Command that loads the machine, in a process started with `-incoming defer`.
#[derive(Debug, Serialize)]
pub struct MigrateIncoming {
    /// URI from which the state comes.
    pub uri: String,
}

/// Command that asks how the migration goes.
#[derive(Debug, Serialize)]
pub struct QueryMigrate {}

/// Progress of a migration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Reason why it failed, where QEMU says so.
    pub error_desc: Option<String>,
}

/// Asks whether the guest's processors run, and why not.
#[derive(Debug, Serialize)]
pub struct QueryStatus {}

/// Whether they run, and why not.
#[derive(Debug, Deserialize)]
pub struct RunStatus {
    /// `running`, `paused`, `internal-error`, `io-error` and others.
    pub status: String,
}

/// The migration is in another state.
#[derive(Debug, Deserialize)]
pub struct Migration {
    /// Status of the migration.
    pub status: MigrationStatus,
}

impl Event for Migration {
    const NAME: &'static str = "MIGRATION";
}

/// The states that end a migration, and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigrationStatus {
    /// Migration that is done.
    Completed,
    /// Migration that was given up because of an error.
    Failed,
    /// Migration that was given up on request.
    Cancelled,
    /// Migration under way, in one of a dozen states.
    #[serde(other)]
    Other,
}

/// The guest's processors have stopped.
#[derive(Debug, Deserialize)]
pub struct Stopped {}

impl Event for Stopped {
    const NAME: &'static str = "STOP";
}

/// A disk of the guest could not be read or written.
#[derive(Debug, Deserialize)]
pub struct BlockIoError {
    /// Whether for want of space. QEMU leaves it out where it cannot tell.
    #[serde(default)]
    pub nospace: bool,
    /// The system's words.
    #[serde(default)]
    pub reason: String,
}

impl Event for BlockIoError {
    const NAME: &'static str = "BLOCK_IO_ERROR";
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn arguments_are_written_as_the_schema_has_them() {
        let enable = |capability| CapabilityStatus { capability, state: true };
        let capabilities = [
            enable(Capability::XIgnoreShared),
            enable(Capability::Events),
            enable(Capability::MappedRam),
        ];
        assert_eq!(
            to_value(MigrateSetCapabilities { capabilities: &capabilities }).unwrap(),
            json!({ "capabilities": [
                { "capability": "x-ignore-shared", "state": true },
                { "capability": "events", "state": true },
                { "capability": "mapped-ram", "state": true },
            ] })
        );
        assert_eq!(
            to_value(MigrateIncoming { uri: "fd:3".into() }).unwrap(),
            json!({ "uri": "fd:3" })
        );
        assert_eq!(to_value(GetFd { fdname: "x" }).unwrap(), json!({ "fdname": "x" }));
        assert_eq!(to_value(Negotiate {}).unwrap(), json!({}));
    }

    #[test]
    fn replies_and_events_of_any_version_are_read() {
        let status = |name: &str| {
            serde_json::from_value::<Migration>(json!({ "status": name })).unwrap().status
        };
        assert_eq!(status("completed"), MigrationStatus::Completed);
        assert_eq!(status("failed"), MigrationStatus::Failed);
        assert_eq!(status("cancelled"), MigrationStatus::Cancelled);
        for other in ["setup", "cancelling", "postcopy-active", "one of a later version"] {
            assert_eq!(status(other), MigrationStatus::Other, "{other}");
        }
        let info = |value| serde_json::from_value::<MigrationInfo>(value).unwrap().error_desc;
        assert_eq!(
            info(json!({ "status": "failed", "error-desc": "no space" })).as_deref(),
            Some("no space")
        );
        assert_eq!(info(json!({ "status": "failed" })), None);
        let full = json!({ "device": "", "node-name": "layer2", "operation": "write",
            "action": "report", "nospace": true, "reason": "No space left on device" });
        let full: BlockIoError = serde_json::from_value(full).unwrap();
        assert!(full.nospace && full.reason == "No space left on device");
        assert!(!serde_json::from_value::<BlockIoError>(json!({})).unwrap().nospace);
        serde_json::from_value::<Empty>(json!(null)).unwrap_err();
        serde_json::from_value::<Empty>(json!({ "any": 1 })).unwrap();
    }
}
