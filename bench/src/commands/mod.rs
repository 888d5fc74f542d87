//! Commands, one module for each: its options, its output.

pub mod front_ends;
pub mod load;
pub mod peers;
pub mod start;
pub mod tti;

use std::fmt::Display;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use mayfly_bench::error::{BenchError, io};
use mayfly_bench::machine::Machine;
use mayfly_bench::report::Page;
use mayfly_bench::table::Table;
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;
use serde::Serialize;

/// Prints tables, each below its title.
fn show<T: Display>(tables: impl IntoIterator<Item = (T, Table)>) {
    for (title, table) in tables {
        print!("\n{title}\n{table}");
    }
}

/// Writes a report where it is wanted: as JSON, and as the page that `page` makes of it.
fn write(
    report: &impl Serialize,
    page: impl FnOnce() -> Result<Page, BenchError>,
    json: Option<&Path>,
    html: Option<&Path>,
) -> Result<(), BenchError> {
    if let Some(path) = json {
        write_json(path, report)?;
    }
    if let Some(path) = html {
        std::fs::write(path, page()?.html()).map_err(io("write", path))?;
    }
    Ok(())
}

/// Writes a report as JSON.
fn write_json(path: &Path, report: &impl Serialize) -> Result<(), BenchError> {
    let bytes = serde_json::to_vec_pretty(report).map_err(|e| io("write", path)(e.into()))?;
    std::fs::write(path, bytes).map_err(io("write", path))
}

/// The machine with what runs the golden's guests.
async fn machine(golden: &str) -> Result<Machine, BenchError> {
    let machine = Machine::look();
    let engine = Engine::open(Layout::from_env()).await?;
    let loaded = engine.golden(golden).await?;
    let accel = loaded.shape().accel;
    Ok(machine.with_vmm(engine.driver().version(accel), accel))
}

/// A bar on standard error, when that is a terminal.
fn bar(length: u64, what: &str) -> ProgressBar {
    let template = format!("{what} {{bar:30}} {{pos}}/{{len}} {{eta}} left {{msg}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
