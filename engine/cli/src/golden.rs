//! `mayfly golden`: build, list, inspect, verify and remove golden images.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use mayfly_engine::Engine;
use mayfly_engine::golden::{self, BuildOptions, Built, FirstSteps, GoldenError, TemplateLimits};
use mayfly_engine::progress::Unit;
use mayfly_golden_images::Recipe;
use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Manifest, Store};
use serde_json::json;

use super::args::{self, Cli};
use super::bars::{self, Shown};
use super::failure::{EXIT_INTERRUPTED, Failure};
use super::interrupt::Interrupts;

pub async fn run(cli: &Cli, command: &args::Golden) -> Result<ExitCode, Failure> {
    match command {
        args::Golden::Build(args) => build(cli, args).await?,
        args::Golden::Ls => list(cli)?,
        args::Golden::Inspect { golden } => {
            let manifest = Store::open_read_only(Layout::from_env().store())?.manifest(golden)?;
            let mut shown = serde_json::to_value(&manifest)?;
            shown["first_steps"] = json!(FirstSteps::of(&manifest).in_words());
            println!("{}", serde_json::to_string_pretty(&shown)?);
        }
        args::Golden::Verify { golden } => return verify(cli, golden.as_deref()).await,
        args::Golden::Rm { goldens } => remove(cli, goldens)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the recipe that the command line names.
pub fn recipe(path: Option<&Path>) -> Result<Recipe, Failure> {
    match path {
        Some(path) => Ok(Recipe::load(path)?),
        None => Ok(Recipe::builtin_default()),
    }
}

async fn build(cli: &Cli, args: &args::BuildArgs) -> Result<(), Failure> {
    // All of them first: a mistake in the last is told before the first is built.
    let mut recipes =
        args.recipes.iter().map(|path| recipe(Some(path))).collect::<Result<Vec<_>, _>>()?;
    if recipes.is_empty() {
        recipes.push(recipe(None)?);
    }
    let mut limits = TemplateLimits::default();
    if let Some(seconds) = args.boot_timeout {
        (limits.boot, limits.docker) = (Duration::from_secs(seconds), Duration::from_secs(seconds));
    }
    let options = BuildOptions { rebuild: args.rebuild, accel: args.accel, limits };
    let builds = Builds::begin(cli).await?;
    for recipe in recipes {
        let begun = Instant::now();
        let built = builds.build(recipe, &options).await?;
        report(cli, &built, begun.elapsed());
    }
    Ok(())
}

/// Builds one golden after the other; Ctrl-C ends the one that is being built.
pub struct Builds {
    engine: Engine,
    progress: Arc<dyn Shown>,
    cancel: Arc<AtomicBool>,
}

impl Builds {
    /// Opens the engine.
    pub async fn begin(cli: &Cli) -> Result<Self, Failure> {
        let progress = bars::for_command(cli);
        let shown = Arc::downgrade(&progress);
        let cancel = Interrupts::install()?.into_flag(move || {
            // What is under way may take seconds to end.
            if let Some(shown) = shown.upgrade() {
                shown.say("stopping the build ...");
            }
        });
        Ok(Self { engine: Engine::open(Layout::from_env()).await?, progress, cancel })
    }

    /// Builds the golden of `recipe`.
    pub async fn build(&self, recipe: Recipe, options: &BuildOptions) -> Result<Built, Failure> {
        let (progress, cancel) = (self.progress.clone(), self.cancel.clone());
        match golden::build(&self.engine, recipe, options, progress, cancel).await {
            Ok(built) => Ok(built),
            Err(error) if error.is_cancelled() => {
                Err(Failure { message: error.to_string(), code: EXIT_INTERRUPTED })
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn report(cli: &Cli, built: &Built, took: Duration) {
    let manifest = &built.manifest;
    if cli.json {
        let mut value = summary(manifest);
        value["up_to_date"] = json!(built.up_to_date);
        value["seconds"] = json!(took.as_secs_f64());
        println!("{value}");
    } else if built.up_to_date {
        println!("{} is up to date", manifest.name);
    } else {
        println!(
            "{} built in {:.1} s: {} stored, working set {} chunks, {}",
            manifest.name,
            took.as_secs_f64(),
            HumanBytes(manifest.stored_bytes()),
            manifest.working_set_chunks,
            manifest.pins.accel
        );
    }
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    json!({
        "name": manifest.name,
        "created_unix_s": manifest.created_unix_s,
        "accel": manifest.pins.accel,
        "vcpus": manifest.vm.vcpus,
        "memory_bytes": manifest.vm.memory_bytes,
        "stored_bytes": manifest.stored_bytes(),
        "base_disk_bytes": manifest.base_disk.len,
        "working_set_chunks": manifest.working_set_chunks,
        "build_key": manifest.build_key,
    })
}

fn list(cli: &Cli) -> Result<(), Failure> {
    let dir = Layout::from_env().store();
    // A store that may not be looked at is not an empty one.
    let there = dir
        .try_exists()
        .map_err(|e| Failure::new(format!("cannot look at {}: {e}", dir.display())))?;
    let entries = if there { Store::open_read_only(dir)?.entries()? } else { Vec::new() };
    if cli.json {
        let goldens: Vec<_> = entries
            .iter()
            .map(|(name, manifest)| match manifest {
                Ok(manifest) => summary(manifest),
                Err(error) => json!({ "name": name, "error": error.to_string() }),
            })
            .collect();
        println!("{}", json!(goldens));
        return Ok(());
    }
    println!(
        "{:<24} {:>5} {:>6} {:>9} {:>10}  CREATED",
        "NAME", "ACCEL", "VCPUS", "MEMORY", "STORED"
    );
    for (name, manifest) in entries {
        match manifest {
            Ok(m) => println!(
                "{:<24} {:>5} {:>6} {:>9} {:>10}  {}",
                name,
                m.pins.accel,
                m.vm.vcpus,
                HumanBytes(m.vm.memory_bytes).to_string(),
                HumanBytes(m.stored_bytes()).to_string(),
                age(m.created_unix_s)
            ),
            Err(error) => println!("{name:<24} damaged: {error}"),
        }
    }
    Ok(())
}

fn age(created_unix_s: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    format!(
        "{} ago",
        indicatif::HumanDuration(Duration::from_secs(now.saturating_sub(created_unix_s)))
    )
}

async fn verify(cli: &Cli, golden: Option<&str>) -> Result<ExitCode, Failure> {
    let cancel = Interrupts::install()?.into_flag(|| {});
    let layout = Layout::from_env();
    let progress = bars::for_command(cli);
    let names = match golden {
        Some(name) => vec![name.to_owned()],
        None => Store::open_read_only(layout.store())?
            .entries()?
            .into_iter()
            .map(|(name, _)| name)
            .collect(),
    };
    let (json, quiet) = (cli.json, cli.quiet);
    let work = move || -> Result<bool, GoldenError> {
        let mut sound = true;
        for name in names {
            sound &= verify_one(&layout, &name, &*progress, &cancel, json, quiet)?;
        }
        Ok(sound)
    };
    match tokio::task::spawn_blocking(work).await? {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Err(Failure::new("damaged; build it again (mayfly golden build --rebuild)")),
        Err(error) if error.is_cancelled() => Err(Failure::interrupted("nothing was changed")),
        Err(error) => Err(error.into()),
    }
}

fn verify_one(
    layout: &Layout,
    name: &str,
    progress: &dyn mayfly_engine::progress::Progress,
    cancel: &AtomicBool,
    json: bool,
    quiet: bool,
) -> Result<bool, GoldenError> {
    let mut begun = false;
    let mut report = |p: mayfly_snapshotter::Progress| {
        if !begun {
            progress.begin(&format!("verify {name}"), Some(p.total_bytes), Unit::Bytes);
            begun = true;
        }
        progress.advance(p.done_bytes);
    };
    let result = golden::verify(layout, name, &mut report, cancel)?;
    progress.end();
    if json {
        println!(
            "{}",
            json!({ "name": name, "chunks": result.chunks, "bytes": result.bytes, "bad": result.problems })
        );
    } else if !quiet {
        println!("{name}: {} chunks, {}", result.chunks, HumanBytes(result.bytes));
        for problem in &result.problems {
            println!("  {problem}");
        }
    }
    Ok(result.problems.is_empty())
}

fn remove(cli: &Cli, goldens: &[String]) -> Result<(), Failure> {
    let layout = Layout::from_env();
    for name in goldens {
        let freed = golden::remove(&layout, name)?;
        if cli.json {
            println!("{}", json!({ "name": name, "freed_bytes": freed }));
        } else if !cli.quiet {
            println!("removed {name}, {} freed", HumanBytes(freed));
        }
    }
    Ok(())
}
