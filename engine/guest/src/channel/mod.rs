//! The host end of the guest channel: identity, commands, files and sockets of one guest.
//!
//! [`Channel::open`] hands the guest its identity and is the first exchange after a restore.
//! Everything after it is a request on a stream of its own. The guest is hostile: whatever bytes it
//! sends, the worst is a [`ChannelError`].

mod buffers;
mod client;
mod clock;
mod driver;
mod egress;
mod error;
mod exec;
mod files;
mod handshake;
mod stream;
mod tar;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

pub use buffers::{Aside, Buffers, SetAside};
pub use client::Channel;
pub use clock::{ClockOffset, GuestClock};
pub use egress::{DnsAnswers, DnsQueries, GuestEgress, ProxyClients};
pub use error::ChannelError;
pub use exec::{ExecControl, ExecHandle, ExecStdin, Output};
pub use files::{Directory, FileReader};
pub use mayfly_protocol::{
    ApplyError, ByteString, DirEntry, DnsMessage, EgressPorts, ExecEvent, ExecRequest, ExitStatus,
    FileKind, FilePath, Followed, GuestError, GuestStats, Health, Hello, HelloAck, ListOptions,
    MAX_CHUNK, MAX_XATTR_BYTES, MAX_XATTRS, Metadata, QuiesceReport, ServiceHealth, ServiceState,
    StartFailure, StatOptions, TtySize, WatchEvent, WatchKind, WriteOptions, Written, Xattr,
    XattrSet, Xattrs,
};
pub use stream::GuestStream;
pub use watch::{Flushed, Watch};
