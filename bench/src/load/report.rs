//! The figures of a load: tables, JSON, HTML.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figures::{ALL, Latencies, Phase, Values};
use super::sampler::{Activity, Sample};
use super::trend::Trend;
use super::{Idle, Outcome, Plan};
use crate::error::BenchError;
use crate::machine::Machine;
use crate::report::{Axis, Block, Page, Series, ecdf, lines};
use crate::table::{Table, figure};

const MIB: f64 = (1 << 20) as f64;

/// A run of the load.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the benchmark, `load`.
    pub benchmark: &'static str,
    /// Name of the golden.
    pub golden: String,
    /// Machine and time of the run.
    pub machine: Machine,
    /// Clients of the closed loop.
    pub workers: u32,
    /// The closed loop.
    pub saturation: Phase,
    /// Sessions per second that the open loop asked for.
    pub asked_rate: f64,
    /// The open loop.
    pub arrivals: Phase,
    /// Memory at rest.
    pub idle: Idle,
    /// Figures that may not grow.
    pub growth: BTreeMap<&'static str, Growth>,
    /// All looks at the processes.
    pub samples: Vec<Sample>,
}

/// Change of a figure over the run. Slopes are per session that ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Growth {
    /// Figure at rest, before the load.
    pub before: Trend,
    /// Figure in the closed loop.
    pub saturation: Trend,
    /// Figure in the open loop.
    pub arrivals: Trend,
    /// Figure at rest, after the load.
    pub after: Trend,
}

/// What is watched: name, unit, and how to read it.
type Watched = (&'static str, fn(&Sample) -> f64);

const WATCHED: [Watched; 5] = [
    ("daemon RSS (MiB)", |s| s.daemon.rss as f64 / MIB),
    ("pager RSS (MiB)", |s| s.pager.rss as f64 / MIB),
    ("VMMs, cgroup memory (MiB)", |s| s.vmm_bytes as f64 / MIB),
    ("daemon descriptors", |s| s.daemon.fds as f64),
    ("pager descriptors", |s| s.pager.fds as f64),
];

/// Name of a latency and where it is.
type Latency = (&'static str, fn(&Latencies) -> &Values);

const LATENCIES: [Latency; 5] = [
    ("agent, client", |l| &l.client_agent),
    ("agent, daemon", |l| &l.daemon_agent),
    ("Docker, client", |l| &l.client_docker),
    ("Docker, daemon", |l| &l.daemon_docker),
    ("queued, daemon", |l| &l.queued),
];

impl Report {
    /// Computes the figures of `outcome`.
    pub fn new(plan: &Plan, machine: Machine, outcome: Outcome) -> Self {
        let Outcome { saturation, arrivals, asked_rate, samples, idle } = outcome;
        let growth =
            WATCHED.iter().map(|(name, value)| (*name, Growth::of(&samples, *value))).collect();
        Self {
            benchmark: "load",
            golden: plan.golden.clone(),
            machine,
            workers: plan.workers,
            saturation,
            asked_rate,
            arrivals,
            idle,
            growth,
            samples,
        }
    }

    fn phases(&self) -> [(String, &Phase); 2] {
        [
            (format!("Saturation, {} clients", self.workers), &self.saturation),
            (format!("Arrivals at {:.1} sessions/s", self.asked_rate), &self.arrivals),
        ]
    }

    /// Returns all tables with their titles.
    pub fn tables(&self) -> Vec<(String, Table)> {
        let mut tables = vec![("Rates".to_owned(), self.rates())];
        for (title, phase) in self.phases() {
            tables.push((format!("{title}: start latency (ms)"), latencies(phase)));
            if let Some(table) = declined(phase) {
                tables.push((format!("{title}: not started"), table));
            }
        }
        tables.push(("Memory at rest (MiB)".to_owned(), self.rest()));
        tables.push(("What may not grow".to_owned(), self.growth()));
        tables
    }

    fn rates(&self) -> Table {
        let mut table = Table::new([
            "",
            "sessions",
            "seconds",
            "sessions/s",
            "slowest window",
            "fastest window",
            "refused",
            "failed",
        ]);
        for (title, phase) in self.phases() {
            let rate = phase.rate();
            let windows = || rate.windows.iter().copied();
            let end = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), figure);
            table.row([
                title,
                phase.sessions().to_string(),
                figure(phase.seconds),
                figure(rate.sustained),
                end(windows().min_by(f64::total_cmp)),
                end(windows().max_by(f64::total_cmp)),
                phase.refused.values().sum::<u64>().to_string(),
                phase.failed.values().sum::<u64>().to_string(),
            ]);
        }
        table
    }

    fn rest(&self) -> Table {
        let mut table = Table::new(["private memory of one VMM", "p50", "p90", "max", "n"]);
        let rows = [
            ("session, idle", self.idle.session_mib),
            ("waiting in the pool", self.idle.waiting_mib),
        ];
        for (name, s) in rows {
            let figures = [s.p50, s.p90, s.max].map(figure);
            table.row([name.to_owned()].into_iter().chain(figures).chain([s.n.to_string()]));
        }
        table
    }

    fn growth(&self) -> Table {
        let mut table = Table::new([
            "",
            "rest before",
            "rest after",
            "max",
            "per 1,000 sessions, saturation",
            "arrivals",
        ]);
        for (name, growth) in
            WATCHED.iter().filter_map(|(name, _)| Some((name, self.growth.get(name)?)))
        {
            let Growth { before, saturation, arrivals, after } = growth;
            let max = [before, saturation, arrivals, after]
                .map(|t| t.max)
                .into_iter()
                .fold(0.0, f64::max);
            let slope = |trend: &Trend| match trend.n {
                0..10 => "–".to_owned(),
                _ => format!("{:+.2}", trend.slope * 1000.0),
            };
            let levels = [before.last, after.last, max].map(figure);
            table.row(
                [(*name).to_owned()]
                    .into_iter()
                    .chain(levels)
                    .chain([slope(saturation), slope(arrivals)]),
            );
        }
        table
    }

    /// Renders the report as a page.
    ///
    /// # Errors
    /// [`BenchError::Plot`].
    pub fn page(&self) -> Result<Page, BenchError> {
        let mut blocks = vec![Block::Heading("Rates".to_owned()), Block::Table(self.rates())];
        let rates = self.rate_series();
        if rates.iter().any(|series| !series.points.is_empty()) {
            blocks.push(Block::Figure {
                svg: lines(&rates, Axis { x: "seconds", y: "sessions per second" })?,
                caption: format!(
                    "Sessions that ended, in windows of {} s.",
                    self.saturation.rate().window_seconds
                ),
            });
        }
        for (title, phase) in self.phases() {
            blocks.push(Block::Heading(format!("{title}: start latency in milliseconds")));
            blocks.push(Block::Table(latencies(phase)));
            for (what, value) in [("the agent's", LATENCIES[0].1), ("Docker's", LATENCIES[2].1)] {
                let named: Vec<_> = phase
                    .starts
                    .iter()
                    .filter(|(_, l)| !value(l).values().is_empty())
                    .map(|(name, l)| (name.clone(), value(l).values().to_vec()))
                    .collect();
                if named.is_empty() {
                    continue;
                }
                blocks.push(Block::Figure {
                    svg: ecdf(&named, Axis { x: "milliseconds, logarithmic", y: "share of starts" })?,
                    caption: format!("Share of starts that took at most so long from the request to {what} answer, as clients saw it."),
                });
            }
            if let Some(table) = declined(phase) {
                blocks.push(Block::Table(table));
            }
        }
        blocks.push(Block::Heading("What may not grow".to_owned()));
        blocks.push(Block::Table(self.growth()));
        blocks.push(Block::Text(
            "At rest is the median of the last tenth of the looks before the first phase and after the last one. The slope \
             is the median of the slopes between all pairs of looks of a phase (Theil and Sen)."
                .to_owned(),
        ));
        let watched = |from: usize, to: usize| -> Vec<Series> {
            WATCHED[from..to].iter().map(|(name, value)| self.over_time(name, *value)).collect()
        };
        let plots = [
            (watched(0, 2), "MiB", "Resident memory of daemon and pager."),
            (
                watched(2, 3),
                "MiB",
                "Memory of all VMMs, running and waiting, as the kernel accounts it.",
            ),
            (watched(3, 5), "descriptors", "Open descriptors of daemon and pager."),
            (self.pool_series(), "VMMs", "Sessions and pool."),
        ];
        for (series, y, caption) in plots {
            let svg = lines(&series, Axis { x: "seconds", y })?;
            blocks.push(Block::Figure { svg, caption: caption.to_owned() });
        }
        blocks.push(Block::Heading("Memory at rest, in MiB".to_owned()));
        blocks.push(Block::Table(self.rest()));
        blocks.push(Block::Text(
            "Private memory is what a VMM has written and shares with nobody. A session has answered, Docker included, and \
             does nothing."
                .to_owned(),
        ));
        Ok(Page {
            title: "Mayfly under load".to_owned(),
            lead: format!(
                "One daemon, golden image \"{}\": every session is asked for over HTTP, waited for until its Docker answers, \
                 and killed. Client and daemon share the machine. Percentiles are measured values.",
                self.golden
            ),
            machine: self.machine.clone(),
            blocks,
        })
    }

    fn over_time(&self, name: &str, value: fn(&Sample) -> f64) -> Series {
        Series {
            name: name.to_owned(),
            points: self.samples.iter().map(|s| (s.at, value(s))).collect(),
        }
    }

    fn pool_series(&self) -> Vec<Series> {
        let shown: [Watched; 4] = [
            ("sessions", |s| s.sessions as f64),
            ("standbys", |s| s.standbys as f64),
            ("shells", |s| s.shells as f64),
            ("requests that wait", |s| s.queued as f64),
        ];
        shown.iter().map(|(name, value)| self.over_time(name, *value)).collect()
    }

    fn rate_series(&self) -> Vec<Series> {
        let of = |(name, phase): &(String, &Phase)| {
            let rate = phase.rate();
            let middle = |at: usize| phase.begun + (at as f64 + 0.5) * rate.window_seconds;
            let points =
                rate.windows.iter().enumerate().map(|(at, value)| (middle(at), *value)).collect();
            Series { name: name.clone(), points }
        };
        self.phases().iter().map(of).collect()
    }
}

impl Growth {
    fn of(samples: &[Sample], value: fn(&Sample) -> f64) -> Self {
        let during = |activity: Activity| {
            let looks = samples.iter().filter(|s| s.activity == activity);
            Trend::of(&looks.map(|s| (s.done as f64, value(s))).collect::<Vec<_>>())
        };
        Self {
            before: during(Activity::Before),
            saturation: during(Activity::Saturation),
            arrivals: during(Activity::Arrivals),
            after: during(Activity::After),
        }
    }
}

fn latencies(phase: &Phase) -> Table {
    let mut table = Table::new(["", "tier", "p50", "p90", "p99", "max", "n"]);
    for (what, value) in LATENCIES {
        // All tiers first, then each of them where there is more than one.
        let tiers = phase.starts.len() - usize::from(phase.starts.contains_key(ALL));
        for (name, latencies) in phase.starts.iter().filter(|(name, _)| tiers > 1 || *name != ALL) {
            let s = value(latencies).summary();
            if s.n > 0 {
                let figures = [s.p50, s.p90, s.p99, s.max].map(figure);
                let head = [what.to_owned(), name.clone()];
                table.row(head.into_iter().chain(figures).chain([s.n.to_string()]));
            }
        }
    }
    table
}

/// Refusals and failures; `None` when there were none.
fn declined(phase: &Phase) -> Option<Table> {
    let mut table = Table::new(["reason", "what", "n"]);
    for (kind, reasons) in [("refused", &phase.refused), ("failed", &phase.failed)] {
        for (reason, n) in reasons {
            table.row([reason.clone(), kind.to_owned(), n.to_string()]);
        }
    }
    (!table.rows.is_empty()).then_some(table)
}
