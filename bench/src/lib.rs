//! Micro and macro benchmarks that print latency distributions.
//!
//! `mayfly-bench start` measures session starts; the Criterion benches in `benches/` measure chunking, hashing, store reads
//! and pager fills. They use the engine's public API only.

pub mod machine;
pub mod start;
