//! `mayfly demo`, as a person runs it.

use std::path::Path;
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::program::{Finished, Program, Running};
use mayfly_chaos_tests::slots::{self, ALL};
use mayfly_chaos_tests::{leaks, program};
use mayfly_host::cgroup;
use nix::sys::signal::Signal;
use serde_json::Value;

/// It boots a guest and builds a golden, under software emulation.
const LIMIT: Duration = Duration::from_secs(400);

fn demo<'a>(home: &Home, args: impl IntoIterator<Item = &'a str>) -> Program {
    home.mayfly(["demo"].into_iter().chain(args)).limit(LIMIT)
}

fn has_crun() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join("crun").is_file())
}

/// The row of a system: its line.
fn row<'a>(ended: &'a Finished, system: &str) -> Option<&'a str> {
    ended
        .stdout
        .lines()
        .find(|line| line.strip_prefix(system).is_some_and(|rest| rest.starts_with("  ")))
}

fn assert_fits_on_a_screen(ended: &Finished) {
    assert!(ended.stdout.lines().count() <= 25, "{ended}");
    assert!(ended.stdout.lines().all(|line| line.chars().count() <= 100), "{ended}");
}

#[test]
fn it_shows_each_way_to_start_on_one_screen_and_tells_how_far_it_is() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let ended = demo(home, ["--rounds", "2"]).run();
    assert!(ended.success(), "{ended}");
    assert_fits_on_a_screen(&ended);
    for (system, starts) in
        [("standby", " 2 "), ("fork", " 2 "), ("cold", " 2 "), ("cold boot", " 1 ")]
    {
        let row = row(&ended, system).unwrap_or_else(|| panic!("no row of {system}: {ended}"));
        assert!(row.contains(starts), "{row}");
    }
    let crun = row(&ended, "crun").unwrap_or_else(|| panic!("no row of crun: {ended}"));
    assert_ne!(has_crun(), crun.contains("install the package crun"), "{crun}");
    assert!(ended.stdout.contains("hello from a container\n"), "{ended}");
    assert!(ended.stdout.contains(&format!("mayfly run {GOLDEN} -- ")), "{ended}");
    for step in ["prepare", "start each in rounds", "docker run"] {
        assert!(
            ended.stderr.lines().any(|line| line.starts_with(&format!("{step}: done in "))),
            "{ended}"
        );
    }
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn its_json_has_every_sample_and_the_figures_of_them() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let ended = demo(home, ["--json", "--rounds", "3"]).run();
    assert!(ended.success(), "{ended}");
    assert_eq!(ended.stderr, "", "{ended}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&report["golden"], &report["rounds"], &report["docker"]),
        (&GOLDEN.into(), &3.into(), &true.into())
    );

    let mut expected = vec![("standby", 3), ("fork", 3), ("cold", 3), ("cold-boot", 1)];
    if has_crun() {
        expected.push(("crun", 3));
    }
    let systems = report["systems"].as_array().unwrap();
    let found: Vec<_> = systems
        .iter()
        .map(|s| (s["system"].as_str().unwrap(), s["samples"].as_array().unwrap().len()))
        .collect();
    assert_eq!(found, expected);
    for system in systems {
        let samples = system["samples"].as_array().unwrap();
        for (at, sample) in samples.iter().enumerate() {
            assert_eq!(sample["round"], at as u64 + 1, "{system}");
            let command = sample["command_ms"].as_f64().unwrap();
            if system["system"] == "crun" {
                assert!(sample["agent_ms"].is_null() && sample["docker_ms"].is_null(), "{system}");
                continue;
            }
            let (agent, docker) =
                (sample["agent_ms"].as_f64().unwrap(), sample["docker_ms"].as_f64().unwrap());
            assert!(
                0.0 < agent && agent < command && command < docker,
                "one after another: {sample}"
            );
        }
        for kind in ["agent_ms", "command_ms", "docker_ms"] {
            let values: Vec<f64> =
                samples.iter().filter_map(|sample| sample[kind].as_f64()).collect();
            match values.iter().copied().max_by(f64::total_cmp) {
                Some(max) => {
                    assert_eq!(
                        (&system[kind]["max"], &system[kind]["n"]),
                        (&max.into(), &values.len().into())
                    );
                    let p50 = system[kind]["p50"].as_f64().unwrap();
                    assert!(
                        values.contains(&p50)
                            && values.iter().filter(|v| **v <= p50).count() * 2 >= values.len()
                    );
                }
                None => assert!(system[kind].is_null(), "{system}"),
            }
        }
    }

    let p50 = |at: usize, kind: &str| systems[at][kind]["p50"].as_f64().unwrap();
    for (ratio, kind) in [("agent", "agent_ms"), ("docker", "docker_ms")] {
        let told = report["standby_sooner"][ratio].as_f64().unwrap();
        assert!((told - p50(3, kind) / p50(0, kind)).abs() < 1e-6 * told, "{report}");
    }
    let missing = report["missing"].as_array().unwrap();
    assert_eq!(missing.len(), usize::from(!has_crun()), "{report}");
    assert_eq!(report["docker_run"]["output"], "hello from a container");
    assert_eq!(report["docker_run"]["command"][0], "docker");
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn quiet_it_says_nothing() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let ended = demo(home, ["-q", "--rounds", "1", "--boots", "0"]).run();
    assert!(ended.success(), "{ended}");
    assert_eq!((&*ended.stdout, &*ended.stderr), ("", ""));
}

#[test]
fn a_golden_without_docker_has_standbys_and_forks_and_no_column_of_docker() {
    let home = Home::with_images();
    let _slots = slots::take(ALL);
    let recipe = home.layout().run().join("plain.toml");
    std::fs::write(&recipe, "name = \"plain\"\n[docker]\nenabled = false\n").unwrap();
    let ended = demo(&home, [recipe.to_str().unwrap(), "--rounds", "1"]).run();
    assert!(ended.success(), "{ended}");
    assert_fits_on_a_screen(&ended);
    for system in ["standby", "fork", "cold", "cold boot"] {
        assert!(row(&ended, system).is_some(), "no row of {system}: {ended}");
    }
    let titles = ended.stdout.lines().find(|line| line.contains("first command")).unwrap();
    assert!(!titles.contains("Docker") && !ended.stdout.contains("docker"), "{ended}");
    assert!(ended.stdout.contains("mayfly run plain -- "), "{ended}");
    assert_eq!(home.leaks_of(ended.pid), []);
}

/// Processes that see a container's root, whose folder is below `dir`.
fn containers_below(dir: &Path) -> Vec<i32> {
    let dir = dir.to_string_lossy().into_owned();
    let sees = |process: &procfs::process::Process| {
        let mounts = process.mountinfo();
        mounts.is_ok_and(|all| {
            all.into_iter().any(|m| m.root.contains(&dir) && m.mount_point == Path::new("/"))
        })
    };
    procfs::process::all_processes()
        .unwrap()
        .flatten()
        .filter(sees)
        .map(|process| process.pid)
        .collect()
}

/// Sends Ctrl-C to a demo when `moment` has come; nothing of it may be left.
fn interrupt(home: &Home, args: &[&str], what: &str, moment: impl Fn(&Running, &Path) -> bool) {
    let temporary = tempfile::tempdir().unwrap();
    let mut running = demo(home, args.iter().copied()).env("TMPDIR", temporary.path()).start();
    running.until(what, |running| moment(running, temporary.path()).then_some(()));
    running.signal(Signal::SIGINT);
    let ended = running.wait();
    assert_eq!(ended.code(), 130, "{what}: {ended}");
    assert!(
        ended.stderr.lines().last().is_some_and(|line| line.starts_with("mayfly: interrupted")),
        "{what}: {ended}"
    );
    assert_eq!(ended.stdout, "", "{what}: {ended}");
    assert_eq!(home.leaks_of(ended.pid), [], "{what}");
    let containers = program::settle(|| containers_below(temporary.path()), Vec::is_empty);
    assert!(containers.is_empty(), "{what}: containers {containers:?}");
    let files: Vec<_> =
        std::fs::read_dir(temporary.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(files.is_empty(), "{what}: {files:?}");
}

/// Whether the engine of process `pid` has a cgroup whose name begins so.
fn has_cgroup(pid: u32, prefix: &str) -> bool {
    let names = |dir: &Path| -> Vec<(String, std::path::PathBuf)> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
            .collect()
    };
    let engines = cgroup::directories("").into_iter().flat_map(|root| names(&root));
    let own = engines.filter(|(name, _)| name.starts_with(&format!("{pid}-")));
    own.flat_map(|(_, dir)| names(&dir)).any(|(name, _)| name.starts_with(prefix))
}

#[test]
fn interrupted_at_any_moment_it_leaves_nothing() {
    let home = Home::shared();
    let _slots = slots::take(ALL);
    let has_vmm = |running: &Running| !leaks::vmms_of(running.pid()).is_empty();
    interrupt(home, &[], "a VMM to fork", |running, _| has_vmm(running));
    let done =
        |running: &Running, step: &str| running.stderr().contains(&format!("{step}: done in "));
    interrupt(home, &["--boots", "0"], "the rounds", |running, _| {
        done(running, "prepare") && has_vmm(running)
    });
    interrupt(home, &[], "a boot", |running, _| has_cgroup(running.pid(), "boot-"));
    let args = ["--rounds", "1", "--boots", "0"];
    interrupt(home, &args, "the container in a session", |running, _| {
        done(running, "start each in rounds")
    });
    if !has_crun() {
        eprintln!("SKIPPED: a container of crun: it is not installed");
        return;
    }
    interrupt(
        home,
        &["--rounds", "1000", "--boots", "0"],
        "a container of crun",
        |running, temporary| done(running, "prepare") && !containers_below(temporary).is_empty(),
    );
}
