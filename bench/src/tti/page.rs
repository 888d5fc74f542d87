//! The figures of a run as a page with plots.

use super::Report;
use super::figures::{Phase, System};
use super::scenario::Spacing;
use crate::error::BenchError;
use crate::report::{Axis, Block, Page, Series, dots, ecdf};

impl Report {
    /// Renders the report as a page.
    ///
    /// # Errors
    /// [`BenchError::Plot`].
    pub fn page(&self) -> Result<Page, BenchError> {
        let mut blocks = Vec::new();
        for (title, table) in self.tables() {
            blocks.push(Block::Heading(title.to_owned()));
            blocks.push(Block::Table(table));
        }
        if self.phases.iter().any(|phase| !phase.samples.is_empty()) {
            blocks.extend(self.plots()?);
        }
        blocks.push(Block::Heading("How it was measured".to_owned()));
        blocks.push(Block::Text(self.method()));
        Ok(Page {
            title: "Time to interactive".to_owned(),
            lead: format!(
                "From a request for a session to the output of its first command, golden image \
                 \"{}\". Percentiles are measured values.",
                self.golden
            ),
            machine: self.machine.clone(),
            blocks,
        })
    }

    fn plots(&self) -> Result<Vec<Block>, BenchError> {
        const Y: &str = "milliseconds, logarithmic";
        let mut blocks = vec![Block::Heading("Over time".to_owned())];
        let whole: Vec<Series> = self.phases.iter().map(over_run).collect();
        blocks.push(Block::Figure {
            svg: dots(&whole, Axis { x: "seconds of the run", y: Y })?,
            caption: "Time to the first output, over when it was due. What is due at once is one \
                      above the other."
                .to_owned(),
        });
        // A burst is due at one time, which its shares tell more of.
        let spaced = |phase: &&Phase| {
            phase.system == System::Mayfly && phase.times.spacing != Spacing::AtOnce
        };
        for phase in self.phases.iter().filter(spaced) {
            let crun = self.beside(phase).map(|crun| Series {
                name: crun.system.name().to_owned(),
                points: crun.samples.iter().map(|s| (s.due, s.output_ms)).collect(),
            });
            let series: Vec<Series> = by_tier(phase).into_iter().chain(crun).collect();
            blocks.push(Block::Figure {
                svg: dots(&series, Axis { x: "seconds of the phase", y: Y })?,
                caption: format!("Time to the first output in {}, by tier.", phase.label()),
            });
        }
        let named: Vec<(String, Vec<f64>)> = self
            .phases
            .iter()
            .map(|phase| (name(phase), phase.samples.iter().map(|s| s.output_ms).collect()))
            .collect();
        blocks.push(Block::Figure {
            svg: ecdf(&named, Axis { x: "milliseconds, logarithmic", y: "share of starts" })?,
            caption: "Share of starts whose first output came within so long.".to_owned(),
        });
        Ok(blocks)
    }
}

fn name(phase: &Phase) -> String {
    format!("{}, {}", phase.system.name(), phase.label())
}

fn over_run(phase: &Phase) -> Series {
    let points = phase.samples.iter().map(|s| (phase.begun + s.due, s.output_ms));
    Series { name: name(phase), points: points.collect() }
}

fn by_tier(phase: &Phase) -> Vec<Series> {
    let of = |tier: &&'static str| {
        let samples = phase.samples.iter().filter(|s| s.tier == Some(*tier));
        Series { name: (*tier).to_owned(), points: samples.map(|s| (s.due, s.output_ms)).collect() }
    };
    phase.tiers.keys().map(of).collect()
}

#[cfg(test)]
mod tests {
    use crate::tti::report::tests::report;

    #[test]
    fn every_session_is_a_dot() {
        let report = report();
        let html = report.page().unwrap().html();
        let sessions: usize = report.phases.iter().map(|phase| phase.samples.len()).sum();
        // The sequence, with crun's, is in a plot of its own as well. Each plot has a legend.
        let legends = report.phases.len() + 2;
        assert_eq!(html.matches("<circle").count(), sessions + 6 + legends);
        assert!(html.contains("POST /v1/sessions") && html.contains("burst-3"));
    }

    #[test]
    fn a_run_without_any_answer_has_a_page() {
        let mut report = report();
        report.phases.iter_mut().for_each(|phase| phase.samples.clear());
        assert!(!report.page().unwrap().html().contains("<circle"));
    }
}
