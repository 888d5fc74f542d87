//! The figures of a run: tables, JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::alive::{AliveFigures, Stages};
use super::figures::{Latencies, Phase, SETTLING, Spread, System, WINDOW};
use super::steps::StepFigures;
use super::{Outcome, Plan};
use crate::machine::Machine;
use crate::table::{Table, figure};

const MIB: f64 = (1 << 20) as f64;

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the benchmark, `tti`.
    pub benchmark: &'static str,
    /// Name of the golden.
    pub golden: String,
    /// Machine and time of the run.
    pub machine: Machine,
    /// First command of each session, with its arguments.
    pub command: Vec<String>,
    /// Seconds that a request might wait for its turn.
    pub deadline_seconds: f64,
    /// Whether the sessions of a burst lived until all of it was answered.
    pub hold: bool,
    /// The phases, in the order in which they were run.
    pub phases: Vec<Phase>,
    /// First steps, in their order.
    pub steps: Vec<StepFigures>,
    /// Sessions that were alive and did nothing, and beside which the scenarios were run again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive: Option<AliveFigures>,
}

impl Report {
    /// Computes the figures of `outcome`.
    pub fn new(plan: &Plan, machine: Machine, outcome: Outcome) -> Self {
        Self {
            benchmark: "tti",
            golden: plan.golden.clone(),
            machine,
            command: plan.command.clone(),
            deadline_seconds: plan.deadline.as_secs_f64(),
            hold: plan.hold,
            phases: outcome.phases,
            steps: outcome.steps,
            alive: outcome.alive,
        }
    }

    /// Returns all tables with their titles; those with nothing in them are left out.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        let tables = [
            ("First output (ms)", self.outputs()),
            ("Session created (ms)", self.creates()),
            ("Rates", self.rates()),
            ("Not started", self.declined()),
            ("First steps, p50 of each time in one session (ms)", self.first_steps()),
            ("A session that does nothing", self.idle_sessions()),
            ("Beside them", self.processes()),
        ];
        tables.into_iter().filter(|(_, table)| !table.rows.is_empty()).collect()
    }

    /// Returns the phase of crun in the same scenario.
    pub(super) fn beside(&self, phase: &Phase) -> Option<&Phase> {
        self.phases
            .iter()
            .find(|other| other.system == System::Crun && other.times.resembles(&phase.times))
    }

    /// Latencies to the first output, each beside that of containers of crun in the same scenario.
    pub(super) fn outputs(&self) -> Table {
        let head = ["", "what", "tier", "p50", "p95", "p99", "max", "n", "× crun"];
        let mut table = Table::new(head);
        for phase in &self.phases {
            let crun = self.beside(phase).map(|crun| crun.all.output_ms.p50);
            let crun = crun.filter(|p50| *p50 > 0.0);
            for (tier, latencies) in by_tier(phase) {
                let s = latencies.output_ms;
                let ratio = crun.map_or_else(|| "–".to_owned(), |crun| figure(s.p50 / crun));
                table.row(latency_row(phase, tier, s).chain([ratio]));
            }
        }
        table
    }

    /// Latencies to the session.
    fn creates(&self) -> Table {
        let mut table = Table::new(["", "what", "tier", "p50", "p95", "p99", "max", "n"]);
        for phase in self.phases.iter().filter(|phase| phase.all.create_ms.n > 0) {
            for (tier, latencies) in by_tier(phase) {
                table.row(latency_row(phase, tier, latencies.create_ms));
            }
        }
        table
    }

    fn rates(&self) -> Table {
        let lowest = format!("lowest {WINDOW} s after {} s", u64::from(WINDOW) * SETTLING as u64);
        let mut table = Table::new([
            "",
            "what",
            "answered",
            "seconds",
            "per second",
            &lowest,
            "refused",
            "failed",
            "standbys before",
            "wanted",
            "zygote",
        ]);
        for phase in &self.phases {
            let all = |reasons: &BTreeMap<String, u64>| reasons.values().sum::<u64>().to_string();
            let lowest = phase.rate.lowest.map_or_else(|| "–".to_owned(), |n| n.to_string());
            table.row([
                phase.label(),
                phase.system.name().to_owned(),
                phase.samples.len().to_string(),
                figure(phase.seconds),
                figure(phase.rate.sustained),
                lowest,
                all(&phase.refused),
                all(&phase.failed),
                phase.pool.standbys.to_string(),
                phase.pool.target.to_string(),
                if phase.pool.zygote { "yes" } else { "no" }.to_owned(),
            ]);
        }
        table
    }

    fn declined(&self) -> Table {
        let mut table = Table::new(["reason", "what", "of", "n"]);
        let mut add = |of: String, kind: &str, reasons: &BTreeMap<String, u64>| {
            for (reason, n) in reasons {
                table.row([reason.clone(), kind.to_owned(), of.clone(), n.to_string()]);
            }
        };
        for phase in &self.phases {
            let of = format!("{}, {}", phase.label(), phase.system.name());
            add(of.clone(), "refused", &phase.refused);
            add(of, "failed", &phase.failed);
        }
        for step in &self.steps {
            add(step.step.to_owned(), "failed", &step.failed);
        }
        table
    }

    /// What each step took, the first time and later.
    pub(super) fn first_steps(&self) -> Table {
        let mut table = Table::new(["", "first", "second", "third", "first, max", "n"]);
        for StepFigures { step, times_ms, .. } in &self.steps {
            let medians = times_ms.iter().map(|times| figure(times.p50));
            let first = times_ms[0];
            let tail = [figure(first.max), first.n.to_string()];
            table.row([(*step).to_owned()].into_iter().chain(medians).chain(tail));
        }
        table
    }

    /// What a session takes that does nothing.
    fn idle_sessions(&self) -> Table {
        let mut table = Table::new(["", "p50", "p95", "p99", "max", "n"]);
        if let Some(alive) = &self.alive {
            let rows = [
                ("processor, % of one", alive.processor_percent),
                ("private memory, MiB", alive.private_mib),
            ];
            for (name, spread) in rows {
                table.row([name.to_owned()].into_iter().chain(cells(spread)));
            }
        }
        table
    }

    /// Daemon and pager before there were such sessions, with them, and afterwards.
    fn processes(&self) -> Table {
        let mut table = Table::new(["", "before", "with them", "afterwards"]);
        if let Some(alive) = &self.alive {
            for (name, stages) in [("daemon", alive.daemon), ("pager", alive.pager)] {
                let Stages { before, with, after } = stages;
                let memory = [before, with, after].map(|u| figure(u.rss as f64 / MIB));
                let files = [before, with, after].map(|u| u.fds.to_string());
                table.row([format!("{name}, resident MiB")].into_iter().chain(memory));
                table.row([format!("{name}, descriptors")].into_iter().chain(files));
            }
        }
        table
    }

    /// How it was measured, in a few sentences.
    pub(super) fn method(&self) -> String {
        format!(
            "The time of each session counts from when its request was due: POST /v1/sessions, \
             then the command `{}` over POST /v1/sessions/ID/exec until it has ended and all of \
             its output is there. A request may wait for its turn for {} s. One client asks over \
             the daemon's Unix socket, on the same machine. {} Before each phase the pool could \
             fill. crun starts a shell of the host's own programs, read-only, until it has \
             written a line, and removes the container then; it has no kernel of its own, and \
             is asked for by starting a process. × crun is the ratio of medians.",
            self.command.join(" "),
            figure(self.deadline_seconds),
            if self.hold {
                "The sessions of a burst live until all of it is answered; others are killed as \
                 soon as their output is there."
            } else {
                "A session is killed as soon as its output is there."
            },
        )
    }
}

/// All tiers of a phase, then each of them where there is more than one.
fn by_tier(phase: &Phase) -> impl Iterator<Item = (&'static str, Latencies)> {
    let name = match phase.tiers.keys().next() {
        None => "–",
        Some(only) if phase.tiers.len() == 1 => only,
        Some(_) => "all",
    };
    let each = phase.tiers.iter().filter(|_| phase.tiers.len() > 1).map(|(name, l)| (*name, *l));
    [(name, phase.all)].into_iter().chain(each)
}

fn latency_row(phase: &Phase, tier: &str, s: Spread) -> impl Iterator<Item = String> {
    let head = [phase.label(), phase.system.name().to_owned(), tier.to_owned()];
    head.into_iter().chain(cells(s))
}

/// The percentiles, the largest value, and the number of values.
fn cells(s: Spread) -> impl Iterator<Item = String> {
    [s.p50, s.p95, s.p99, s.max].map(figure).into_iter().chain([s.n.to_string()])
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use mayfly_api::Tier;

    use super::*;
    use crate::load::Attempt;
    use crate::tti::pool::Pool;
    use crate::tti::scenario::Scenario;
    use crate::tti::session::{Answered, Event};

    fn phase(scenario: &str, system: System, answers: &[(Option<Tier>, u64)]) -> Phase {
        let origin = Instant::now();
        let event = |(tier, ms): &(Option<Tier>, u64)| {
            let output = Duration::from_millis(*ms);
            let create = tier.map(|_| output / 2);
            let attempt = Attempt::Started(Answered { tier: *tier, create, output });
            Event { due: origin, attempt }
        };
        let scenario: Scenario = scenario.parse().unwrap();
        let events = answers.iter().map(event).collect();
        Phase::new(scenario, system, origin, Pool::default(), events)
    }

    /// A report of a few phases that differ.
    pub(in crate::tti) fn report() -> Report {
        let (standby, fork) = (Some(Tier::Standby), Some(Tier::Fork));
        let mut refused = phase("burst-3", System::Mayfly, &[(standby, 40), (fork, 90)]);
        refused.refused.insert("queue_full".to_owned(), 1);
        let times_ms = [30.0, 20.0, 10.0].map(|ms| Spread::of(vec![ms; 5]));
        Report {
            benchmark: "tti",
            golden: "default".to_owned(),
            machine: Machine::look(),
            command: vec!["echo".to_owned(), "x".to_owned()],
            deadline_seconds: 60.0,
            hold: false,
            phases: vec![
                phase("sequential", System::Mayfly, &[(standby, 10); 3]),
                phase("sequential", System::Crun, &[(None, 20); 3]),
                refused,
                phase("sequential", System::DockerRun, &[(None, 1000)]),
            ],
            steps: vec![StepFigures { step: "echo x", times_ms, failed: BTreeMap::new() }],
            alive: None,
        }
    }

    #[test]
    fn each_phase_is_beside_crun_in_the_same_scenario() {
        let report = report();
        let outputs = report.outputs();
        let ratios: Vec<&str> = outputs.rows.iter().map(|row| row[8].as_str()).collect();
        // A burst of which crun had none has nothing beside it, neither as a whole nor by tier.
        assert_eq!(ratios, ["0.50", "1.00", "–", "–", "–", "50.0"]);
        let tiers: Vec<&str> = outputs.rows.iter().map(|row| row[2].as_str()).collect();
        assert_eq!(tiers, ["standby", "–", "all", "fork", "standby", "–"]);
        assert_eq!(report.creates().rows.len(), 4, "containers are not created apart");
        assert_eq!(report.rates().rows[2][6], "1");
        let declined = report.declined();
        assert_eq!(declined.rows, [["queue_full", "refused", "burst-3, Mayfly", "1"]]);
        assert_eq!(report.first_steps().rows[0][1..4], ["30.0", "20.0", "10.0"]);
    }

    #[test]
    fn phases_beside_sessions_that_are_alive_are_told_apart() {
        let mut report = report();
        let again = report.phases[0].clone().beside_alive(300);
        report.phases.push(again);
        let usage = |mib: u64| crate::load::Usage { rss: mib << 20, fds: 40 };
        let stages = Stages { before: usage(40), with: usage(52), after: usage(41) };
        report.alive = Some(AliveFigures {
            sessions: 300,
            processor_percent: Spread::of(vec![0.125; 300]),
            private_mib: Spread::of(vec![12.0; 299]),
            daemon: stages,
            pager: stages,
        });
        let outputs = report.outputs();
        let last = outputs.rows.last().unwrap();
        assert_eq!((last[0].as_str(), last[8].as_str()), ("sequential, 300 alive", "0.50"));
        let idle = report.idle_sessions();
        assert_eq!(idle.rows[0][1], figure(0.125));
        assert_eq!((idle.rows[1][1].as_str(), idle.rows[1][5].as_str()), ("12.0", "299"));
        assert_eq!(report.processes().rows[0][1..], ["40.0", "52.0", "41.0"]);
        assert_eq!(report.tables().len(), 7);
    }

    #[test]
    fn tables_with_nothing_in_them_are_left_out() {
        let titles = |report: &Report| -> Vec<&str> {
            report.tables().into_iter().map(|(title, _)| title).collect()
        };
        let mut report = report();
        assert_eq!(titles(&report).len(), 5);
        report.steps.clear();
        report.phases.truncate(2);
        assert_eq!(titles(&report), ["First output (ms)", "Session created (ms)", "Rates"]);
    }
}
