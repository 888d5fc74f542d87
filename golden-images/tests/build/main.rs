//! Real builds: root, mmdebstrap and a package mirror (or a warm package cache) are needed.

mod confined;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mayfly_golden_images::{
    BootArtifacts, Builder, Error, ImageFormat, KeyedSeal, NoProgress, Progress, Recipe, Step,
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Kept between runs, so that a rebuild needs little network.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden-images")
}

/// The static agent, as the launcher builds it: `MAYFLY_AGENT`, or in the target directory that
/// this test runs from.
fn agent() -> PathBuf {
    if let Some(path) = std::env::var_os("MAYFLY_AGENT") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a running test has a path");
    let candidates =
        exe.ancestors().map(|dir| dir.join("x86_64-unknown-linux-gnu/release/mayfly-agent"));
    candidates.into_iter().find(|path| path.is_file()).expect(
        "the static agent is missing: RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p mayfly-agent \
         --target x86_64-unknown-linux-gnu, or set MAYFLY_AGENT",
    )
}

fn can_build() -> bool {
    let able = Path::new("/usr/bin/mmdebstrap").exists();
    if !able {
        mayfly_skip::skip("a real build needs mmdebstrap");
    }
    able
}

/// A recipe without docker: a build of a few seconds.
fn small(extra: &str) -> Recipe {
    let text = format!("name = \"small\"\n{extra}\n[vm]\ndisk_mib = 512\n");
    Recipe::parse(&text, Path::new("/small.toml")).expect("valid")
}

fn builder(cache: &Path) -> Builder {
    Builder::new(cache, agent(), Arc::new(KeyedSeal([7; 32])))
}

fn build(recipe: &Recipe) -> Result<BootArtifacts, Error> {
    builder(&cache()).build(recipe, &NoProgress, &NEVER)
}

/// Runs a debugfs request on a disk image.
fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request])
        .arg(image)
        .output()
        .expect("debugfs runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn half_built() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache().join("rootfs")).into_iter().flatten();
    entries
        .map(|e| e.expect("entry").path())
        .filter(|p| p.to_string_lossy().contains("/.tmp-"))
        .collect()
}

/// Builds share the mirror and the package cache; one at a time keeps the failures apart.
static SERIAL: Mutex<()> = Mutex::new(());

fn serial() -> std::sync::MutexGuard<'static, ()> {
    SERIAL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
#[ignore = "needs root"]
fn the_default_recipe_becomes_a_bootable_set() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let recipe = Recipe::builtin_default();
    let built = build(&recipe).expect("builds");
    assert_eq!(built.kernel_format, ImageFormat::Vmlinux, "Debian's cloud kernel has a PVH entry");
    let kernel = std::fs::read(&built.kernel.path).expect("readable");
    assert_eq!(blake3::hash(&kernel), built.kernel.blake3);
    assert!(built.packages.iter().any(|p| p.starts_with("docker.io=")), "{:?}", built.packages);
    assert!(built.packages.iter().any(|p| p.starts_with("linux-image-")), "{:?}", built.packages);
    assert_eq!(built.warm_commands[0][..2], ["docker", "import"]);
    assert!(built.docker);

    let check = Command::new("/usr/sbin/e2fsck")
        .args(["-n", "-f"])
        .arg(&built.base_disk.path)
        .output()
        .expect("runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    assert!(
        debugfs(&built.base_disk.path, "cat /etc/mayfly/services")
            .contains("ready=docker:/run/docker.sock")
    );
    assert!(
        debugfs(&built.base_disk.path, "stat /usr/share/mayfly/images/00.tar")
            .contains("Type: regular")
    );
    assert!(
        debugfs(&built.base_disk.path, "stat /usr/libexec/docker/cli-plugins/docker-buildx")
            .contains("regular")
    );
    assert_eq!(debugfs(&built.base_disk.path, "cat /etc/hostname"), "mayfly\n");
    let boot = debugfs(&built.base_disk.path, "ls -p /boot");
    assert!(!boot.contains("vmlinuz"), "{boot}");

    // The same inputs are not built again: not even a builder without any right or tool would
    // notice.
    let again = builder(&cache()).find(&recipe).expect("readable").expect("cached");
    assert_eq!(again.base_disk, built.base_disk);
    // Earlier runs of this test had other agents; their images would pile up.
    let key = built.key.to_string();
    builder(&cache()).prune(|other| other == key, &NEVER).expect("prunes");
    assert!(built.base_disk.path.exists());
    assert_eq!(half_built(), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "needs root"]
fn setup_commands_run_in_the_root_and_the_image_tells() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let recipe = small(
        "setup = [\"echo it\\\\'s > /etc/made; ln -s /etc/passwd /etc/escape\", \"test -e /proc/self\"]",
    );
    let built = build(&recipe).expect("builds");
    assert_eq!(debugfs(&built.base_disk.path, "cat /etc/made"), "it's\n");
    assert!(!built.docker && built.warm_commands.is_empty());
}

#[test]
#[ignore = "needs root"]
fn failures_are_clear_and_leave_nothing() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let error =
        build(&small("setup = [\"true\", \"echo broken >&2; exit 7\"]")).expect_err("setup fails");
    let text = error.to_string();
    assert!(text.contains("setup command 2") && text.contains("broken"), "{text}");

    let text = "name = \"x\"\n[debian]\npackages = [\"no-such-package-here\"]\n";
    let error = build(&Recipe::parse(text, Path::new("/x.toml")).expect("valid"))
        .expect_err("no such package");
    assert!(
        matches!(&error, Error::PackageMissing { package, .. } if package == "no-such-package-here"),
        "{error}"
    );

    let text = "name = \"x\"\n[debian]\nkernel = \"linux-image-no-such\"\n";
    let error = build(&Recipe::parse(text, Path::new("/x.toml")).expect("valid"))
        .expect_err("no such kernel");
    assert!(error.to_string().contains("linux-image-no-such"), "{error}");

    let text =
        "name = \"x\"\n[debian]\nmirror = \"http://127.0.0.1:9/debian\"\nsecurity_mirror = \"\"\n";
    let error =
        build(&Recipe::parse(text, Path::new("/x.toml")).expect("valid")).expect_err("no mirror");
    assert!(matches!(error, Error::Mirror { .. }), "{error}");
    assert_eq!(half_built(), Vec::<PathBuf>::new());
}

/// Sets the cancel flag when the first package is unpacked.
struct CancelOnFirst<'a>(&'a AtomicBool);

impl Progress for CancelOnFirst<'_> {
    fn started(&self, _: Step, _: Option<u64>) {}
    fn advanced(&self, _: Step, done: u64, _: Option<u64>, _: &str) {
        if done > 0 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    fn finished(&self, _: Step) {}
}

#[test]
#[ignore = "needs root"]
fn cancelling_ends_the_build_without_a_trace() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    let cancel = AtomicBool::new(false);
    let recipe = small("setup = [\"echo a recipe that is never cached\"]");
    let result = builder(&cache()).build(&recipe, &CancelOnFirst(&cancel), &cancel);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(half_built(), Vec::<PathBuf>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!mounts.contains(&cache().display().to_string()), "{mounts}");
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_named() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    // A small tmpfs in a mount namespace of this test alone: the thread that leaves the namespace
    // takes it along.
    let result = std::thread::spawn(|| {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("root may");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("root may");
        let dir = tempfile::tempdir().expect("temp dir");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=200m"))
            .expect("root may");
        let result = builder(dir.path()).build(&small(""), &NoProgress, &NEVER);
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).expect("mounted");
        result
    })
    .join()
    .expect("no panic");
    assert!(matches!(result, Err(Error::DiskFull(_))), "{result:?}");
}

#[test]
#[ignore = "needs root"]
fn a_killed_builder_leaves_nothing_that_the_next_one_does_not_remove() {
    if !can_build() {
        return;
    }
    let _serial = serial();
    // This test binary, running only `builder_to_be_killed`, in a process of its own.
    let marker = tempfile::NamedTempFile::new().expect("temp file");
    let temp = tempfile::tempdir().expect("temp dir");
    let mut child = Command::new(std::env::current_exe().expect("path"))
        .args(["--ignored", "--exact", "builder_to_be_killed", "--nocapture"])
        .env("MAYFLY_TEST_MARKER", marker.path())
        .env("TMPDIR", temp.path())
        .spawn()
        .expect("starts");
    let give_up = Instant::now() + Duration::from_secs(300);
    while std::fs::metadata(marker.path()).expect("there").len() == 0 {
        assert!(
            Instant::now() < give_up && child.try_wait().expect("waits").is_none(),
            "the builder never got going"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = half_built();
    assert_eq!(left.len(), 1);
    child.kill().expect("kills");
    child.wait().expect("waits");
    // Its children die with it: soon no process has the work directory in its command line.
    let name = left[0].file_name().expect("name").to_string_lossy().into_owned();
    while Instant::now() < give_up && processes_naming(&name) > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(processes_naming(&name), 0);
    let strewn: Vec<_> = std::fs::read_dir(temp.path())
        .expect("readable")
        .map(|e| e.expect("entry").path())
        .collect();
    assert!(strewn.is_empty(), "{strewn:?}");
    build(&small("")).expect("the next builder is not disturbed");
    // The next build removes the rest, unless it was cached; a build that cannot be cached does.
    let cancel = AtomicBool::new(false);
    let recipe = small("setup = [\"echo never cached either\"]");
    let _ = builder(&cache()).build(&recipe, &CancelOnFirst(&cancel), &cancel);
    assert_eq!(half_built(), Vec::<PathBuf>::new());
}

fn processes_naming(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").expect("readable").flatten();
    let lines = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}

/// Writes to the marker file when the first package is unpacked, and goes on.
struct Mark(PathBuf);

impl Progress for Mark {
    fn started(&self, _: Step, _: Option<u64>) {}
    fn advanced(&self, _: Step, done: u64, _: Option<u64>, _: &str) {
        if done == 1 {
            std::fs::write(&self.0, "going").expect("writable");
        }
    }
    fn finished(&self, _: Step) {}
}

#[test]
#[ignore = "helper process of a_killed_builder_leaves_nothing_that_the_next_one_does_not_remove"]
fn builder_to_be_killed() {
    let Some(marker) = std::env::var_os("MAYFLY_TEST_MARKER") else {
        return;
    };
    let recipe = small("setup = [\"sleep 1000\"]");
    let _ = builder(&cache()).build(&recipe, &Mark(marker.into()), &NEVER);
}
