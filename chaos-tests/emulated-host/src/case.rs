//! Cases: what is tried in an emulated host, and how it comes out.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::distribution::Platform;
use crate::error::Error;
use crate::host::Host;
use crate::output::{Output, Transcript};

/// Comes before each script of a case: it ends with the first command that fails, and `mf` asks the
/// daemon.
const PRELUDE: &str = "set -euo pipefail
mf() { curl -sS --fail-with-body --max-time 300 --unix-socket /run/mayfly/mayfly.sock \"$@\"; }
";
/// What makes the programs under test part of a host that has just booted from its image.
pub(crate) const INSTALL: &str = include_str!("install.sh");
/// Bound on that.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

/// Case of one thing to try.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Name of the case, in words joined by hyphens.
    pub name: &'static str,
    /// Description of what it shows, in one line.
    pub about: &'static str,
    /// Bound on all of it, before it is scaled.
    pub limit: Duration,
    /// State that must be there before.
    pub needs: Needs,
    /// Whether it belongs to the part that runs with every change.
    pub quick: bool,
    /// Test targets of the workspace that it runs.
    pub tests: &'static [&'static str],
    /// Tries it.
    pub run: fn(&mut Context<'_, '_>) -> Result<(), Failure>,
}

impl Case {
    /// Case with the settings of most.
    pub const USUAL: Self = Self {
        name: "",
        about: "",
        limit: Duration::from_secs(300),
        needs: Needs::Golden,
        quick: false,
        tests: &[],
        run: |_| Ok(()),
    };
}

/// State that must be there before a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Booted host.
    Host,
    /// A host that runs guests under KVM.
    Kvm,
    /// The default golden image, made under KVM.
    Golden,
}

/// Reason why a case did not pass.
#[derive(Debug)]
pub enum Failure {
    /// The outcome of what was tried was wrong.
    Failed(String),
    /// The case cannot be tried here, for this reason.
    Skipped(String),
    /// The host is at fault, or gone.
    Host(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(format!("what was printed is not the JSON that was expected: {error}"))
    }
}

/// Returns a failure with this message unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::case::Failure::Failed(format!($($message)+)));
        }
    };
}

/// Context that a case works with.
#[derive(Debug)]
pub struct Context<'h, 'a> {
    /// Host of the case.
    pub host: &'h mut Host<'a>,
    /// Platform of the host.
    pub platform: Platform,
    transcript: Transcript,
    deadline: Instant,
    /// Whether the next case needs a host that was booted anew.
    pub(crate) spoiled: bool,
}

impl<'h, 'a> Context<'h, 'a> {
    /// Creates a context for a case with this bound (scaled), from now on.
    pub fn new(
        host: &'h mut Host<'a>,
        platform: Platform,
        transcript: Transcript,
        limit: Duration,
    ) -> Self {
        Self { host, platform, transcript, deadline: Instant::now() + limit, spoiled: false }
    }

    /// Makes the programs part of a host that has just booted.
    ///
    /// # Errors
    /// A unit of the host has failed, or the disk with the programs is not there.
    pub fn install(&mut self) -> Result<(), Failure> {
        let output =
            self.host.run(INSTALL, "the installation", INSTALL_LIMIT, &mut self.transcript)?;
        ensure!(
            output.success(),
            "the programs cannot be installed: {}",
            last_line(&output.stderr)
        );
        Ok(())
    }

    /// Runs a script, whatever comes of it.
    ///
    /// # Errors
    /// The host ends, or the case's time is over.
    pub fn sh(&mut self, script: &str) -> Result<Output, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // The bound was scaled when the case began.
        let limit = left.div_f64(self.host.scale());
        match self.host.run(
            &format!("{PRELUDE}{script}"),
            label(script),
            limit,
            &mut self.transcript,
        ) {
            Err(Error::TimedOut { during, .. }) => {
                Err(Failure::Failed(format!("no time was left for: {during}")))
            }
            other => Ok(other?),
        }
    }

    /// Runs a script that must succeed; returns its standard output.
    ///
    /// # Errors
    /// It fails, or as [`sh`](Self::sh).
    pub fn ok(&mut self, script: &str) -> Result<String, Failure> {
        let output = self.sh(script)?;
        let label = label(script);
        ensure!(
            output.success(),
            "`{label}` failed ({}): {}",
            output.ending(),
            last_line(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Runs a script that must succeed and print JSON.
    ///
    /// # Errors
    /// It fails or prints something else, or as [`sh`](Self::sh).
    pub fn json(&mut self, script: &str) -> Result<Value, Failure> {
        Ok(serde_json::from_str(&self.ok(script)?)?)
    }

    /// Boots the host anew from its last checkpoint, with another wall clock, in seconds since
    /// 1970, when one is given. The next case gets a host with the right one.
    ///
    /// # Errors
    /// It does not come up.
    pub fn reboot(&mut self, clock: Option<u64>) -> Result<(), Failure> {
        self.spoiled = true;
        self.host.boot(clock)?;
        self.install()
    }

    /// Boots the host anew from its last checkpoint, with `words` added to the kernel's command
    /// line. The next case gets a host without them.
    ///
    /// # Errors
    /// It does not come up.
    pub fn reboot_with(&mut self, words: &str) -> Result<(), Failure> {
        self.spoiled = true;
        self.host.boot_with(None, words)?;
        self.install()
    }

    /// Takes the host's power away and boots it with the disk that it had then. The next case gets
    /// another host.
    ///
    /// # Errors
    /// It does not come up.
    pub fn lose_power(&mut self) -> Result<(), Failure> {
        self.spoiled = true;
        self.host.boot_again(None)?;
        self.install()
    }

    /// Adds a line to the transcript.
    pub fn note(&mut self, note: &str) {
        self.transcript.note(note);
    }
}

/// What a script is called: its first line after the functions that it begins with, of at most 60
/// characters.
fn label(script: &str) -> &str {
    let mut lines = script.lines().map(str::trim_end);
    let mut label = "";
    while let Some(line) = lines.next() {
        if line.contains("() {") {
            // One that does not end where it begins ends with a line that is a brace.
            let _ = line.ends_with('}') || lines.by_ref().any(|line| line.trim_start() == "}");
            label = "";
        } else if label.is_empty() {
            label = line.trim_start();
        }
    }
    label.char_indices().nth(60).map_or(label, |(end, _)| &label[..end])
}

/// The last line that says something.
pub(crate) fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn a_script_is_called_by_the_line_after_its_functions() {
        assert_eq!(label("\n  true\nfalse"), "true");
        assert_eq!(
            label("one() { two; }\nthree() {\n    four\n}\n\n    five six\nseven"),
            "five six"
        );
        assert_eq!(
            label("one() { two; }\n        three() {\n            four\n        }\n        five"),
            "five"
        );
        assert_eq!(label(&"x".repeat(70)), "x".repeat(60));
        assert_eq!(label(""), "");
    }
}
