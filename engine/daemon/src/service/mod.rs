//! The engine as a daemon: a pool of standbys for each golden, admission, live sessions and their
//! journal.
//!
//! [`Service`] is the way in. A request for a session goes through
//!
//! - [`idempotency`]: the same request again gets the same session;
//! - [`admission`]: rate, concurrency and memory bounds, and a queue that is fair between tenants;
//! - [`pool`]: the warmest start there is for the golden, refilled in the background;
//! - [`journal`]: what a dead daemon leaves can be found and removed;
//! - [`registry`] and [`live`]: the sessions in use, until they are discarded for good; [`execs`]
//!   are their background commands, [`readers`] get the output of these, [`docker`] is the host end
//!   of their Docker daemons, [`publish`] that of the ports that their containers publish.
//!
//! [`capacity`] is what the daemon itself holds for them, in [`shares`] of each tenant. [`config`]
//! is what an operator can set, [`host`] one kind of it, [`catalog`] which goldens there are. What
//! clients send
//! and get is in `mayfly-api`.

mod activity;
pub mod admission;
pub mod capacity;
pub mod catalog;
mod ceilings;
pub mod config;
mod create;
mod daemon;
mod deadline;
pub mod docker;
pub mod egress;
pub mod error;
pub mod execs;
mod fair;
pub mod held;
pub mod host;
pub mod idempotency;
pub mod journal;
pub mod kept;
pub mod live;
mod measure;
pub mod pool;
pub mod publish;
mod rate;
pub mod readers;
mod reap;
pub mod registry;
mod request;
mod ring;
mod session_egress;
pub mod shares;
mod state;
mod withdrawn;

pub use activity::ActivityGuard;
pub use config::ServiceConfig;
pub use daemon::Service;
pub use egress::without_daemon;
pub use error::{CreateError, EgressChangeError, LookupError, ServiceError};
pub use execs::{ExecTable, ExecView};
pub use host::Host;
pub use live::LiveSession;
pub use request::{check_limits, vmm_limits};

/// Runs what waits for the disk or the kernel on a thread that may.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
