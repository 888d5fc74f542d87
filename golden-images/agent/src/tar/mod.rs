//! Tar archives of files and directory trees, both ways.
//!
//! The agent only moves bytes; the archive is made or read in a process of its own
//! ([`crate::exec::Helper`]).

mod pack;
mod serve;
mod unpack;
mod who;

pub use serve::{pack, pack_main, unpack, unpack_main};
