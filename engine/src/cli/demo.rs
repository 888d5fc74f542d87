//! `mayfly demo`: the whole path once, with figures.

use std::process::ExitCode;
use std::time::Instant;

use indicatif::HumanBytes;
use serde_json::json;

use super::args::{self, Cli};
use super::bars;
use super::failure::{EXIT_INTERRUPTED, Failure};
use super::golden;
use super::interrupt::Interrupts;
use crate::channel::ExecRequest;
use crate::distribution::{Distribution, Summary};
use crate::engine::{Engine, SessionOptions};
use crate::golden::LoadedGolden;
use crate::layout::Layout;
use crate::progress::Unit;
use crate::session::{Session, SessionError};
use std::sync::Arc;

/// What one session of the demo took.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    session: String,
    /// From nothing to the agent's answer, in milliseconds.
    cold_ms: f64,
    /// From a shell to the agent's answer, in milliseconds.
    agent_ms: f64,
    /// From a shell to the Docker API's answer, in milliseconds.
    docker_ms: f64,
    faults: u64,
    paged_in_bytes: u64,
    private_bytes: u64,
    discard_ms: f64,
}

pub async fn run(cli: &Cli, args: &args::Demo) -> Result<ExitCode, Failure> {
    let build = args::Build { recipe: None, rebuild: false, accel: None, boot_timeout: None };
    let built = golden::build(cli, &build).await?;
    let name = built.manifest.name.to_string();
    let engine = Engine::open(Layout::from_env()).await?;
    let golden = engine.golden(&name).await?;
    super::place::warn_of_emulation(&golden);
    let mut interrupts = Interrupts::install()?;
    tokio::select! {
        outcome = show(cli, &engine, &golden, args.sessions) => outcome,
        _ = interrupts.next() => {
            Err(Failure { message: "interrupted; all sessions were discarded".into(), code: EXIT_INTERRUPTED })
        }
    }
}

async fn show(cli: &Cli, engine: &Engine, golden: &Arc<LoadedGolden>, count: u32) -> Result<ExitCode, Failure> {
    let text = !cli.json && !cli.quiet;
    let progress = bars::for_command(cli);
    progress.begin("sessions", Some(u64::from(count)), Unit::Items);
    let mut rows = Vec::new();
    for done in 0..count {
        let (row, session) = measure(engine, golden).await?;
        rows.push(finish(row, session).await?);
        progress.advance(u64::from(done) + 1);
    }
    progress.begin("docker run", None, Unit::Items);
    let (container, container_ms) = container(engine, golden).await?;
    progress.end();

    let column = |value: fn(&Row) -> f64| {
        let mut distribution = Distribution::default();
        rows.iter().for_each(|row| distribution.push(value(row)));
        distribution.summary()
    };
    let summaries = [
        ("cold start -> agent", "ms", column(|r| r.cold_ms)),
        ("shell -> agent", "ms", column(|r| r.agent_ms)),
        ("shell -> docker API", "ms", column(|r| r.docker_ms)),
        ("discard", "ms", column(|r| r.discard_ms)),
        ("uffd faults", "", column(|r| r.faults as f64)),
        ("paged in", "KiB", column(|r| r.paged_in_bytes as f64 / 1024.0)),
        ("private memory", "MiB", column(|r| r.private_bytes as f64 / 1_048_576.0)),
    ];
    if cli.json {
        let summaries: serde_json::Map<_, _> = summaries.iter().map(|(k, _, s)| ((*k).to_owned(), json!(s))).collect();
        println!(
            "{}",
            json!({ "golden": golden.name(), "sessions": rows, "summary": summaries, "docker_run": container, "docker_run_ms": container_ms })
        );
    } else if text {
        print_rows(&rows);
        println!(
            "\n$ mayfly run {} -- docker run --rm busybox ...   ({container_ms:.0} ms)\n{container}",
            golden.name()
        );
        print_summaries(&summaries);
        let accel = golden.shape().accel;
        println!("\nmeasured under {accel} with {}", engine.driver().version(accel));
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(engine: &Engine, golden: &Arc<LoadedGolden>) -> Result<(Row, Session), SessionError> {
    let begun = Instant::now();
    let shell = engine.spawn_shell(golden, &SessionOptions::default()).await?;
    let from_shell = Instant::now();
    let session = shell.start().await?;
    let agent_ms = ms(from_shell);
    let cold_ms = ms(begun);
    session.docker_ping().await?;
    let docker_ms = ms(from_shell);
    let stats = session.pager_stats().await?;
    let row = Row {
        session: session.id().to_owned(),
        cold_ms,
        agent_ms,
        docker_ms,
        faults: stats.counters.faults,
        paged_in_bytes: stats.counters.bytes_filled,
        private_bytes: session.private_memory()?,
        discard_ms: 0.0,
    };
    Ok((row, session))
}

async fn finish(row: Row, session: Session) -> Result<Row, SessionError> {
    let begun = Instant::now();
    session.discard().await?;
    Ok(Row { discard_ms: ms(begun), ..row })
}

async fn container(engine: &Engine, golden: &Arc<LoadedGolden>) -> Result<(String, f64), Failure> {
    let session = engine.start_session(golden, &SessionOptions::default()).await?;
    let script = "echo hello from a container in session $(hostname); uname -a; cat /etc/hostname";
    let command = ["docker", "run", "--rm", "--hostname", "mayfly-demo", "busybox", "sh", "-c", script];
    let begun = Instant::now();
    let run = async { session.guest().exec(ExecRequest::new(command)).await?.output().await };
    let output = session.guarded(run).await?;
    let took = ms(begun);
    session.discard().await?;
    let text = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).trim_end().to_owned();
    if !output.success() {
        return Err(Failure::new(format!("docker run failed in the session: {text}")));
    }
    Ok((text, took))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn print_rows(rows: &[Row]) {
    println!(
        "{:>3} {:<17} {:>9} {:>13} {:>14} {:>7} {:>10} {:>10} {:>9}",
        "#", "session", "cold", "shell->agent", "shell->docker", "faults", "paged in", "private", "discard"
    );
    for (at, row) in rows.iter().enumerate() {
        println!(
            "{:>3} {:<17} {:>6.1} ms {:>10.1} ms {:>11.1} ms {:>7} {:>10} {:>10} {:>6.1} ms",
            at + 1,
            row.session,
            row.cold_ms,
            row.agent_ms,
            row.docker_ms,
            row.faults,
            HumanBytes(row.paged_in_bytes).to_string(),
            HumanBytes(row.private_bytes).to_string(),
            row.discard_ms
        );
    }
}

fn print_summaries(summaries: &[(&str, &str, Summary)]) {
    println!("\n{:<22} {:>9} {:>9} {:>9} {:>9} {:>6}", "", "p50", "p90", "p99", "max", "n");
    for (name, unit, s) in summaries {
        println!("{name:<22} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>6} {unit}", s.p50, s.p90, s.p99, s.max, s.n);
    }
}
