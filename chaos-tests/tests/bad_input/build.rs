//! Builds that cannot succeed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_chaos_tests::home::{GOLDEN, Home, TEMP_PREFIX, program_path};
use mayfly_chaos_tests::{leaks, slots};

use crate::support::check_failure;

const LIMIT: Duration = Duration::from_secs(200);

#[test]
fn a_package_that_does_not_exist_is_named() {
    let home = Home::with_golden();
    let before = home.manifest();
    let recipe = home.layout().run().join("missing.toml");
    fs::write(&recipe, "name = \"x\"\n[debian]\npackages = [\"no-such-package\"]\n[docker]\nenabled = false\n")
        .unwrap();
    let ended = home.mayfly(["-q", "golden", "build", recipe.to_str().unwrap()]).limit(LIMIT).run();
    check_failure(&home, &ended, &["no-such-package", "trixie"]);
    assert_eq!(home.manifest(), before);
}

/// A QEMU whose guests never find the channel: they have another device in its place.
fn deaf_qemu(dir: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")).find(|p| p.is_file()).unwrap();
    let script = format!(
        "#!/bin/sh\nfor word; do\n  shift\n  case $word in\n  virtserialport,*) word=virtio-balloon-device ;;\n  \
         esac\n  set -- \"$@\" \"$word\"\ndone\nexec {} \"$@\"\n",
        real.display()
    );
    let wrapper = dir.join("qemu");
    fs::write(&wrapper, script).unwrap();
    // VMMs run as users of their own.
    for path in [dir, &wrapper] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    wrapper
}

#[test]
fn a_guest_that_never_becomes_ready_is_given_up_with_the_tail_of_its_console() {
    let home = Home::with_golden();
    let before = home.manifest();
    let dir = tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir().unwrap();
    let qemu = deaf_qemu(dir.path());
    let _slot = slots::take(1);
    let args = ["-q", "golden", "build", "--rebuild", "--accel", "tcg", "--boot-timeout", "6"];
    let ended = home.mayfly(args).env("MAYFLY_QEMU", &qemu).limit(LIMIT).run();
    check_failure(&home, &ended, &[GOLDEN, "boot did not finish within 6s", "console ends with: ["]);
    assert_eq!(home.manifest(), before);
    let next = home.mayfly(["run", GOLDEN, "--", "true"]).run();
    assert!(next.success(), "{next}");
}

/// Runs a build of the default golden image with `home` on a tmpfs of `mib` MiB that no other process sees.
fn build_on_tmpfs(home: &Home, mib: u32, images: Option<&Path>) -> mayfly_chaos_tests::program::Finished {
    let root = home.layout().home().display();
    let link = images.map_or_else(String::new, |path| format!("ln -s {} {root}/images && ", path.display()));
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
