//! Scenarios: how many requests are made, and when each of them is due.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::error::BenchError;

/// Requests of `sequential`, unless said otherwise.
pub const SEQUENTIAL: u32 = 100;
/// Time between two requests of `staggered-N`, unless said otherwise.
pub const STAGGER: Duration = Duration::from_millis(200);
/// The most requests of a scenario: each has a task, a connection and a session.
const MOST: u32 = 10_000;

/// A number of requests with their times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Number of requests.
    pub count: u32,
    /// Times of the requests.
    pub spacing: Spacing,
}

/// Times at which requests are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// The next one is due when the last one is done, its session's end included.
    OneByOne,
    /// One after each such time, whatever became of the others.
    Every(Duration),
    /// All are due at the same time.
    AtOnce,
}

impl Scenario {
    /// Scenarios that are run unless others are chosen.
    pub const DEFAULT: [Self; 4] = [
        Self { count: SEQUENTIAL, spacing: Spacing::OneByOne },
        Self { count: 100, spacing: Spacing::AtOnce },
        Self { count: 100, spacing: Spacing::Every(STAGGER) },
        Self { count: 400, spacing: Spacing::AtOnce },
    ];

    /// Returns whether latencies of the two may be compared: how many there are makes no difference
    /// when they come one by one.
    pub fn resembles(&self, other: &Self) -> bool {
        self.spacing == other.spacing
            && (self.spacing == Spacing::OneByOne || self.count == other.count)
    }

    /// Makes the requests with `request`, which is told when each is due, and waits for all of
    /// them. What keeps a request from being made when it is due does not move that time.
    ///
    /// # Errors
    /// [`BenchError`] of the first request that gives one; the others are dropped.
    pub async fn run<T, F>(&self, request: impl Fn(Instant) -> F) -> Result<Vec<T>, BenchError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BenchError>> + Send + 'static,
    {
        let mut outcomes = Vec::new();
        let gap = match self.spacing {
            Spacing::OneByOne => {
                for _ in 0..self.count {
                    outcomes.push(request(Instant::now()).await?);
                }
                return Ok(outcomes);
            }
            Spacing::Every(gap) => gap,
            Spacing::AtOnce => Duration::ZERO,
        };
        let mut requests = JoinSet::new();
        let mut due = Instant::now();
        for at in 0..self.count {
            if at > 0 && !gap.is_zero() {
                due += gap;
                tokio::time::sleep_until(due.into()).await;
            }
            requests.spawn(request(due));
        }
        while let Some(outcome) = requests.join_next().await {
            let lost = |e| BenchError::Daemon(format!("cannot be asked: {e}"));
            outcomes.push(outcome.map_err(lost)??);
        }
        Ok(outcomes)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.spacing {
            Spacing::OneByOne => f.write_str("sequential"),
            Spacing::Every(_) => write!(f, "staggered-{}", self.count),
            Spacing::AtOnce => write!(f, "burst-{}", self.count),
        }
    }
}

/// A text that names no scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no scenario `{0}`: use sequential, burst-N or staggered-N, with N from 1 to {MOST}"
)]
pub struct NoScenario(String);

impl FromStr for Scenario {
    type Err = NoScenario;

    fn from_str(text: &str) -> Result<Self, NoScenario> {
        let none = || NoScenario(text.escape_debug().to_string());
        if text == "sequential" {
            return Ok(Self { count: SEQUENTIAL, spacing: Spacing::OneByOne });
        }
        let (kind, count) = text.rsplit_once('-').ok_or_else(none)?;
        let count = count.parse().ok().filter(|count| (1..=MOST).contains(count));
        let spacing = match kind {
            "burst" => Spacing::AtOnce,
            "staggered" => Spacing::Every(STAGGER),
            _ => return Err(none()),
        };
        Ok(Self { count: count.ok_or_else(none)?, spacing })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for scenario in Scenario::DEFAULT {
            assert_eq!(scenario.to_string().parse(), Ok(scenario));
        }
        let seven = "burst-7".parse::<Scenario>().unwrap();
        assert_eq!(seven, Scenario { count: 7, spacing: Spacing::AtOnce });
        for bad in ["", "burst", "burst-", "burst-0", "burst--1", "burst-10001", "sequential-5"] {
            let error = bad.parse::<Scenario>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn only_bursts_of_one_size_resemble_each_other() {
        let of = |count, spacing| Scenario { count, spacing };
        assert!(of(5, Spacing::OneByOne).resembles(&of(9, Spacing::OneByOne)));
        assert!(!of(5, Spacing::AtOnce).resembles(&of(9, Spacing::AtOnce)));
        assert!(of(5, Spacing::AtOnce).resembles(&of(5, Spacing::AtOnce)));
        assert!(!of(5, Spacing::AtOnce).resembles(&of(5, Spacing::OneByOne)));
    }

    /// Runs a scenario whose requests all wait for each other where they can; returns when each was
    /// due, and how many were under way at most.
    async fn run(scenario: Scenario) -> (Vec<Instant>, usize) {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let request = |due| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, BenchError>(due)
            }
        };
        let mut due = scenario.run(request).await.unwrap();
        due.sort();
        (due, most.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_burst_is_due_as_one_and_a_sequence_one_by_one() {
        let (due, most) = run(Scenario { count: 20, spacing: Spacing::AtOnce }).await;
        assert_eq!((due.len(), most), (20, 20));
        assert!(due.iter().all(|at| *at == due[0]));
        let (due, most) = run(Scenario { count: 20, spacing: Spacing::OneByOne }).await;
        assert_eq!((due.len(), most), (20, 1));
        assert!(due.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[tokio::test]
    async fn a_late_request_was_due_at_its_own_time() {
        let gap = Duration::from_millis(3);
        let scenario = Scenario { count: 5, spacing: Spacing::Every(gap) };
        // Every request holds up the one thread that there is for longer than a gap.
        let request = |due| async move {
            std::thread::sleep(gap * 2);
            Ok::<_, BenchError>(due)
        };
        let mut due = scenario.run(request).await.unwrap();
        due.sort();
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == gap), "{due:?}");
    }

    #[tokio::test]
    async fn one_that_cannot_go_on_ends_the_scenario() {
        let request = |_| async { Err::<(), _>(BenchError::Interrupted) };
        for spacing in [Spacing::AtOnce, Spacing::OneByOne] {
            let outcome = Scenario { count: 3, spacing }.run(request).await;
            assert!(matches!(outcome, Err(BenchError::Interrupted)));
        }
    }
}
