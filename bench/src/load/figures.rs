//! The figures of one phase.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mayfly_api::Tier;
use mayfly_distribution::{Distribution, Summary};
use serde::Serialize;

use super::session::{Attempt, Started};

/// Length of the windows in which rates are counted.
const WINDOW: Duration = Duration::from_secs(2);

/// Request and what came of it.
#[derive(Debug, Clone)]
pub struct Event {
    /// Time at which it was due.
    pub due: Instant,
    /// Time at which its session had ended again, or it was declined.
    pub ended: Instant,
    /// Outcome of the request.
    pub attempt: Attempt,
}

/// Figures of one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Seconds from the begin of the run to that of the phase.
    pub begun: f64,
    /// Length of the phase in seconds.
    pub seconds: f64,
    /// Starts by tier; `all` is all of them together.
    pub starts: BTreeMap<String, Latencies>,
    /// Refusals by the daemon's word for the reason.
    pub refused: BTreeMap<String, u64>,
    /// Failures by reason.
    pub failed: BTreeMap<String, u64>,
    rate: Rate,
}

/// Sessions per second.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// Sessions that were started and ended in the phase, over its length.
    pub sustained: f64,
    /// Sessions that ended in each window.
    pub windows: Vec<f64>,
    /// Length of a window in seconds.
    pub window_seconds: f64,
}

/// Start latencies in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Latencies {
    /// Time from the request to the agent's answer, as the client saw it.
    pub client_agent: Values,
    /// Time from the request to Docker's answer, as the client saw it.
    pub client_docker: Values,
    /// Admission to the agent's answer, as the daemon says.
    pub daemon_agent: Values,
    /// Admission to Docker's answer, as the daemon says.
    pub daemon_docker: Values,
    /// Waiting for admission, as the daemon says.
    pub queued: Values,
}

/// Measured values and their percentiles.
#[derive(Debug, Clone, Default)]
pub struct Values(Distribution);

impl Values {
    fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the percentiles.
    pub fn summary(&self) -> Summary {
        self.0.summary()
    }

    /// Returns the values.
    pub fn values(&self) -> &[f64] {
        self.0.values()
    }
}

impl Serialize for Values {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.summary().serialize(serializer)
    }
}

impl Latencies {
    fn add(&mut self, started: &Started) {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        if let Some(agent) = started.agent {
            self.client_agent.push(ms(agent));
        }
        self.client_docker.push(ms(started.docker));
        self.daemon_agent.push(started.daemon.agent_ms);
        if let Some(docker) = started.daemon.docker_ms {
            self.daemon_docker.push(docker);
        }
        self.queued.push(started.daemon.queued_ms);
    }
}

/// How many whole windows this time has.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time is not negative, and not that long"
)]
fn windows_in(seconds: f64) -> usize {
    (seconds / WINDOW.as_secs_f64()) as usize
}

/// Name of a tier in tables.
fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Cold => "cold",
        Tier::Shell => "shell",
        Tier::Fork => "fork",
        Tier::Standby => "standby",
    }
}

/// Name under which all tiers are counted together.
pub const ALL: &str = "all";

impl Phase {
    /// Computes the figures of `events`, of a phase that began at `begun` and took `length`;
    /// `origin` is the begin of the run.
    pub fn new(origin: Instant, begun: Instant, length: Duration, events: &[Event]) -> Self {
        let seconds = length.as_secs_f64();
        let mut this = Self {
            begun: begun.saturating_duration_since(origin).as_secs_f64(),
            seconds,
            starts: BTreeMap::new(),
            refused: BTreeMap::new(),
            failed: BTreeMap::new(),
            rate: Rate {
                sustained: 0.0,
                windows: Vec::new(),
                window_seconds: WINDOW.as_secs_f64(),
            },
        };
        let mut windows = vec![0u32; windows_in(seconds)];
        let mut sessions = 0u32;
        for event in events {
            match &event.attempt {
                Attempt::Started(started) => {
                    for name in [ALL, tier(started.tier)] {
                        this.starts.entry(name.to_owned()).or_default().add(started);
                    }
                    sessions += 1;
                    let at = windows_in(event.ended.saturating_duration_since(begun).as_secs_f64());
                    // The last window is not a whole one, and does not count.
                    if let Some(window) = windows.get_mut(at) {
                        *window += 1;
                    }
                }
                Attempt::Refused { code } => *this.refused.entry(code.clone()).or_default() += 1,
                Attempt::Failed { reason } => *this.failed.entry(reason.clone()).or_default() += 1,
            }
        }
        this.rate.sustained = if seconds > 0.0 { f64::from(sessions) / seconds } else { 0.0 };
        this.rate.windows = windows.iter().map(|n| f64::from(*n) / WINDOW.as_secs_f64()).collect();
        this
    }

    /// Returns the sessions per second.
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// Returns the number of sessions that were started.
    pub fn sessions(&self) -> usize {
        self.starts.get(ALL).map_or(0, |all| all.client_docker.values().len())
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::StartBreakdown;

    use super::*;

    #[test]
    fn rates_are_counted_in_whole_windows() {
        let begun = Instant::now();
        let event = |at: f64, tier| {
            let daemon = StartBreakdown { queued_ms: 1.0, agent_ms: 2.0, docker_ms: None };
            let docker = Duration::from_millis(7);
            let started = Started { id: String::new(), tier, daemon, agent: None, docker };
            Event {
                due: begun,
                ended: begun + Duration::from_secs_f64(at),
                attempt: Attempt::Started(started),
            }
        };
        let mut events: Vec<Event> =
            (0..20).map(|n| event(f64::from(n) * 0.2, Tier::Standby)).collect();
        events.push(event(4.5, Tier::Cold));
        let refused = Attempt::Refused { code: "queue_full".into() };
        events.push(Event { due: begun, ended: begun, attempt: refused });
        let phase = Phase::new(begun, begun, Duration::from_secs(5), &events);
        assert_eq!(phase.rate().windows, [5.0, 5.0]);
        assert!((phase.rate().sustained - 21.0 / 5.0).abs() < 1e-9);
        assert_eq!((phase.sessions(), phase.refused["queue_full"]), (21, 1));
        assert_eq!(phase.starts["standby"].client_docker.summary().n, 20);
        assert_eq!(phase.starts["cold"].client_docker.summary().p50, 7.0);
        assert_eq!(phase.starts["all"].client_agent.summary().n, 0);
    }
}
