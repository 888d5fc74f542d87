//! A check: one attack of a kind, and what it hands back.

use futures::future::BoxFuture;

use super::lab::Lab;
use super::options::AuditError;
use super::report::{Attempt, Threat, Vantage};

/// What a check hands back: its attempts, and facts beside them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub attempts: Vec<Attempt>,
    pub notes: Vec<String>,
}

impl Findings {
    pub fn push(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
    }
}

/// Check by attacks of one kind, with all its attempts.
pub struct Check {
    /// Name of the check, `group.subject`.
    pub id: &'static str,
    /// Description of what is tried, in a sentence.
    pub tried: &'static str,
    /// Threat that the attack stands for.
    pub threat: Threat,
    /// Vantage from which the attack is made.
    pub vantage: Vantage,
    /// Description of how the check proves that it can fail.
    pub control: &'static str,
    pub(super) run: for<'a> fn(&'a mut Lab) -> BoxFuture<'a, Result<Findings, AuditError>>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Check {
    /// Returns the group it belongs to.
    pub fn group(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }

    /// Returns whether `name` is the id or the group of the check.
    pub fn is_called(&self, name: &str) -> bool {
        self.id == name || self.group() == name
    }
}
