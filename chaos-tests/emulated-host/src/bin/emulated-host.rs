//! Runs Mayfly's cases in an emulated host: see `docs/src/emulated-hosts.md`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mayfly_emulated_host::case::{Case, Context, Failure};
use mayfly_emulated_host::distribution::Platform;
use mayfly_emulated_host::error::Error;
use mayfly_emulated_host::host::{Host, Settings};
use mayfly_emulated_host::image::Images;
use mayfly_emulated_host::kept_golden::KeptGolden;
use mayfly_emulated_host::machine::DiskCache;
use mayfly_emulated_host::output::Transcript;
use mayfly_emulated_host::payload::{self, Programs};
use mayfly_emulated_host::report::Report;
use mayfly_emulated_host::runner::{Runner, empty_folder, select};
use mayfly_emulated_host::{cases, test_programs};
use nix::sys::signal::{SigSet, Signal};

/// Set by the first signal that asks to end.
static CANCEL: AtomicBool = AtomicBool::new(false);
/// The target of the guest agent.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Bounds on what is run by hand, before they are scaled.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
const EXEC_LIMIT: Duration = Duration::from_secs(3600);
/// Packages that say what a host is.
const NOTABLE: [&str; 4] = ["qemu-system-x86", "systemd", "libc6", "docker-cli"];

/// Boots a stock Debian with a KVM of its own in QEMU, and runs cases in it with the programs that
/// were just built.
#[derive(Debug, Parser)]
#[command(name = "emulated-host")]
struct Cli {
    /// Which host: debian13, debian12 or debian12-backports
    #[arg(long, value_name = "NAME", default_value = "debian13")]
    host: Platform,
    /// Only the cases that run with every change
    #[arg(long)]
    quick: bool,
    /// Take the golden image of an earlier run with the same programs when there is one, else keep
    /// this one's; with --exec the scripts find it
    #[arg(long)]
    reuse_golden: bool,
    /// List the cases instead
    #[arg(long)]
    list: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Show what the cases do and get as it comes
    #[arg(short, long)]
    verbose: bool,
    /// Multiply every bound on time by this
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Memory of the host
    #[arg(long, value_name = "MIB", default_value_t = 6144)]
    memory: u32,
    /// Processors of the host; with more than one the emulator spoils guests that run at the same
    /// time
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Folder for transcripts, journal and console; what is in it is removed
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// An argument for the QEMU that emulates the host; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Run this script in the host instead of cases; may be repeated
    #[arg(long, value_name = "SCRIPT", conflicts_with_all = ["quick", "filters"])]
    exec: Vec<String>,
    /// With --exec: a host without the programs under test, which need not be built
    #[arg(long, requires = "exec")]
    bare: bool,
    /// Only cases whose name has one of these in it
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for case in cases::all() {
            let quick = if case.quick { "quick" } else { "" };
            println!("{:28} {quick:5}  {}", case.name, case.about);
        }
        return ExitCode::SUCCESS;
    }
    end_on_signals();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Error::Interrupted | Error::Golden(mayfly_golden_images::Error::Cancelled)) => {
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("emulated host: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all; `false` when a case or a script failed.
fn run(cli: &Cli) -> Result<bool, Error> {
    let begun = Instant::now();
    let hosts = cache().join("hosts");
    let chosen = if cli.exec.is_empty() {
        select(&cases::all(), &cli.filters, cli.quick)?
    } else {
        Vec::new()
    };
    let programs = if cli.bare { None } else { Some(programs(&chosen)?) };
    let images = Images::new(&hosts, &CANCEL);
    let image = images.get(cli.host.distribution)?;
    let work = images.work_dir()?;
    let write = |programs| payload::write(programs, work.path(), &CANCEL);
    let payload = programs.as_ref().map(write).transpose()?;
    let kept = match (&programs, &payload) {
        (Some(programs), Some(payload)) if cli.reuse_golden => {
            Some(KeptGolden::new(&hosts, cli.host, &image.key, programs, payload.binding)?)
        }
        _ => None,
    };
    let settings = Settings {
        boot: image.boot_files(cli.host)?,
        image: image.disk.clone(),
        payload: payload.map(|payload| payload.disk),
        work: work.path().to_owned(),
        memory_mib: cli.memory,
        cpus: cli.cpus,
        cache: DiskCache::Unsafe,
        scale: cli.scale,
        extra: cli.qemu.clone(),
    };
    let kernel = settings.boot.release.clone();
    let results =
        cli.results.clone().unwrap_or_else(|| hosts.join("results").join(cli.host.to_string()));
    empty_folder(&results)?;
    let mut host = Host::new(settings, &CANCEL);
    if !cli.exec.is_empty() {
        if let Some(disk) = kept.as_ref().and_then(KeptGolden::find) {
            host.set_base(disk);
        }
        return exec(host, cli, &results);
    }
    let mut runner = Runner::new(host, cli.host, &results, cli.verbose, &CANCEL);
    runner.kept = kept;
    let notable =
        |package: &&String| NOTABLE.iter().any(|name| package.split('=').next() == Some(name));
    let mut report = Report {
        host: cli.host.to_string(),
        image: image.key.clone(),
        kernel,
        packages: image.packages.iter().filter(notable).cloned().collect(),
        boots: 0,
        seconds: 0.0,
        cases: Vec::new(),
    };
    runner.run(&chosen, |boots, cases| {
        if let Some(case) = cases.last() {
            eprintln!("{case}");
        }
        (report.boots, report.seconds, report.cases) =
            (boots, begun.elapsed().as_secs_f64(), cases.to_vec());
        report.write(&results.join("report.json"))
    })?;
    if cli.json {
        println!("{}", report.json());
    }
    eprintln!("logs: {}", results.display());
    eprintln!("{}", report.summary());
    Ok(!report.has_failed())
}

/// Runs scripts by hand; what they say goes to standard error.
fn exec(mut host: Host, cli: &Cli, results: &Path) -> Result<bool, Error> {
    let transcript = || Transcript::create(&results.join("exec.log"), true);
    host.boot(None)?;
    let mut all = true;
    if !cli.bare {
        let mut context = Context::new(&mut host, cli.host, transcript()?, INSTALL_LIMIT);
        match context.install() {
            Ok(()) => {}
            Err(Failure::Host(error)) => return Err(error),
            Err(Failure::Failed(detail) | Failure::Skipped(detail)) => {
                return Err(Error::Install { detail });
            }
        }
    }
    let mut transcript = transcript()?;
    for script in &cli.exec {
        match host.run(script, "a script", EXEC_LIMIT, &mut transcript) {
            Ok(output) => all &= output.success(),
            Err(error) => {
                for log in [host.console(), host.journal()] {
                    let _ = std::fs::copy(&log, results.join(log.file_name().unwrap_or_default()));
                }
                return Err(error);
            }
        }
    }
    host.shut_down()?;
    Ok(all)
}

/// What was just built, and what the cases need beside it.
fn programs(chosen: &[Case]) -> Result<Programs, Error> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache().join("target"), PathBuf::from);
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut tests: Vec<&str> = chosen.iter().flat_map(|case| case.tests).copied().collect();
    tests.sort_unstable();
    tests.dedup();
    Ok(Programs {
        release: target.join("release"),
        agent: target.join(AGENT_TARGET).join("release/mayfly-agent"),
        tests: test_programs::build(&checkout, &target, &tests)?,
        files: vec![("systemd".to_owned(), checkout.join("engine/systemd"))],
        // Not those of this host's own goldens, which are sealed with another key: what one has
        // built, the other would build again, and with it what goldens refer to.
        images: cache().join("hosts/artifacts"),
    })
}

/// The launcher's cache.
fn cache() -> PathBuf {
    let home =
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mayfly")
}

/// Lets the signals that ask to end set [`CANCEL`]; a second one ends at once, and the kernel ends
/// the machine.
fn end_on_signals() {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Blocked here, before there is another thread, they are blocked in all; children of
    // std::process begin with none blocked.
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if CANCEL.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
}
