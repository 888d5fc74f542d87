//! Builds that cannot succeed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home, program_path};
use mayfly_chaos_tests::{leaks, slots};

use crate::support::check_failure;

const LIMIT: Duration = Duration::from_secs(200);

#[test]
fn a_package_that_does_not_exist_is_named() {
    let home = Home::with_golden();
    let before = home.manifest();
    let recipe = home.layout().run().join("missing.toml");
    fs::write(
        &recipe,
        "name = \"x\"\n[debian]\npackages = [\"no-such-package\"]\n[docker]\nenabled = false\n",
    )
    .unwrap();
    let ended = home.mayfly(["-q", "golden", "build", recipe.to_str().unwrap()]).limit(LIMIT).run();
    check_failure(&home, &ended, &["no-such-package", "trixie"]);
    assert_eq!(home.manifest(), before);
}

#[test]
fn a_guest_that_is_not_ready_in_time_is_given_up_with_the_tail_of_its_console() {
    let home = Home::with_golden();
    let before = home.manifest();
    let _slot = slots::take(1);
    // Long enough for the kernel's first words, not for the rest of the boot, which takes many
    // times as long.
    let given_up = (1..20).find_map(|seconds: u32| {
        let limit = seconds.to_string();
        let args =
            ["-q", "golden", "build", "--rebuild", "--accel", "tcg", "--boot-timeout", &limit];
        let ended = home.mayfly(args).limit(LIMIT).run();
        check_failure(&home, &ended, &[GOLDEN, &format!("boot did not finish within {seconds}s")]);
        ended.stderr.contains("console ends with: [").then_some(ended)
    });
    assert!(given_up.is_some(), "the kernel says nothing before its boot has ended");
    assert_eq!(home.manifest(), before);
    let next = home.mayfly(["run", GOLDEN, "--", "true"]).run();
    assert!(next.success(), "{next}");
}

/// Runs a build of the default golden image with `home` on a tmpfs of `mib` MiB that no other
/// process sees.
fn build_on_tmpfs(
    home: &Home,
    mib: u32,
    images: Option<&Path>,
) -> mayfly_chaos_tests::program::Finished {
    let root = home.layout().home().display();
    let link = images
        .map_or_else(String::new, |path| format!("ln -s {} {root}/images && ", path.display()));
    let program = program_path();
    let script = format!(
        "mount -t tmpfs -o size={mib}m none {root} && {link}exec {} -q golden build --accel tcg",
        program.display()
    );
    home.program(Path::new("unshare"), ["-m", "sh", "-c", &script]).limit(LIMIT).run()
}

#[test]
fn a_full_disk_under_the_boot_artifacts_is_named_with_what_is_needed() {
    let home = Home::empty();
    let ended = build_on_tmpfs(&home, 24, None);
    check_failure(&home, &ended, &["no space left", "MiB are needed"]);
}

#[test]
fn a_full_disk_under_the_store_is_named() {
    let home = Home::empty();
    let _slot = slots::take(1);
    let ended = build_on_tmpfs(&home, 48, Some(&Home::shared().layout().images()));
    check_failure(&home, &ended, &["disk full", "mayfly golden rm"]);
    assert_eq!(leaks::of_engine(home.layout(), ended.pid), []);
}
