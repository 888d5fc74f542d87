//! The figures of one phase.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::pool::Pool;
use super::scenario::Scenario;
use super::session::Event;
use crate::load::Attempt;

/// Length in seconds of the windows in which rates are counted.
pub const WINDOW: u32 = 1;
/// Windows at the begin that the slowest one is not looked for in: a full pool makes them fast.
pub const SETTLING: usize = 5;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// A session, and its first command.
    Mayfly,
    /// A container of crun on the host, and its first line.
    Crun,
    /// A container in one session that is there already, by `docker run`.
    DockerRun,
}

impl System {
    /// Returns the name for tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mayfly => "Mayfly",
            Self::Crun => "crun container",
            Self::DockerRun => "docker run in a session",
        }
    }
}

/// Percentiles of measured values by the nearest rank. All 0 when nothing was measured (`n` says
/// so).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are at most this.
    pub p50: f64,
    /// 95 of 100 values are at most this.
    pub p95: f64,
    /// 99 of 100 values are at most this.
    pub p99: f64,
    /// The largest value.
    pub max: f64,
    /// Number of values.
    pub n: usize,
}

impl Spread {
    /// Computes the percentiles of `values`, in any order.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (percent * values.len()).div_ceil(100);
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50: at(50), p95: at(95), p99: at(99), max: at(100), n: values.len() }
    }
}

/// Session of a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds from the begin of the phase to the time at which its request was due.
    pub due: f64,
    /// Milliseconds from then until it was there; absent for what does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_ms: Option<f64>,
    /// Milliseconds from then until its first command had ended, and all of its output was there.
    pub output_ms: f64,
    /// Tier from which it was started; absent for what has no tiers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<&'static str>,
}

/// Latencies from the time a request was due, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Time until the session was there.
    pub create_ms: Spread,
    /// Time until all output of its first command was there.
    pub output_ms: Spread,
}

/// Sessions per second that gave their first output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Number of all of them over the length of the phase.
    pub sustained: f64,
    /// Number in each whole window.
    pub windows: Vec<u32>,
    /// Length of a window in seconds.
    pub window_seconds: u32,
    /// The least of a whole window after the first 5 s; absent where the phase was over by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lowest: Option<u32>,
}

/// Figures of one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Name of the scenario.
    pub scenario: String,
    /// What was asked.
    pub system: System,
    /// Sessions that were alive and did nothing meanwhile.
    pub alive: u32,
    /// Seconds from the begin of the run to that of the phase, when its first request was due.
    pub begun: f64,
    /// Seconds from then to the last output.
    pub seconds: f64,
    /// Latencies of all sessions.
    pub all: Latencies,
    /// Latencies of the sessions by their tier.
    pub tiers: BTreeMap<&'static str, Latencies>,
    /// Refusals by the daemon's word for the reason.
    pub refused: BTreeMap<String, u64>,
    /// Failures by reason.
    pub failed: BTreeMap<String, u64>,
    /// Sessions per second.
    pub rate: Rate,
    /// Pool when the phase began.
    pub pool: Pool,
    /// All sessions, in the order in which they were due.
    pub samples: Vec<Sample>,
    /// Scenario with its times.
    #[serde(skip)]
    pub times: Scenario,
}

impl Latencies {
    fn of<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> Self {
        Self {
            create_ms: Spread::of(samples.clone().filter_map(|s| s.create_ms).collect()),
            output_ms: Spread::of(samples.map(|s| s.output_ms).collect()),
        }
    }
}

impl Phase {
    /// Computes the figures of `events`; `origin` is the begin of the run.
    pub fn new(
        scenario: Scenario,
        system: System,
        origin: Instant,
        pool: Pool,
        mut events: Vec<Event>,
    ) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        events.sort_by_key(|event| event.due);
        let begun = events.first().map_or(origin, |event| event.due);
        let (mut refused, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let (mut samples, mut ends) = (Vec::new(), Vec::new());
        for Event { due, attempt } in events {
            match attempt {
                Attempt::Started(answered) => {
                    let due = due.saturating_duration_since(begun);
                    ends.push(due + answered.output);
                    samples.push(Sample {
                        due: due.as_secs_f64(),
                        create_ms: answered.create.map(ms),
                        output_ms: ms(answered.output),
                        tier: answered.tier.map(mayfly_api::Tier::word),
                    });
                }
                Attempt::Refused { code } => *refused.entry(code).or_default() += 1,
                Attempt::Failed { reason } => *failed.entry(reason).or_default() += 1,
            }
        }
        let tiers = samples.iter().filter_map(|s| s.tier).map(|tier| {
            (tier, Latencies::of(samples.iter().filter(move |s| s.tier == Some(tier))))
        });
        Self {
            scenario: scenario.to_string(),
            system,
            alive: 0,
            begun: begun.saturating_duration_since(origin).as_secs_f64(),
            seconds: ends.iter().max().map_or(0.0, Duration::as_secs_f64),
            all: Latencies::of(samples.iter()),
            tiers: tiers.collect(),
            refused,
            failed,
            rate: Rate::of(&ends),
            pool,
            samples,
            times: scenario,
        }
    }

    /// Sets the number of sessions that were alive and did nothing meanwhile.
    #[must_use]
    pub fn beside_alive(self, alive: u32) -> Self {
        Self { alive, ..self }
    }

    /// Returns the name of the scenario, with the number of sessions that were alive.
    pub fn label(&self) -> String {
        match self.alive {
            0 => self.scenario.clone(),
            alive => format!("{}, {alive} alive", self.scenario),
        }
    }
}

impl Rate {
    /// Computes the rates of outputs that came at these times after the begin.
    fn of(ends: &[Duration]) -> Self {
        let last = ends.iter().max().copied().unwrap_or_default();
        let window =
            |at: &Duration| usize::try_from(at.as_secs() / u64::from(WINDOW)).unwrap_or(usize::MAX);
        // The window of the last output is not a whole one, and does not count.
        let mut windows = vec![0; window(&last)];
        for end in ends {
            if let Some(count) = windows.get_mut(window(end)) {
                *count += 1;
            }
        }
        let seconds = last.as_secs_f64();
        Self {
            sustained: if seconds > 0.0 { ends.len() as f64 / seconds } else { 0.0 },
            lowest: windows.iter().skip(SETTLING).min().copied(),
            windows,
            window_seconds: WINDOW,
        }
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::Tier;

    use super::*;
    use crate::tti::scenario::Spacing;
    use crate::tti::session::Answered;

    #[test]
    fn percentiles_are_measured_values() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(spread, Spread { p50: 100.0, p95: 190.0, p99: 198.0, max: 200.0, n: 200 });
        let spread = Spread::of(vec![7.0, 3.0]);
        assert_eq!(spread, Spread { p50: 3.0, p95: 7.0, p99: 7.0, max: 7.0, n: 2 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn the_lowest_window_is_a_whole_one_after_the_first_five() {
        let rate = |ends: &[f64]| {
            Rate::of(&ends.iter().map(|at| Duration::from_secs_f64(*at)).collect::<Vec<_>>())
        };
        // Nothing in the second, one in the seventh, two in the eighth, the ninth is cut.
        let some = rate(&[0.1, 2.0, 3.5, 4.5, 5.5, 5.6, 6.5, 7.1, 7.2, 8.0]);
        assert_eq!(some.windows, [1, 0, 1, 1, 1, 2, 1, 2]);
        assert_eq!(some.lowest, Some(1));
        assert!((some.sustained - 10.0 / 8.0).abs() < 1e-9);
        assert_eq!(rate(&[5.9]).lowest, None, "over before a whole window");
        assert_eq!(rate(&[0.5, 7.5]).lowest, Some(0), "a window without any");
        assert_eq!(rate(&[]).windows, [0; 0]);
    }

    #[test]
    fn a_phase_tells_tiers_and_reasons_apart() {
        let origin = Instant::now();
        let begun = origin + Duration::from_secs(3);
        let started = |due: u64, tier, ms: u64| Event {
            due: begun + Duration::from_millis(due),
            attempt: Attempt::Started(Answered {
                tier: Some(tier),
                create: Some(Duration::from_millis(ms - 1)),
                output: Duration::from_millis(ms),
            }),
        };
        let other = |attempt| Event { due: begun, attempt };
        let events = vec![
            started(500, Tier::Fork, 1500),
            started(0, Tier::Standby, 10),
            started(250, Tier::Standby, 30),
            other(Attempt::Refused { code: "queue_full".into() }),
            other(Attempt::Failed { reason: "no answer within 5 s".into() }),
        ];
        let scenario = Scenario { count: 5, spacing: Spacing::Every(Duration::from_millis(250)) };
        let phase = Phase::new(scenario, System::Mayfly, origin, Pool::default(), events);
        assert_eq!((phase.begun, phase.seconds), (3.0, 2.0));
        assert_eq!(phase.scenario, "staggered-5");
        let dues: Vec<f64> = phase.samples.iter().map(|s| s.due).collect();
        assert_eq!(dues, [0.0, 0.25, 0.5]);
        assert_eq!((phase.all.output_ms.p50, phase.all.create_ms.max), (30.0, 1499.0));
        assert_eq!(phase.tiers["standby"].output_ms.n, 2);
        assert_eq!(phase.tiers["fork"].output_ms.p50, 1500.0);
        assert_eq!((phase.refused["queue_full"], phase.failed.len()), (1, 1));
        assert_eq!(phase.rate.sustained, 1.5);
    }
}
