//! Lets a test say that it cannot run on this host, and why.
//!
//! The test harness of Rust knows tests that passed, failed or are ignored, which is decided when
//! they are compiled. Whether a host has cgroup v2 shows at run time. A test that finds out that it
//! cannot run calls [`skip`] and returns; `./mayfly test` counts it as skipped, and not as passed.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Variable with the file in which skipped tests are noted; `./mayfly test` sets it.
pub const VARIABLE: &str = "MAYFLY_SKIPPED";

/// Says that the test which calls this cannot run here. The test should return.
///
/// # Panics
/// When the skip cannot be noted where [`VARIABLE`] says, since the test would count as passed.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("skipped: {reason}");
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    // In one line, whatever a program said in several: each line counts as a test.
    let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let line = format!("{test}: {reason}\n");
    // One write, so that tests that run at a time do not mix their lines.
    let noted = OpenOptions::new().append(true).create(true).open(path);
    noted.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is noted");
}
