//! Runs mmdebstrap: the options that every run of it has, whatever becomes of its root directory.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{DiskFullError, Error, IoContext as _, NEED_MIB, free_mib};
use crate::sandbox::{Confinement, Finished, Sandbox};
use crate::userns;

/// Mounts the package cache over the root's own.
pub(crate) const SETUP_HOOK: &str = include_str!("hooks/setup.sh");
/// Clamp for time stamps (reproducible-builds.org specification): 2025-01-01.
pub(crate) const SOURCE_DATE_EPOCH: &str = "1735689600";
/// Host settings of apt that reach a mirror behind a proxy or a private certificate authority.
const APT_NETWORK_SETTINGS: [&str; 4] = ["Proxy", "CAInfo", "CAPath", "SslCert"];

/// A run that has said nothing for so long, with less than [`NEARLY_FULL_MIB`] free, is given up.
const STANDS_STILL: Duration = Duration::from_secs(30);
/// apt-get removes the file that it could not write, so that the disk is not quite full any more.
const NEARLY_FULL_MIB: u64 = 64;

/// Time at which a hook script runs (mmdebstrap(1), HOOKS).
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// Time after the essential packages were unpacked, before they are configured.
    Extract,
    /// Time after all packages were installed. Must unmount `var/cache/apt/archives` and
    /// `var/lib/apt/lists` in the root.
    Customize,
}

/// A run of mmdebstrap that makes a root directory. Its children live in namespaces of their own
/// and end with the caller. Scripts of packages and hooks run as the host's root, unless it is
/// confined.
#[derive(Debug)]
pub struct Mmdebstrap<'a> {
    work: &'a Path,
    apt_cache: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, OsString)>,
    confinement: Option<Confinement>,
}

impl<'a> Mmdebstrap<'a> {
    /// Creates a run of `variant` (mmdebstrap(1), VARIANTS) that writes its scripts and temporary
    /// files to `work`. Package files and lists stay in `apt_cache`, a directory of
    /// [`Cache::apt`](crate::Cache::apt).
    ///
    /// # Errors
    /// A script cannot be written.
    pub fn new(variant: &str, work: &'a Path, apt_cache: &Path) -> Result<Self, Error> {
        let mut args: Vec<String> = vec![format!("--variant={variant}")];
        // The package cache is not empty, and stays.
        for arg in
            ["--format=directory", "--verbose", "--skip=download/empty", "--skip=essential/unlink"]
        {
            args.push(arg.into());
        }
        args.extend(["--skip=cleanup/tmp".into(), "--dpkgopt=force-unsafe-io".into()]);
        for option in [
            "Apt::Install-Recommends \"false\"",
            "APT::Sandbox::User \"root\"",
            "Acquire::Languages \"none\"",
            "Acquire::Retries \"3\"",
        ] {
            args.push(format!("--aptopt={option}"));
        }
        args.extend(host_network_settings().into_iter().map(|option| format!("--aptopt={option}")));
        args.push(format!("--setup-hook={}", script(work, "hook-setup", SETUP_HOOK)?.display()));
        let env = vec![
            ("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH.into()),
            ("MAYFLY_APT_CACHE", apt_cache.into()),
            ("MAYFLY_WORK", work.into()),
            // What a killed mmdebstrap leaves goes away with the work directory. It keeps this from
            // the root's own programs.
            ("TMPDIR", work.into()),
        ];
        Ok(Self { work, apt_cache: apt_cache.to_owned(), args, env, confinement: None })
    }

    /// Has it run as nobody on the host, with leave to write its work folder and package cache.
    ///
    /// # Errors
    /// [`Error::UserNamespace`] when the kernel refuses it.
    pub(crate) fn confined(mut self, stage: &Path) -> Result<Self, Error> {
        let writable = [self.work, &self.apt_cache];
        for path in writable {
            userns::give(path)?;
        }
        self.confinement = Some(Confinement::new(stage, &writable)?);
        Ok(self)
    }

    /// Adds an option.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable for the hook scripts.
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Adds the shell script `text` as a hook. Hooks of a stage run in the order in which they are
    /// added, each with the root directory as its argument, and each needs a `name` of its own.
    ///
    /// # Errors
    /// The script cannot be written.
    pub fn hook(self, stage: Hook, name: &str, text: &str) -> Result<Self, Error> {
        let stage = match stage {
            Hook::Extract => "extract",
            Hook::Customize => "customize",
        };
        let path = script(self.work, name, text)?;
        Ok(self.arg(format!("--{stage}-hook={}", path.display())))
    }

    /// Makes the directory `root` out of `suite` of the given lines of a sources.list(5).
    /// `on_output` gets every line, and `None` about ten times a second.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` was set, [`Error::DiskFull`] when it stands still on a
    /// full disk, or a failure to start it. A failure of mmdebstrap is its status.
    pub fn run(
        self,
        suite: &str,
        root: &Path,
        sources: &[String],
        cancel: &AtomicBool,
        mut on_output: impl FnMut(Option<&str>),
    ) -> Result<Finished, Error> {
        let Self { work, apt_cache, args, env, confinement } = self;
        // "unshare" makes no user namespace for root, which a confined run is in its own, and gets
        // by without device nodes (mmdebstrap(1), MODES).
        let (run, mode) = match confinement {
            Some(confinement) => (Sandbox::confined("mmdebstrap", confinement), "--mode=unshare"),
            None => (Sandbox::new("mmdebstrap"), "--mode=root"),
        };
        let mut run = run.args([mode]).args(args).args([suite]).args([root]).args(sources);
        for (name, value) in env {
            run = run.env(name, value);
        }
        // A disk that fills while apt-get fetches lists can leave it waiting for ever for a
        // process of its own that waits for it.
        let (stop, mut said, mut full) = (AtomicBool::new(false), Instant::now(), None);
        let outcome = run.run(&stop, |line| {
            on_output(line);
            if line.is_some() {
                said = Instant::now();
            } else if full.is_none() && said.elapsed() > STANDS_STILL {
                full = [work, &apt_cache]
                    .into_iter()
                    .find(|path| free_mib(path).is_some_and(|free| free < NEARLY_FULL_MIB));
            }
            stop.store(cancel.load(Ordering::Relaxed) || full.is_some(), Ordering::Relaxed);
        });
        match (outcome, full) {
            (Err(Error::Cancelled), Some(path)) if !cancel.load(Ordering::Relaxed) => {
                Err(DiskFullError::at(path, NEED_MIB).into())
            }
            (outcome, _) => outcome,
        }
    }
}

/// Writes an executable script into the work directory.
pub(crate) fn script(work: &Path, name: &str, text: &str) -> Result<PathBuf, Error> {
    let path = work.join(name);
    std::fs::write(&path, text).context("write", &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .context("write", &path)?;
    Ok(path)
}

/// The host's own proxy and certificate settings for apt, in the syntax of apt.conf(5).
fn host_network_settings() -> Vec<String> {
    let Ok(output) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = |line: &&str| {
        let Some((name, value)) = line.split_once(' ') else {
            return false;
        };
        let mut parts = name.split("::");
        let scheme = (parts.next(), parts.next());
        matches!(scheme, (Some("Acquire"), Some("http" | "https")))
            && APT_NETWORK_SETTINGS
                .iter()
                .any(|s| parts.clone().next().is_some_and(|p| p.eq_ignore_ascii_case(s)))
            && value != "\"\";"
    };
    text.lines().filter(wanted).map(|line| line.trim_end_matches(';').to_owned()).collect()
}

/// Counts package operations in the output of apt and dpkg.
#[derive(Default)]
pub(crate) struct Counter {
    pub done: u64,
    /// Packages announced by apt; each is unpacked and set up.
    announced: u64,
}

impl Counter {
    pub fn total(&self) -> Option<u64> {
        (self.announced > 0).then_some(self.announced * 2)
    }

    /// Takes one line in; returns what to show when it was an operation.
    pub fn line<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let rest = line.strip_prefix("Unpacking ").or_else(|| line.strip_prefix("Setting up "));
        if let Some(rest) = rest {
            self.done += 1;
            self.announced = self.announced.max(self.done.div_ceil(2));
            return rest.split([' ', ':']).next();
        }
        // "0 upgraded, 62 newly installed, 0 to remove and 0 not upgraded."
        let (before, _) = line.split_once(" newly installed")?;
        let count: u64 = before.rsplit(' ').next()?.parse().ok()?;
        self.announced += count;
        Some("downloading")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_against_the_announced_total() {
        let mut counter = Counter::default();
        counter.line("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.");
        assert_eq!(counter.line("Unpacking libc6:amd64 (2.41-12) ..."), Some("libc6"));
        assert_eq!(counter.line("Setting up kmod (34.2-2) ..."), Some("kmod"));
        assert_eq!(counter.line("noise"), None);
        assert_eq!((counter.done, counter.total()), (2, Some(4)));
    }
}
