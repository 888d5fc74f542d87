//! The parts of the engine that read a guest's bytes, from their own source files and under their own paths, and what the fuzz
//! targets do with them.
#![allow(missing_docs, dead_code)]

#[path = "../../src/channel/mod.rs"]
pub mod channel;
pub mod cli;
#[path = "../../src/egress/mod.rs"]
pub mod egress;
pub mod hostile;
#[path = "../../src/hop_by_hop.rs"]
pub mod hop_by_hop;
pub mod session;
