//! Boots a stock Debian with cgroup v2, systemd and a KVM of its own, and runs tests in it.

pub mod case;
pub mod cases;
pub mod distribution;
pub mod error;
pub mod guest_agent;
pub mod host;
pub mod image;
pub mod json_lines;
pub mod kept_golden;
pub mod machine;
pub mod output;
pub mod payload;
pub mod progress;
pub mod report;
pub mod runner;
mod stuck;
pub mod test_programs;
