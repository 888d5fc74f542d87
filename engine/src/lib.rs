//! Restores sessions from golden images, runs work in them and discards them.
//!
//! [`Engine`] is the way in: it loads a golden image and starts [`Session`]s from it. The modules, from the outside in:
//!
//! - [`service`] is the engine as a daemon: pools, admission, live sessions, their journal; [`api`] serves it over HTTP,
//!   [`client`] asks it, [`observe`] counts and traces it;
//! - [`golden`] builds golden images (boot, warm, snapshot) and loads them;
//! - [`session`] is the life of one session, an explicit state machine;
//! - [`channel`] is the host end of the guest channel: commands, files, sockets;
//! - [`egress`] is what a session may reach outside, by policy;
//! - [`vmm`] starts and controls virtual machines, [`qmp`] is its protocol to QEMU;
//! - [`pager_host`] runs this host's pager process;
//! - [`cgroup`], [`instance`] and [`layout`] hold what has a name on the host;
//! - [`host`] finds out what this host can do, [`time_scale`] is how slow it is;
//! - [`audit`] attacks sessions and reports what held;
//! - [`distribution`] sums measurements up, [`crun`] starts containers to compare sessions with;
//! - [`cli`] is the `mayfly` command.

pub mod api;
pub mod audit;
pub mod cli;
pub mod crun;
mod engine;
pub mod golden;
pub mod host;
pub mod observe;
pub mod pager_host;
pub mod progress;
pub mod service;
pub mod session;

pub use engine::{Engine, EngineError, SessionOptions};
pub use session::{Session, SessionError, Shell, Standby, Zygote};
