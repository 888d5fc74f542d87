//! What became of a session that was asked for, and what may become of one.

use std::collections::BTreeMap;
use std::fmt;

use mayfly_api::Tier;
use mayfly_client::ClientError;

use crate::plan::{Errand, Fault};

/// Why a request for a session may be refused, by the code of the answer.
const REFUSED: [&str; 8] = [
    "deadline_passed",
    "golden_checking",
    "golden_unusable",
    "journal",
    "overloaded",
    "pressure",
    "queue_full",
    "start_failed",
];
/// Why a session may fail when it was handed out.
const FAILED: [&str; 7] = [
    "bad_gateway",
    "connection_refused",
    "guest_disk_full",
    "guest_failed",
    "guest_lost",
    "session_failed",
    "session_gone",
];
/// What no session may fail with, for no VMM here was taken over: it maps something else than the
/// pager fills.
const NEVER: &str = "does not map the page-cache file";
/// What the next daemon says of a session of a killed one.
const UNKNOWN: &str = "no_such_session";

/// What became of a session.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It did what it should.
    Served(Tier),
    /// There was none, and its client was told why.
    Refused(Reason),
    /// It failed, and its client was told why.
    Failed(Reason),
    /// The connection to the daemon broke.
    Broke(String),
    /// A command in it failed; with what it said.
    Command(String),
    /// Its client went away.
    Vanished,
    /// What was no request was refused with this status, or the connection closed (0).
    Answered(u16),
    /// Anything that must not be.
    Wrong(String),
}

/// A code and a message of the daemon.
#[derive(Debug, Clone)]
pub struct Reason {
    pub code: String,
    pub message: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.word(), self.told().map(|it| format!(": {it}")).unwrap_or_default())
    }
}

impl Outcome {
    /// Tells a refusal from a connection that broke.
    pub fn of(error: &ClientError, as_reason: impl Fn(Reason) -> Self) -> Self {
        match error {
            ClientError::Refused { code, message, .. } if !code.is_empty() => {
                as_reason(Reason { code: code.clone(), message: message.clone() })
            }
            ClientError::Connect { .. }
            | ClientError::Http(_)
            | ClientError::WebSocket(_)
            | ClientError::Io(_) => Self::Broke(error.to_string()),
            _ => Self::Wrong(error.to_string()),
        }
    }

    /// Why this may not be in a round with these faults; `None` when it may.
    pub fn objection(&self, errand: Errand, faults: &[Fault]) -> Option<String> {
        let known = match self {
            Self::Served(_) => errand != Errand::Garbage,
            Self::Refused(reason) => REFUSED.contains(&&*reason.code) && reason.is_told(),
            Self::Failed(reason) => {
                let lost = reason.code == UNKNOWN && faults.contains(&Fault::Daemon);
                (FAILED.contains(&&*reason.code) || lost) && reason.is_told()
            }
            Self::Broke(_) => faults.contains(&Fault::Daemon),
            Self::Command(_) => faults.contains(&Fault::FullDisk),
            Self::Vanished => errand == Errand::Vanish || errand == Errand::Garbage,
            Self::Answered(status) => *status == 0 || (400..500).contains(status),
            Self::Wrong(_) => false,
        };
        (!known).then(|| format!("{errand:?} amid {faults:?}: {self}"))
    }

    /// What its client was told, where that was no success.
    pub fn told(&self) -> Option<String> {
        match self {
            Self::Refused(reason) | Self::Failed(reason) => Some(reason.message.clone()),
            Self::Broke(text) | Self::Command(text) | Self::Wrong(text) => Some(text.clone()),
            Self::Served(_) | Self::Vanished | Self::Answered(_) => None,
        }
    }

    /// Its word in the sums.
    fn word(&self) -> String {
        match self {
            Self::Served(tier) => format!("served {}", tier.word()),
            Self::Refused(reason) => format!("refused {}", reason.code),
            Self::Failed(reason) => format!("failed {}", reason.code),
            Self::Broke(_) => "lost with the daemon".into(),
            Self::Command(_) => "command failed".into(),
            Self::Vanished => "vanished".into(),
            Self::Answered(_) => "garbage refused".into(),
            Self::Wrong(_) => "wrong".into(),
        }
    }
}

impl Reason {
    /// Whether it says more than its code, and nothing that cannot be.
    fn is_told(&self) -> bool {
        self.message.len() > self.code.len() && !self.message.contains(NEVER)
    }
}

/// How many sessions ended how.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<String, usize>);

impl Tally {
    pub fn count(&mut self, outcome: &Outcome) {
        *self.0.entry(outcome.word()).or_default() += 1;
    }

    pub fn sum(&self) -> usize {
        self.0.values().sum()
    }

    /// Sessions whose word begins so.
    pub fn of(&self, word: &str) -> usize {
        self.0.iter().filter(|(key, _)| key.starts_with(word)).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.0.iter().map(|(word, n)| format!("{n} {word}")).collect();
        f.write_str(&counts.join(", "))
    }
}
