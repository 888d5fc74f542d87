//! Results, for people and for programs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, IoContext as _};

/// Outcome of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The case came out as it should.
    Passed,
    /// The case came out otherwise.
    Failed,
    /// The case was not tried.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// Result of one case.
#[derive(Debug, Clone, Serialize)]
pub struct CaseReport {
    /// Name of the case.
    pub name: String,
    /// Description of what it shows.
    pub about: String,
    /// Outcome of the case.
    pub verdict: Verdict,
    /// Reason why it failed or was skipped; empty when it passed.
    pub reason: String,
    /// Time that it took, with the boot before it where one was needed.
    pub seconds: f64,
    /// The ends of its transcript, the console and the journal, when it failed.
    #[serde(skip)]
    pub tail: Vec<String>,
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7}  {:28} {:7.1} s", self.verdict, self.name, self.seconds)?;
        if !self.reason.is_empty() {
            write!(f, "  {}", self.reason)?;
        }
        self.tail.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the platform.
    pub host: String,
    /// Key of its image.
    pub image: String,
    /// Release of its kernel.
    pub kernel: String,
    /// `name=version` of the packages that matter most.
    pub packages: Vec<String>,
    /// Number of times it was booted.
    pub boots: u32,
    /// Seconds that all took.
    pub seconds: f64,
    /// The cases, in the order in which they ran.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Counts the cases that came out so.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }

    /// Returns whether something failed.
    pub fn has_failed(&self) -> bool {
        self.count(Verdict::Failed) > 0
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        std::fs::write(path, self.json()).context("write", path)
    }

    /// Renders all of it as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the closing line.
    pub fn summary(&self) -> String {
        let [passed, failed, skipped] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped].map(|v| self.count(v));
        format!(
            "{}: {passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
            self.host, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: &[Verdict]) -> Report {
        let case = |verdict: &Verdict| CaseReport {
            name: "doctor".into(),
            about: String::new(),
            verdict: *verdict,
            reason: "why".into(),
            seconds: 1.25,
            tail: vec!["last words".into()],
        };
        Report {
            host: "debian13".into(),
            image: String::new(),
            kernel: String::new(),
            packages: Vec::new(),
            boots: 1,
            seconds: 61.0,
            cases: verdicts.iter().map(case).collect(),
        }
    }

    #[test]
    fn one_failure_is_a_failure() {
        let good = report(&[Verdict::Passed, Verdict::Skipped]);
        assert!(!good.has_failed());
        assert_eq!(good.summary(), "debian13: 1 passed, 0 failed, 1 skipped in 61 s");
        let bad = report(&[Verdict::Passed, Verdict::Failed]);
        assert!(bad.has_failed());
        let line = bad.cases[1].to_string();
        assert!(
            line.starts_with("FAILED   doctor ") && line.contains("1.2 s  why\n    last words"),
            "{line}"
        );
    }
}
