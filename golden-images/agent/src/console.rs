//! Messages to the guest's console, which the engine shows when a guest does not become ready.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line to the console, through the kernel log so that it is not torn, or to stderr
/// where there is none.
pub fn say(message: &str) {
    // Level 1 (alert): shown whatever the console's log level is
    // (Documentation/admin-guide/kernel-parameters, loglevel).
    let line = format!("<1>mayfly-agent: {message}\n");
    let written = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        let line = format!("mayfly-agent: {message}\n");
        let console = OpenOptions::new().write(true).open("/dev/console");
        if console.and_then(|mut console| console.write_all(line.as_bytes())).is_err() {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}
