//! The handlers, by what they are about. [`super::router`] has them all.

pub mod attach;
pub mod background;
pub mod daemon;
pub mod docker;
pub mod exec;
pub mod exec_socket;
pub mod files;
pub mod ports;
pub mod sessions;
pub mod stats;
pub mod tar;
pub mod watch;
