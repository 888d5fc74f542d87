//! JSON types of the HTTP API, and the names that go with them.
//!
//! The daemon, its clients, the command line and the benches share these types. With the feature
//! `openapi` they describe themselves in the daemon's OpenAPI document.

mod background;
mod blob;
pub mod bounded;
mod error;
mod exec;
mod files;
#[cfg(feature = "openapi")]
mod openapi;
mod session;
mod stats;
mod status;
mod tenant;

pub use background::{Background, BackgroundList, Output, Stream};
pub use blob::{Blob, Content};
pub use error::ErrorBody;
pub use exec::{
    Exec, ExecMessage, ExecOutcome, ExecResult, InvalidExec, Keep, STDERR, STDIN, STDOUT,
    SignalBody, StartFailureAs, Terminal, check_signal, check_user,
};
pub use files::{
    Attribute, Change, ChangeKind, Entry, FileStat, Kind, LinkEnd, Listing, Made, Written,
};
pub use session::{
    AttachEvent, CreateSession, EgressPolicy, EgressStatus, Extend, Publish, PublishedPort,
    SessionInfo, SessionLimits, SessionList, StartBreakdown, Tier,
};
pub use stats::{GuestFigures, PagerFigures, SessionStats, VmmFigures};
pub use status::{DiskStatus, GoldenList, GoldenStatus, PoolStatus, ServiceStatus, TierLatency};
pub use tenant::{InvalidTenant, TENANT_HEADER, TenantName};
