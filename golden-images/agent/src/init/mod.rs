//! PID 1 of a guest: prepares the system, starts the agent and the services, reaps.

mod identity_mounts;
mod setup;
mod stillness;
mod supervise;
mod sysctl;

pub use setup::mount_all;
pub use supervise::{give_up, power_off, run};
