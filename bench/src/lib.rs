//! Micro and macro benchmarks that print latency distributions.
//!
//! `mayfly-bench start` measures session starts, `peers` puts them beside other ways to a started
//! sandbox, `load` drives a daemon, `tti` measures what its clients wait for, `front-ends` what other
//! APIs cost beside the native one; the Criterion benches in `benches/` measure chunking, hashing,
//! store reads and pager fills. They use the public interfaces of the engine and of the parts below
//! it.

pub mod docker;
pub mod error;
pub mod front_ends;
pub mod interrupt;
pub mod load;
pub mod machine;
pub mod peers;
pub mod report;
pub mod start;
pub mod table;
pub mod tti;
