//! Ctrl-C at any moment.

use std::fs;
use std::process::Command;
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home, program_path};
use mayfly_chaos_tests::program::Running;
use mayfly_chaos_tests::terminal::OnTerminal;
use mayfly_chaos_tests::{leaks, slots};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(200);
const INTERRUPTED: i32 = 130;

/// Sends Ctrl-C to a build when `moment` has come; it must stop with nothing changed.
fn interrupt_build(
    home: &Home,
    args: &[&str],
    what: &str,
    moment: impl FnMut(&Running) -> Option<()>,
) {
    let mut build = home
        .mayfly(["golden", "build"].into_iter().chain(args.iter().copied()))
        .limit(LIMIT)
        .start();
    build.until(what, moment);
    build.signal(Signal::SIGINT);
    let ended = build.wait();
    assert_eq!(ended.code(), INTERRUPTED, "{what}: {ended}");
    let complaints: Vec<_> =
        ended.stderr.lines().filter(|line| line.starts_with("mayfly: ")).collect();
    let unchanged = ["nothing was changed", "nothing was kept"];
    assert!(
        complaints.len() == 1 && unchanged.iter().any(|end| complaints[0].ends_with(end)),
        "{what}: one clear line is missing: {ended}"
    );
    assert_eq!(home.leaks_of(ended.pid), [], "{what}");
}

#[test]
fn a_build_stops_while_it_installs_packages() {
    let home = Home::with_golden();
    let before = home.manifest();
    let recipe = home.layout().run().join("other.toml");
    fs::write(
        &recipe,
        "name = \"other\"\n[debian]\npackages = [\"sl\"]\n[docker]\nenabled = false\n",
    )
    .unwrap();
    let work = home.layout().images().join("rootfs");
    interrupt_build(&home, &[recipe.to_str().unwrap()], "packages being installed", |_| {
        let building = fs::read_dir(&work).into_iter().flatten().flatten();
        let mut building =
            building.filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"));
        building
            .any(|entry| fs::read_dir(entry.path()).is_ok_and(|dir| dir.count() > 0))
            .then_some(())
    });
    assert_eq!(home.manifest(), before);
}

#[test]
fn a_build_stops_while_the_guest_boots() {
    let home = Home::with_images();
    let _slot = slots::take(1);
    interrupt_build(&home, &["--accel", "tcg"], "a booting guest", |build| {
        (!leaks::vmms_of(build.pid()).is_empty()).then_some(())
    });
}

#[test]
fn a_build_stops_while_the_snapshot_is_stored() {
    let home = Home::with_images();
    let _slot = slots::take(1);
    let packs = home.layout().store().join("packs");
    interrupt_build(&home, &["--accel", "tcg"], "a snapshot being stored", |_| {
        fs::read_dir(&packs).is_ok_and(|dir| dir.count() > 0).then_some(())
    });
    let listed = home.mayfly(["--json", "golden", "ls"]).run();
    assert_eq!((listed.code(), listed.stdout.trim()), (0, "[]"), "{listed}");
}

#[test]
fn a_session_is_discarded_before_its_command_and_while_it_runs() {
    let home = Home::shared();
    let _slot = slots::take(1);
    // While the VMM is starting.
    let mut starting = home.mayfly(["run", GOLDEN, "--", "sleep", "1000"]).start();
    starting.until("a VMM", |running| (!leaks::vmms_of(running.pid()).is_empty()).then_some(()));
    starting.signal(Signal::SIGINT);
    let ended = starting.wait();
    assert_eq!(ended.code(), INTERRUPTED, "{ended}");
    assert!(ended.complaint().contains("interrupted"), "{ended}");
    assert_eq!(home.leaks_of(ended.pid), []);
    // While the command runs, one that ends at the signal and one that does not.
    for script in ["echo up; exec sleep 1000", "trap '' INT; echo up; sleep 1000; sleep 1000"] {
        let mut running = home.mayfly(["run", GOLDEN, "--", "sh", "-c", script]).start();
        running.until("the command", |running| running.stdout().contains("up").then_some(()));
        running.signal(Signal::SIGINT);
        let ended = running.wait();
        assert_eq!(ended.code(), INTERRUPTED, "{ended}");
        assert!(ended.complaint().contains("interrupted"), "{ended}");
        assert_eq!(home.leaks_of(ended.pid), []);
    }
}

#[test]
fn a_shell_passes_ctrl_c_on_and_obeys_a_signal() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let mut command = Command::new(program_path());
    command.args(["shell", "--no-daemon", GOLDEN, "--", "/bin/sh"]);
    command.env("MAYFLY_HOME", home.layout().home()).env("MAYFLY_RUN", home.layout().run());
    let mut shell = OnTerminal::start(command, 24, 80);
    shell.until("# ");
    // The key ends the guest's command, not the shell.
    shell.type_in("echo before-$((1 + 1)); sleep 1000\r");
    shell.until("before-2");
    shell.type_in("\u{3}");
    shell.type_in("echo after-$((1 + 2))\r");
    shell.until("after-3");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shell.pid().cast_signed()), Signal::SIGINT)
        .unwrap();
    let (code, screen) = shell.wait();
    assert_eq!(code, Some(INTERRUPTED), "{screen:?}");
    assert!(screen.contains("mayfly: interrupted"), "{screen:?}");
    assert_eq!(home.leaks_of(shell.pid()), []);
}
