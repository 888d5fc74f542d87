//! The figures of a run: tables, JSON.

use serde::Serialize;

use super::{Outcome, Plan};
use crate::machine::Machine;
use crate::table::{Table, figure};
use crate::tti::Spread;

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the benchmark, `front-ends`.
    pub benchmark: &'static str,
    /// Name of the golden.
    pub golden: String,
    /// Machine and time of the run.
    pub machine: Machine,
    /// MiB that each command has written.
    pub output_mib: u32,
    /// The native API first.
    pub apis: Vec<ApiFigures>,
}

/// Figures of one API.
#[derive(Debug, Clone, Serialize)]
pub struct ApiFigures {
    /// Name of the API.
    pub api: &'static str,
    /// Milliseconds from the request for a session to the answer.
    pub create_ms: Spread,
    /// MiB/s of a command's output.
    pub output_mib_s: Spread,
}

impl Report {
    /// Computes the figures of `outcome`.
    pub fn new(plan: &Plan, machine: Machine, outcome: Outcome) -> Self {
        let figures = |api, (create_ms, output_mib_s)| ApiFigures { api, create_ms, output_mib_s };
        let apis = vec![
            figures("native", outcome.native.spreads()),
            figures("E2B", outcome.e2b.spreads()),
        ];
        let golden = plan.golden.clone();
        Self { benchmark: "front-ends", golden, machine, output_mib: plan.output_mib, apis }
    }

    /// Returns all tables with their titles.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        vec![("Session created (ms)", self.creates()), ("Output (MiB/s)", self.outputs())]
    }

    fn creates(&self) -> Table {
        let mut table = Table::new(["", "p50", "p95", "p99", "max", "n", "p50 more than native"]);
        for api in &self.apis {
            let more = api.create_ms.p50 - self.apis[0].create_ms.p50;
            let s = api.create_ms;
            table.row([
                api.api.to_owned(),
                figure(s.p50),
                figure(s.p95),
                figure(s.p99),
                figure(s.max),
                s.n.to_string(),
                figure(more),
            ]);
        }
        table
    }

    fn outputs(&self) -> Table {
        let mut table = Table::new(["", "p50", "max", "n", "p50 of native"]);
        for api in &self.apis {
            let native = self.apis[0].output_mib_s.p50;
            let share = if native > 0.0 { api.output_mib_s.p50 / native } else { 0.0 };
            let s = api.output_mib_s;
            let share = format!("{:.0} %", share * 100.0);
            table.row([api.api.to_owned(), figure(s.p50), figure(s.max), s.n.to_string(), share]);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front_ends::Samples;

    #[test]
    fn each_api_is_beside_the_native_one() {
        let plan = Plan { golden: "g".to_owned(), sessions: 1, outputs: 1, output_mib: 1 };
        let samples = |ms, rate| Samples { create_ms: vec![ms], output_mib_s: vec![rate] };
        let outcome = Outcome { native: samples(2.0, 100.0), e2b: samples(2.5, 90.0) };
        let report = Report::new(&plan, Machine::look(), outcome);
        assert_eq!(report.creates().rows[1][6], "0.50");
        assert_eq!(report.outputs().rows[1][4], "90 %");
    }
}
