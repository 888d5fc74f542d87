//! `mayfly audit`: the escape suite, and its report.

use std::path::Path;
use std::process::ExitCode;

use mayfly_audit::{AuditOptions, Report, Verdict};
use mayfly_engine::Engine;
use mayfly_host::layout::Layout;
use serde_json::json;

use super::args::{self, Cli};
use super::bars;
use super::failure::{EXIT_INTERRUPTED, Failure};
use super::interrupt::Interrupts;

/// The forms a report can be written in.
#[derive(Debug, Clone, Copy)]
enum Form {
    Markdown,
    Html,
    Json,
}

fn form(path: &Path) -> Result<Form, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => Ok(Form::Markdown),
        Some("html") => Ok(Form::Html),
        Some("json") => Ok(Form::Json),
        _ => Err(Failure::new(format!(
            "cannot write a report to {}: end its name in .md, .html or .json",
            path.display()
        ))),
    }
}

pub async fn run(cli: &Cli, args: &args::AuditArgs) -> Result<ExitCode, Failure> {
    if args.list {
        list(cli);
        return Ok(ExitCode::SUCCESS);
    }
    // Before the audit, which takes minutes.
    let reports = args
        .report
        .iter()
        .map(|path| Ok((path, form(path)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let options = AuditOptions {
        only: args.only.clone(),
        starts: args.starts,
        planted: args.plant.clone(),
        ..AuditOptions::default()
    };
    let engine = Engine::open(Layout::from_env()).await?;
    let mut interrupts = Interrupts::install()?;
    let progress = bars::for_command(cli);
    let report = tokio::select! {
        report = mayfly_audit::run(engine, &args.golden, options, &*progress) => report?,
        _ = interrupts.next() => {
            return Err(Failure { message: "interrupted; all sessions were discarded".into(), code: EXIT_INTERRUPTED });
        }
    };
    drop(progress);
    for (path, form) in reports {
        let text = match form {
            Form::Markdown => report.to_markdown(),
            Form::Html => report.to_html(),
            Form::Json => serde_json::to_string_pretty(&report)?,
        };
        std::fs::write(path, text)
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))?;
    }
    show(cli, &report)?;
    if report.passed() { Ok(ExitCode::SUCCESS) } else { Err(failure(&report)) }
}

fn list(cli: &Cli) {
    if cli.json {
        let checks: Vec<_> = mayfly_audit::checks()
            .map(|check| {
                json!({
                    "id": check.id, "tried": check.tried, "threat": check.threat, "vantage": check.vantage,
                    "control": check.control,
                })
            })
            .collect();
        println!("{}", json!(checks));
        return;
    }
    for check in mayfly_audit::checks() {
        println!("{:<18} {}", check.id, check.tried);
    }
}

fn show(cli: &Cli, report: &Report) -> Result<(), Failure> {
    if cli.json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    if !cli.quiet {
        for warning in &report.host.warnings {
            println!("warning: {warning}\n");
        }
        for check in &report.checks {
            println!(
                "{:<18} {:<14} {:>3} attempts {:>6.1} s",
                check.id,
                check.verdict.to_string(),
                check.attempts.len(),
                check.seconds
            );
            for attempt in check.attempts.iter().filter(|attempt| attempt.verdict.is_failure()) {
                println!(
                    "    {} {}: {} (control: {})",
                    attempt.verdict, attempt.what, attempt.seen, attempt.control
                );
            }
        }
        println!();
    }
    println!("{}", report.summary());
    Ok(())
}

fn failure(report: &Report) -> Failure {
    let named = |verdict| {
        let names = report
            .checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .map(|check| check.id.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    for (verdict, what) in [(Verdict::Breach, "breached"), (Verdict::NotProven, "not proven")] {
        let names = named(verdict);
        if !names.is_empty() {
            parts.push(format!("{what}: {names}"));
        }
    }
    Failure::new(parts.join("; "))
}
