//! Commands, one module for each: its options, its output.

pub mod load;
pub mod peers;
pub mod start;

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use mayfly_bench::error::{BenchError, io};
use serde::Serialize;

/// Writes a report as JSON.
fn write_json(path: &Path, report: &impl Serialize) -> Result<(), BenchError> {
    let bytes = serde_json::to_vec_pretty(report).map_err(|e| io("write", path)(e.into()))?;
    std::fs::write(path, bytes).map_err(io("write", path))
}

/// A bar on standard error, when that is a terminal.
fn bar(length: u64, what: &str) -> ProgressBar {
    let template = format!("{what} {{bar:30}} {{pos}}/{{len}} {{eta}} left {{msg}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
