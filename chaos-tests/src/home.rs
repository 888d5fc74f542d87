//! State roots for tests: the host's own with its golden image, or a throw-away one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use std::{fs, io};

use mayfly_host::layout::{Layout, mayfly_program};
use mayfly_pager::client::PagerClient;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::leaks::{self, Leak};
use crate::program::{self, Program};

/// Name of the golden image the tests use.
pub const GOLDEN: &str = "default";
/// Prefix of the names of throw-away homes' folders; the leak audit looks for them.
pub const TEMP_PREFIX: &str = "mayfly-chaos-";

/// A pair of state roots (`MAYFLY_HOME` and `MAYFLY_RUN`).
#[derive(Debug)]
pub struct Home {
    layout: Layout,
    /// Dropped before the folder it is mounted in.
    disks: Option<Mounted>,
    /// The runtime root, where it is a file system of its own.
    run: Option<Mounted>,
    temporary: Option<TempDir>,
}

/// A mounted file system. Unmounted when dropped; what still uses it keeps it.
#[derive(Debug)]
struct Mounted(TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

impl Home {
    /// Returns the host's own roots, with an up-to-date golden image: built on first use, which
    /// takes about a minute.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Home> = OnceLock::new();
        SHARED.get_or_init(|| {
            let home = Self { layout: Layout::from_env(), disks: None, run: None, temporary: None };
            let built =
                home.mayfly(["-q", "golden", "build"]).limit(Duration::from_secs(500)).run();
            assert!(built.success(), "the golden image for the tests cannot be built: {built}");
            home
        })
    }

    /// Makes empty throw-away roots.
    pub fn empty() -> Self {
        let dir = temporary();
        let layout = Layout::new(dir.path().join("home"), dir.path().join("run"));
        Layout::create(layout.home()).expect("a home");
        Layout::create(layout.run()).expect("a runtime folder");
        Self { layout, disks: None, run: None, temporary: Some(dir) }
    }

    /// As [`Home::with_golden`], with an ext4 of `bytes` of its own for the disks of sessions.
    ///
    /// # Errors
    /// What this host lacks for it.
    pub fn with_small_disks(bytes: u64) -> Result<Self, String> {
        let mut home = Self::with_golden();
        let (image, disks) = (home.layout.home().join("disks.image"), home.layout.disks());
        // Not in the home itself, where a mount would be a leak.
        let mounted = tempfile::Builder::new().prefix("small-disk-").tempdir().expect("a folder");
        std::os::unix::fs::symlink(mounted.path(), &disks).expect("a link to the disks");
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        for (program, args) in [("mkfs.ext4", &["-q"][..]), ("mount", &["-o", "loop"])] {
            let mut command = Command::new(program);
            command.args(args).arg(&image);
            if program == "mount" {
                command.arg(mounted.path());
            }
            let done = command.output().map_err(|error| format!("{program}: {error}"))?;
            if !done.status.success() {
                return Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr)));
            }
        }
        // Of e2fsck(8); the leak audit would take it for ours.
        fs::remove_dir(mounted.path().join("lost+found")).expect("an empty folder");
        home.disks = Some(Mounted(mounted));
        Ok(home)
    }

    /// As [`Home::with_small_disks`], with a tmpfs of `run` bytes and `files` files as its runtime
    /// root.
    ///
    /// # Errors
    /// What this host lacks for it.
    pub fn with_small_roots(disks: u64, run: u64, files: u64) -> Result<Self, String> {
        let mut home = Self::with_small_disks(disks)?;
        // Beside the home, as the disks are.
        let dir = tempfile::Builder::new().prefix("small-run-").tempdir().expect("a folder");
        let options = format!("mode=0700,size={run},nr_inodes={files}");
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&*options))
            .map_err(|errno| format!("mount a tmpfs: {errno}"))?;
        let layout = Layout::new(home.layout.home(), dir.path());
        home.run = Some(Mounted(dir));
        copy_dir(&home.layout.facts(), &layout.facts());
        home.layout = layout;
        Ok(home)
    }

    /// Makes throw-away roots that share the boot artifacts of [`Home::shared`], so that a build
    /// begins with the boot.
    pub fn with_images() -> Self {
        let (shared, home) = (Self::shared(), Self::empty());
        std::os::unix::fs::symlink(shared.layout.images(), home.layout.images())
            .expect("a link to the boot artifacts");
        // What is known about the base disk and KVM need not be found out again.
        copy_dir(&shared.layout.facts(), &home.layout.facts());
        home
    }

    /// Makes throw-away roots with a copy of the golden image that a test may damage.
    pub fn with_golden() -> Self {
        let home = Self::with_images();
        copy_dir(&Self::shared().layout.store(), &home.layout.store());
        home
    }

    /// As [`Home::with_golden`], with boot artifacts of its own, which go with the golden when that is
    /// removed.
    pub fn with_golden_and_images() -> Self {
        let home = Self::with_golden();
        let (shared, images) = (Self::shared(), home.layout.images());
        fs::remove_file(&images).expect("the link to the boot artifacts");
        // Links, where they can be: the disk is large.
        each_file(&shared.layout.images(), &images, &|from, to| {
            fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
        });
        home
    }

    /// Makes the home of [`Home::shared`] with a throw-away runtime root: a pager and a place for a
    /// daemon of its own.
    pub fn aside() -> Self {
        let (shared, dir) = (Self::shared(), temporary());
        let layout = Layout::new(shared.layout.home(), dir.path().join("run"));
        Layout::create(layout.run()).expect("a runtime folder");
        copy_dir(&shared.layout.facts(), &layout.facts());
        Self { layout, disks: None, run: None, temporary: Some(dir) }
    }

    /// Returns the layout of the roots.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Creates a run of the `mayfly` program with these roots. With the host's own, `run` and
    /// `shell` take no session from a daemon that its user may have there.
    pub fn mayfly<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Program {
        let mut args: Vec<&str> = args.into_iter().collect();
        let command = args.iter().position(|arg| matches!(*arg, "run" | "shell"));
        if let Some(at) = command.filter(|_| self.temporary.is_none()) {
            args.insert(at + 1, "--no-daemon");
        }
        self.program(&program_path(), args)
    }

    /// Creates a run of another program that gets these roots in its environment.
    pub fn program<'a>(&self, program: &Path, args: impl IntoIterator<Item = &'a str>) -> Program {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("MAYFLY_HOME", self.layout.home())
            .env("MAYFLY_RUN", self.layout.run())
            .env_remove("MAYFLY_LOG");
        Program::new(command)
    }

    /// Returns what the `mayfly` process `pid`, which must have ended, left behind.
    pub fn leaks_of(&self, pid: u32) -> Vec<Leak> {
        program::settle(|| leaks::of_engine(&self.layout, pid), Vec::is_empty)
    }

    /// Returns a client of this home's pager.
    pub fn pager(&self) -> PagerClient {
        PagerClient::new(self.layout.pager_socket())
    }

    /// Returns the manifest of the golden image, as the program prints it.
    pub fn manifest(&self) -> String {
        let printed = self.mayfly(["golden", "inspect", GOLDEN]).run();
        assert!(printed.success(), "{printed}");
        printed.stdout
    }
}

impl Drop for Home {
    /// Ends the pager of a throw-away home.
    fn drop(&mut self) {
        if self.temporary.is_some() {
            let pager = self.pager();
            if let Ok(pong) = pager.ping() {
                let _ = pager.shutdown(true);
                program::settle(|| program::is_alive(pong.pid), |alive| !alive);
            }
        }
    }
}

/// A temporary folder that the leak audit knows.
pub(crate) fn temporary() -> TempDir {
    tempfile::Builder::new().prefix(TEMP_PREFIX).tempdir().expect("a temporary folder")
}

/// Returns the path of the `mayfly` program under test, beside the test executables.
pub fn program_path() -> PathBuf {
    mayfly_program().expect("the mayfly program: build the workspace first")
}

/// Copies a folder of plain files and folders.
fn copy_dir(from: &Path, to: &Path) {
    each_file(from, to, &|from, to| fs::copy(from, to).map(drop));
}

/// Makes a folder like another, whose files `make` makes of those.
fn each_file(from: &Path, to: &Path, make: &dyn Fn(&Path, &Path) -> io::Result<()>) {
    Layout::create(to).expect("a folder");
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let entry = entry.expect("a folder entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file type").is_dir() {
            each_file(&entry.path(), &target, make);
        } else {
            make(&entry.path(), &target).unwrap_or_else(|e| panic!("{}: {e}", target.display()));
        }
    }
}
