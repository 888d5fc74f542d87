//! Report of an audit: checks, their attempts and verdicts.

mod facts;
mod html;
mod markdown;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use facts::HostFacts;

/// Longest piece of evidence that a report quotes, in characters.
const LONGEST: usize = 600;

/// Threat that an attack stands for, by whose property it is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threat {
    /// Memory of the host or of another session is read or written.
    Memory,
    /// Files and sockets of the host are reached.
    HostFiles,
    /// Something of another session is seen.
    Neighbour,
    /// What a client proves itself with is read.
    Credentials,
    /// Processes of the host or of another session are seen, signalled or controlled.
    Processes,
    /// Something is reached over a network.
    Network,
    /// Privileges are gained, or the kernel is attacked.
    Privileges,
    /// Devices of the host are reached.
    Devices,
    /// Resources are used up beyond what was granted.
    Resources,
    /// The files that sessions start from are changed.
    Integrity,
}

impl fmt::Display for Threat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::HostFiles => "host files and sockets",
            Self::Neighbour => "a neighbour's data",
            Self::Credentials => "credentials of clients",
            Self::Processes => "processes",
            Self::Network => "network",
            Self::Privileges => "privileges and kernel",
            Self::Devices => "devices",
            Self::Resources => "resources",
            Self::Integrity => "integrity of the golden",
        })
    }
}

/// Position from which an attack is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vantage {
    /// Root in the guest.
    GuestRoot,
    /// Code that has taken over the VMM process.
    TakenOverVmm,
    /// Look at the VMM from the host, which is not an attack.
    HostView,
}

impl fmt::Display for Vantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestRoot => "root in the guest",
            Self::TakenOverVmm => "code in a taken-over VMM",
            Self::HostView => "a look from the host",
        })
    }
}

/// Outcome of a check or of one attempt of it. Ordered by what decides over a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Absence on this host of what would be attacked.
    NotApplicable,
    /// The attack failed, and its control shows that it could have succeeded.
    Held,
    /// The control did not behave as expected, so the outcome proves nothing. Counts as failure.
    NotProven,
    /// The attack succeeded.
    Breach,
}

impl Verdict {
    /// Returns whether the verdict counts as a failure, on which a reviewer has to act.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Breach | Self::NotProven)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotApplicable => "not applicable",
            Self::Held => "held",
            Self::NotProven => "NOT PROVEN",
            Self::Breach => "BREACH",
        })
    }
}

/// Attempt of one thing, with the raw outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Description of what was tried.
    pub what: String,
    /// Outcome of the control.
    pub control: String,
    /// Outcome of the attack.
    pub seen: String,
    /// Verdict that follows.
    pub verdict: Verdict,
}

impl Attempt {
    /// Judges an attempt: `control` and `attack` each are what was seen and whether that is a
    /// success of the attacker. The control must succeed.
    pub fn judge(
        what: impl Into<String>,
        control: (impl Into<String>, bool),
        attack: (impl Into<String>, bool),
    ) -> Self {
        let verdict = match (control.1, attack.1) {
            (_, true) => Verdict::Breach,
            (true, false) => Verdict::Held,
            (false, false) => Verdict::NotProven,
        };
        Self {
            what: what.into(),
            control: quote(&control.0.into()),
            seen: quote(&attack.0.into()),
            verdict,
        }
    }

    /// Creates an attempt on something that this host or guest does not have.
    pub fn not_applicable(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            control: "-".into(),
            seen: quote(&reason.into()),
            verdict: Verdict::NotApplicable,
        }
    }

    /// Creates an attempt that could not be made or observed.
    pub fn not_proven(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            control: "-".into(),
            seen: quote(&reason.into()),
            verdict: Verdict::NotProven,
        }
    }
}

/// Guest bytes may be in it: bounded, without control characters.
fn quote(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = clean.trim();
    match clean.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", &clean[..at]),
        None => clean.to_owned(),
    }
}

/// Findings of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Name of the check, `group.subject`.
    pub id: String,
    /// Description of what is tried, in a sentence.
    pub tried: String,
    /// Threat that the attack stands for.
    pub threat: Threat,
    /// Vantage from which the attack is made.
    pub vantage: Vantage,
    /// Description of how the check proves that it can fail.
    pub control: String,
    /// All attempts with their outcome.
    pub attempts: Vec<Attempt>,
    /// Facts that are no attempts, such as latencies.
    pub notes: Vec<String>,
    /// The whole: the worst of its attempts.
    pub verdict: Verdict,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Returns the worst of several attempts' verdicts; not proven when there are none.
pub fn worst(attempts: &[Attempt]) -> Verdict {
    attempts.iter().map(|attempt| attempt.verdict).max().unwrap_or(Verdict::NotProven)
}

/// The result of an audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The host it ran on.
    pub host: HostFacts,
    /// Name of the golden image that was attacked.
    pub golden: String,
    /// Time at which it began, RFC 3339, UTC.
    pub began: String,
    /// Duration in seconds.
    pub seconds: f64,
    /// Findings of each check, in the order in which they ran.
    pub checks: Vec<CheckReport>,
}

impl Report {
    /// Returns whether every check held or did not apply.
    pub fn passed(&self) -> bool {
        !self.checks.iter().any(|check| check.verdict.is_failure())
    }

    /// Returns how many checks came out as `verdict`.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    /// Summarizes the report in one line.
    pub fn summary(&self) -> String {
        format!(
            "{} checks: {} held, {} BREACH, {} not proven, {} not applicable",
            self.checks.len(),
            self.count(Verdict::Held),
            self.count(Verdict::Breach),
            self.count(Verdict::NotProven),
            self.count(Verdict::NotApplicable)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_without_a_working_control_proves_nothing() {
        let verdict = |control, attack| Attempt::judge("x", ("c", control), ("a", attack)).verdict;
        assert_eq!(verdict(true, false), Verdict::Held);
        assert_eq!(verdict(false, false), Verdict::NotProven);
        assert_eq!(verdict(true, true), Verdict::Breach);
        assert_eq!(verdict(false, true), Verdict::Breach);
    }

    #[test]
    fn the_worst_attempt_decides_and_none_proves_nothing() {
        let held = Attempt::judge("x", ("", true), ("", false));
        let breach = Attempt::judge("x", ("", true), ("", true));
        let absent = Attempt::not_applicable("x", "no such device");
        let unproven = Attempt::not_proven("x", "?");
        assert_eq!(worst(&[]), Verdict::NotProven);
        assert_eq!(worst(&[absent.clone(), held.clone()]), Verdict::Held);
        assert_eq!(worst(&[held.clone(), unproven.clone()]), Verdict::NotProven);
        assert_eq!(worst(&[unproven, breach, held]), Verdict::Breach);
        assert_eq!(worst(&[absent]), Verdict::NotApplicable);
    }

    #[test]
    fn evidence_of_a_guest_is_bounded_and_harmless() {
        let attempt = Attempt::not_proven("x", format!("\u{1b}[31m{}", "a".repeat(5000)));
        assert!(!attempt.seen.contains('\u{1b}') && attempt.seen.len() < LONGEST + 10);
    }
}
