//! The figures of a comparison: table, JSON, HTML.

use mayfly_distribution::{Distribution, Summary};
use serde::Serialize;

use super::{Sample, Samples, System};
use crate::error::BenchError;
use crate::machine::Machine;
use crate::report::{Axis, Block, Page, bars, ecdf};
use crate::table::{Table, figure};

/// The figures of one system.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Name of the system.
    pub system: System,
    /// Time from request to answer, in milliseconds: of the agent with its identity, or of the
    /// container's process.
    pub answer_ms: Summary,
    /// Time from request to the first answer of Docker, in milliseconds. Empty for a system without
    /// one.
    pub docker_ms: Summary,
    /// Private memory after the last answer, in MiB.
    pub private_mib: Summary,
    /// CPU time of the VMM, in milliseconds.
    pub cpu_ms: Summary,
    /// Every `answer_ms`, in the order of the rounds.
    pub answers: Vec<f64>,
    /// Every `docker_ms`, in the order of the rounds.
    pub dockers: Vec<f64>,
}

/// Results of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the benchmark, `peers`.
    pub benchmark: &'static str,
    /// Name of the golden.
    pub golden: String,
    /// Machine and time of the run.
    pub machine: Machine,
    /// The figures, one entry for each system.
    pub systems: Vec<Figures>,
}

impl Figures {
    fn new(system: System, samples: &[Sample]) -> Self {
        let of = |value: fn(&Sample) -> Option<f64>| {
            let mut distribution = Distribution::default();
            samples.iter().filter_map(value).for_each(|v| distribution.push(v));
            distribution
        };
        let answers = of(|s| Some(s.answer.as_secs_f64() * 1e3));
        let dockers = of(|s| s.docker.map(|d| d.as_secs_f64() * 1e3));
        Self {
            system,
            answer_ms: answers.summary(),
            docker_ms: dockers.summary(),
            private_mib: of(|s| s.private_mib).summary(),
            cpu_ms: of(|s| s.cpu.map(|d| d.as_secs_f64() * 1e3)).summary(),
            answers: answers.values().to_vec(),
            dockers: dockers.values().to_vec(),
        }
    }
}

/// Which latency a table or plot is about.
#[derive(Clone, Copy)]
struct Latency {
    title: &'static str,
    summary: fn(&Figures) -> Summary,
    values: fn(&Figures) -> &Vec<f64>,
}

const LATENCIES: [Latency; 2] = [
    Latency { title: "start to agent", summary: |f| f.answer_ms, values: |f| &f.answers },
    Latency { title: "start to Docker API", summary: |f| f.docker_ms, values: |f| &f.dockers },
];

impl Report {
    /// Computes the figures of `samples`.
    pub fn new(golden: &str, machine: Machine, samples: &Samples) -> Self {
        let systems =
            samples.iter().map(|(system, samples)| Figures::new(*system, samples)).collect();
        Self { benchmark: "peers", golden: golden.to_owned(), machine, systems }
    }

    /// Returns one table for each latency, then one of what a start holds and costs.
    pub fn tables(&self) -> Vec<(String, Table)> {
        let mut tables: Vec<_> = LATENCIES
            .iter()
            .map(|latency| {
                (format!("{} (ms)", capital(latency.title)), self.latency_table(*latency))
            })
            .collect();
        tables.push(("Memory and CPU of one start".to_owned(), self.cost_table()));
        tables
    }

    fn latency_table(&self, latency: Latency) -> Table {
        let mut table =
            Table::new(["", "starts from", "p50", "p90", "p99", "max", "n", "× standby", "× cold"]);
        let p50 = |system| {
            self.systems.iter().find(|f| f.system == system).map(|f| (latency.summary)(f).p50)
        };
        for figures in &self.systems {
            let s = (latency.summary)(figures);
            if s.n == 0 {
                continue;
            }
            let ratio = |to: Option<f64>| match to.filter(|to| *to > 0.0) {
                Some(to) => figure(s.p50 / to),
                None => "–".to_owned(),
            };
            let head = [figures.system.name().to_owned(), figures.system.starts_from().to_owned()];
            let numbers = [s.p50, s.p90, s.p99, s.max].map(figure);
            let tail = [s.n.to_string(), ratio(p50(System::Standby)), ratio(p50(System::Cold))];
            table.row(head.into_iter().chain(numbers).chain(tail));
        }
        table
    }

    fn cost_table(&self) -> Table {
        let mut table = Table::new(["", "private MiB p50", "max", "VMM CPU ms p50", "max"]);
        for figures in self.systems.iter().filter(|f| f.private_mib.n > 0) {
            let (memory, cpu) = (figures.private_mib, figures.cpu_ms);
            let cpu = if cpu.n > 0 {
                [cpu.p50, cpu.max].map(figure)
            } else {
                ["–", "–"].map(str::to_owned)
            };
            let memory = [memory.p50, memory.max].map(figure);
            table.row([figures.system.name().to_owned()].into_iter().chain(memory).chain(cpu));
        }
        table
    }

    /// Renders the report as a page.
    ///
    /// # Errors
    /// [`BenchError::Plot`].
    pub fn page(&self) -> Result<Page, BenchError> {
        let mut blocks = Vec::new();
        for latency in LATENCIES {
            let measured = || self.systems.iter().filter(|f| (latency.summary)(f).n > 0);
            let named: Vec<_> = measured()
                .map(|f| (f.system.name().to_owned(), (latency.values)(f).clone()))
                .collect();
            let medians: Vec<_> = measured()
                .map(|f| (f.system.name().to_owned(), (latency.summary)(f).p50))
                .collect();
            blocks.push(Block::Heading(format!("{}, in milliseconds", capital(latency.title))));
            blocks.push(Block::Table(self.latency_table(latency)));
            blocks.push(Block::Figure {
                svg: bars(&medians, "p50 in milliseconds, logarithmic")?,
                caption: format!("Median from {}.", latency.title),
            });
            blocks.push(Block::Figure {
                svg: ecdf(&named, Axis { x: "milliseconds, logarithmic", y: "share of starts" })?,
                caption: format!(
                    "Share of starts that took at most so long from {}.",
                    latency.title
                ),
            });
        }
        blocks.push(Block::Heading("Memory and CPU of one start".to_owned()));
        blocks.push(Block::Table(self.cost_table()));
        blocks.push(Block::Text(
            "Private memory is what the VMM has written and shares with nobody, after Docker's first answer. CPU time is \
             that of the VMM process, from the request on."
                .to_owned(),
        ));
        blocks.push(Block::Heading("How it was measured".to_owned()));
        blocks.push(Block::Text(
            "Every round starts each system once, one after another, and ends it before the next. All virtual machines have \
             the same kernel, disk, agent and device model. Mayfly's and stock QEMU's guests are asked through the same \
             code: the clock stops when the agent has taken an identity of its own and answered, and again when Docker has \
             answered GET /_ping through the agent. Stock QEMU runs without the preload library and the pager, with anonymous \
             memory, without a user or cgroup of its own; its snapshot files are in the host's page cache. A container \
             has no kernel, Docker or memory of its own: its start is the floor without isolation by a virtual machine, \
             until its first process has answered."
                .to_owned(),
        ));
        Ok(Page {
            title: "Mayfly beside other ways to start a sandbox".to_owned(),
            lead: format!(
                "From a request to a sandbox that answers, golden image \"{}\". Percentiles are measured values; × is the \
                 ratio of medians.",
                self.golden
            ),
            machine: self.machine.clone(),
            blocks,
        })
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ratios_compare_medians() {
        let sample =
            |ms| Sample::new(Duration::from_millis(ms), Some(Duration::from_millis(2 * ms)));
        let samples = Samples::from([
            (System::Standby, vec![sample(2); 3]),
            (System::LoadVm, vec![sample(900), sample(1000), sample(5000)]),
            (System::Container, vec![Sample::new(Duration::from_millis(10), None)]),
        ]);
        let report = Report::new("default", Machine::look(), &samples);
        let agent = report.latency_table(LATENCIES[0]);
        assert_eq!(
            agent.rows[1][2..],
            ["1000", "5000", "5000", "5000", "3", "500.0", "–"].map(String::from)
        );
        let docker = report.latency_table(LATENCIES[1]);
        assert_eq!(docker.rows.len(), 2, "a container without Docker has no row");
        assert!(report.page().unwrap().html().contains("QEMU -loadvm"));
    }
}
