//! Requests, one per yamux stream, and their answers.

use crate::{ByteString, ExecRequest, FilePath, ListOptions, Printable, StatOptions, WriteOptions};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of the virtio-serial port of the channel (`-device virtserialport,name=...`).
pub const PORT_NAME: &str = "mayfly.agent";

/// Upper bound of one piece of streamed content, in bytes.
pub const MAX_CHUNK: usize = 64 * 1024;

/// The first frame of every stream, at most [`crate::MAX_REQUEST`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a command; [`crate::ExecInput`] and [`crate::ExecOutput`] follow.
    Exec(ExecRequest),
    /// Connects to a Unix stream socket of the guest. `Reply<()>`, then a [`crate::Duplex`] of raw
    /// bytes.
    Connect {
        /// Path of the socket.
        path: ByteString,
    },
    /// Connects to a TCP port of the guest's loopback interface, 127.0.0.1 first, then ::1. Goes on
    /// like [`Request::Connect`].
    ConnectTcp {
        /// Number of the port, not 0.
        port: u16,
    },
    /// Listens for the proxy clients and DNS queries of the guest until the engine ends the stream.
    /// `Reply<EgressPorts>` when it listens, then [`crate::DnsMessage`]s both ways: queries up,
    /// answers down. One at a time.
    Egress,
    /// Takes the next proxy client of the guest while [`Request::Egress`] is there. `Reply<()>`
    /// when one has connected, which may be never, then a [`crate::Duplex`] of raw bytes.
    EgressAccept,
    /// Reads a regular file. `Reply<Metadata>`, then [`crate::FileChunk`]s.
    ReadFile {
        /// The file.
        at: FilePath,
        /// First byte to send.
        offset: u64,
        /// Most bytes to send.
        limit: u64,
    },
    /// Writes a file. `Reply<()>`, then [`crate::FileChunk`]s from the engine, then
    /// `Reply<Written>`.
    WriteFile {
        /// The file.
        at: FilePath,
        /// How it is written.
        options: WriteOptions,
    },
    /// Lists a directory. `Reply<Vec<DirEntry>>` frames, the last one empty. A directory comes
    /// before what is in it.
    List {
        /// The directory.
        at: FilePath,
        /// What the list has.
        options: ListOptions,
    },
    /// `Reply<Metadata>`.
    Stat {
        /// Path to describe.
        at: FilePath,
        /// What to tell.
        options: StatOptions,
    },
    /// Makes a directory. `Reply<bool>`: whether it was made, or was there.
    Mkdir {
        /// The directory to make.
        at: FilePath,
        /// Permission bits, at most 0o7777.
        mode: u32,
        /// Whether to make missing parents too, and accept that it is there already.
        parents: bool,
    },
    /// Removes a file, a link or a directory. `Reply<()>`.
    Remove {
        /// What to remove.
        at: FilePath,
        /// Whether to remove what is in a directory, too.
        recursive: bool,
        /// Whether it is fine that there is nothing.
        force: bool,
    },
    /// rename(2). `Reply<()>`.
    Rename {
        /// What to rename.
        from: FilePath,
        /// Path that it gets, of the same user.
        to: ByteString,
        /// Whether to make missing directories above the new path (0o755, the user's).
        parents: bool,
    },
    /// Packs a file or a directory tree into a tar archive. `Reply<()>`, then
    /// [`crate::FileChunk`]s.
    ///
    /// The names in it begin with the last component of the path. It holds regular files,
    /// directories, symbolic and hard links, with modes, owners and times in seconds; sockets,
    /// pipes and devices are left out, other file systems are not entered.
    PackTar {
        /// What to pack.
        at: FilePath,
        /// Whether the holes of sparse files are left out, in the old format of GNU tar.
        sparse: bool,
    },
    /// Unpacks a tar archive below a directory. `Reply<()>`, then [`crate::FileChunk`]s from the
    /// engine, then `Reply<u64>` with the bytes of file content.
    ///
    /// A leading `/` of a name is dropped; a name with `..`, or that leads out through a symbolic
    /// link, a device or a pipe is an error. What was unpacked before an error stays.
    UnpackTar {
        /// The directory, which must exist.
        at: FilePath,
    },
    /// Tells of changes until the engine ends the stream. `Reply<()>` when the watch is in place,
    /// then [`crate::WatchOutput`]s, and [`crate::WatchInput`]s of the engine.
    Watch {
        /// A directory, or one file.
        at: FilePath,
        /// Whether to watch all directories below, too, those that are made later included.
        /// Symbolic links are not followed.
        recursive: bool,
    },
    /// `Reply<Health>`.
    Health,
    /// `Reply<GuestStats>`.
    Stats,
    /// Adjusts the wall clock of the guest, and tells what it is then. `Reply<u64>`: nanoseconds
    /// since the Unix epoch.
    ///
    /// The guest steps its clock. Its other clocks, and with them timers, go on as before.
    Clock {
        /// Nanoseconds to add; 0 only asks.
        adjust_ns: i64,
    },
    /// Waits until the services are ready. `Reply<Health>`; on failure the message holds the end of
    /// the service's log.
    WaitReady {
        /// Milliseconds after which to give up.
        timeout_ms: u64,
    },
    /// Makes the guest small and still before a snapshot. `Reply<QuiesceReport>`.
    Quiesce,
    /// Back to the parked phase. `Reply<()>`, then [`crate::PARKED_MAGIC`] outside of yamux.
    Park,
    /// Writes back the disks and turns the guest off. `Reply<()>` comes first.
    PowerOff,
}

/// Reply to most requests.
pub type Reply<T> = Result<T, GuestError>;

/// A failure in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", Printable(message))]
pub struct GuestError {
    /// errno(3), or 0 where no system call failed.
    pub errno: i32,
    /// Message that says what was tried and why it failed. Displayed as [`Printable`].
    pub message: String,
}

impl GuestError {
    /// Creates a failure with no system call behind it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { errno: 0, message: message.into() }
    }

    /// Creates the failure of a system call while doing `what`.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(0), message: format!("{what}: {error}") }
    }
}

/// State of a service of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// The service is not started yet.
    Waiting,
    /// The service runs as this process.
    Running(u32),
    /// Ended with this code; it is never restarted.
    Exited(i32),
    /// Ended by this signal; it is never restarted.
    Killed(i32),
    /// Could not be started, with the reason.
    Failed(String),
}

/// Health of one service of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceHealth {
    /// Name of the service in `/etc/mayfly/services`.
    pub name: String,
    /// State of the service.
    pub state: ServiceState,
}

/// Health of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Session id of the last [`crate::Hello`].
    pub session: String,
    /// Services in their order of start.
    pub services: Vec<ServiceHealth>,
    /// Whether the Docker API answered a ping; `None` when the guest has no such readiness rule.
    pub docker: Option<bool>,
    /// Milliseconds since the guest booted (before the snapshot).
    pub uptime_ms: u64,
    /// Bytes of memory in all.
    pub memory_total: u64,
    /// Bytes of memory available to new programs.
    pub memory_available: u64,
}

/// Result of [`Request::Quiesce`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuiesceReport {
    /// Bytes of the root file system trimmed; `None` where its device cannot discard.
    pub trimmed: Option<u64>,
    /// Bytes of free memory that are zero now.
    pub zeroed: u64,
    /// Bytes of memory free afterwards.
    pub memory_free: u64,
    /// Milliseconds it took.
    pub elapsed_ms: u64,
    /// The steps in their order, with the milliseconds each took.
    pub steps_ms: Vec<(String, u64)>,
    /// Steps that failed and were passed over, one line each.
    pub skipped: Vec<String>,
}
