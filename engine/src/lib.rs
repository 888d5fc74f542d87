//! Builds golden images, restores sessions from them, runs work in them and discards them.
//!
//! [`Engine`] is the way in: it loads a golden image and starts [`Session`]s from it.
//!
//! - [`golden`] builds golden images (boot, warm, snapshot) and loads them;
//! - [`session`] is the life of one session, an explicit state machine;
//! - [`pager_host`] runs this host's pager process, [`egress_proxy`] that of the engine's egress;
//! - [`kvm`] finds out whether KVM runs guests here, [`doctor`] what else this host lacks;
//! - [`progress`] is how far long work is.

mod disk_space;
pub mod doctor;
pub mod egress_proxy;
mod engine;
pub mod golden;
pub mod kvm;
pub mod pager_host;
pub mod progress;
pub mod session;

pub use disk_space::DiskUsage;
pub use engine::{Engine, EngineError, SessionOptions};
pub use session::{Session, SessionError, Shell, Standby, Zygote};
