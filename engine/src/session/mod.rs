//! Sessions: one restore of a golden image each, used once, discarded without a trace.

mod clock;
mod docker;
mod error;
pub mod identity;
mod machine;
mod overlay;
mod paging;
mod resources;
mod running;
mod shell;
mod standby;
mod state;
mod supervisor;
mod zygote;

pub use docker::DockerSocket;
pub use error::SessionError;
pub use overlay::{OverlayError, OverlayTemplate};
pub(crate) use resources::Resources;
pub use running::{Session, StartTimes};
pub use shell::Shell;
pub use standby::Standby;
pub use state::{InvalidTransition, SessionState, StateCell};
pub use zygote::Zygote;

pub(crate) use error::tail;
