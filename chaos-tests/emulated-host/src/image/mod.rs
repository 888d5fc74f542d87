//! Disk images of stock distributions, cached by their content.
//!
//! ```text
//! <hosts>/rootfs/<key>/        disk.img, boot/<release>/{vmlinuz,initrd}, image.json
//! <hosts>/rootfs/.tmp-*/       an image or a run under way; removed by the next one when its owner has died
//! <hosts>/apt/, <hosts>/locks/ package files, lock files
//! ```
//!
//! The key is a digest of every package with its version, as the mirror has them now, and of all
//! that is added to them. So an image is looked for only after the mirror has been asked, and one
//! that is out of date is never found.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mayfly_golden_images::{Cache, Hook, Mmdebstrap, Sandbox, WorkDir};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::distribution::{Distribution, Platform};
use crate::error::{Error, IoContext as _};
use crate::progress;

const EXTRACT: &str = include_str!("extract.sh");
const CUSTOMIZE: &str = include_str!("customize.sh");
/// Changes when the same inputs make another image in a way that no other part of the key shows.
const VERSION: &str = "emulated host 1";
/// Size of a disk. It is sparse.
const DISK_BYTES: u64 = 20 << 30;
/// What mke2fs(8) makes of it: the defaults of the distributions.
const MKE2FS: [&str; 9] =
    ["-q", "-F", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0,nodiscard", "-d"];
/// Bound on the wait for another process that makes the same image.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// How often that is looked for.
const LOCK_RETRY: Duration = Duration::from_millis(200);
const RECORD: &str = "image.json";

/// A disk image with its kernels.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of what went in, as hexadecimal digits.
    pub key: String,
    /// The disk: raw, one ext4 file system.
    pub disk: PathBuf,
    /// Where the kernels are.
    boot: PathBuf,
    /// `name=version` of each package.
    pub packages: Vec<String>,
    /// Held as long as it is used, so that it is not removed as an old one.
    _used: Arc<Flock<File>>,
}

/// What is written beside the files.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    key: String,
    distribution: String,
    disk_bytes: u64,
    kernels: Vec<KernelFiles>,
    packages: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KernelFiles {
    release: String,
    vmlinuz_bytes: u64,
    initrd_bytes: u64,
}

/// A kernel of an image, to boot it with.
#[derive(Debug, Clone)]
pub struct BootFiles {
    /// Release of the kernel (uname(2)).
    pub release: String,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl Image {
    /// Returns the kernel that `platform` boots.
    ///
    /// # Errors
    /// The image has no such kernel.
    pub fn boot_files(&self, platform: Platform) -> Result<BootFiles, Error> {
        let entries = fs::read_dir(&self.boot).context("read", &self.boot)?;
        let mut releases: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        releases.sort();
        let release = releases.into_iter().rfind(|release| platform.boots(release));
        let release = release.ok_or(Error::NoKernel { platform })?;
        let dir = self.boot.join(&release);
        Ok(BootFiles { release, kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") })
    }

    /// The complete image in `dir` with this key.
    fn open(dir: &Path, key: &str) -> Option<Self> {
        let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()?;
        let is =
            |path: PathBuf, bytes: u64| fs::metadata(path).is_ok_and(|meta| meta.len() == bytes);
        let (disk, boot) = (dir.join("disk.img"), dir.join("boot"));
        let whole = record.key == key
            && is(disk.clone(), record.disk_bytes)
            && record.kernels.iter().all(|kernel| {
                let files = boot.join(&kernel.release);
                is(files.join("vmlinuz"), kernel.vmlinuz_bytes)
                    && is(files.join("initrd"), kernel.initrd_bytes)
            });
        let used =
            Flock::lock(File::open(dir.join(RECORD)).ok()?, FlockArg::LockSharedNonblock).ok()?;
        // Whoever removes it had the lock before.
        let whole = whole && dir.join(RECORD).exists();
        whole.then(|| Self {
            key: key.to_owned(),
            disk,
            boot,
            packages: record.packages,
            _used: Arc::new(used),
        })
    }
}

/// Images of one cache, to make and to find.
#[derive(Debug)]
pub struct Images<'a> {
    cache: Cache,
    hosts: PathBuf,
    cancel: &'a AtomicBool,
}

impl<'a> Images<'a> {
    /// Images below the folder `hosts`. Setting `cancel` ends what is under way within a moment.
    pub fn new(hosts: &Path, cancel: &'a AtomicBool) -> Self {
        Self { cache: Cache::new(hosts.to_owned()), hosts: hosts.to_owned(), cancel }
    }

    /// Returns the image of `distribution` with the packages that the mirror has now: an earlier
    /// one, or one made now (about five minutes on two processors).
    ///
    /// # Errors
    /// The mirror cannot be reached, the packages cannot be installed, or another process takes too
    /// long with the same image.
    pub fn get(&self, distribution: Distribution) -> Result<Image, Error> {
        progress::say(&format!("{distribution}: asking the mirror for its packages"));
        let wanted = self.resolve(distribution)?;
        let key = key(distribution, &wanted);
        let dir = self.hosts.join("rootfs").join(&key);
        if let Some(image) = Image::open(&dir, &key) {
            return Ok(image);
        }
        let _one_builder = self.lock(&format!("{key}.lock"))?;
        if let Some(image) = Image::open(&dir, &key) {
            return Ok(image);
        }
        self.build(distribution, &key, &wanted, &dir)?;
        self.remove_old(distribution, &key)?;
        Image::open(&dir, &key).ok_or(Error::ImageChanged { path: dir })
    }

    /// Makes a folder for a run: it goes when it is dropped, or with the next one's beginning when
    /// its owner was killed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn work_dir(&self) -> Result<WorkDir, Error> {
        Ok(self.cache.work_dir(self.cancel)?)
    }

    /// `name=version` of each package that an image made now would have, sorted.
    fn resolve(&self, distribution: Distribution) -> Result<Vec<String>, Error> {
        let work = self.cache.work_dir(self.cancel)?;
        let apt = self.apt(distribution)?;
        let mut run = Mmdebstrap::new("apt", work.path(), &apt)?.arg("--simulate");
        for packages in distribution.packages() {
            run = run.arg(format!("--include={packages}"));
        }
        let mut resolved = Vec::new();
        let root = work.path().join("root");
        let finished =
            run.run(distribution.suite(), &root, &distribution.sources(), self.cancel, |line| {
                resolved.extend(line.and_then(planned));
            })?;
        if !finished.status.success() || resolved.is_empty() {
            return Err(Error::Packages { distribution, detail: finished.detail() });
        }
        resolved.sort();
        resolved.dedup();
        Ok(resolved)
    }

    fn build(
        &self,
        distribution: Distribution,
        key: &str,
        wanted: &[String],
        dir: &Path,
    ) -> Result<(), Error> {
        let work = self.cache.work_dir(self.cancel)?;
        let (root, disk) = (work.path().join("root"), work.path().join("disk.img"));
        let mut steps = progress::Counted::new(
            format!("{distribution}: installing packages"),
            wanted.len() * 2,
        );
        {
            let apt = self.apt(distribution)?;
            let _one_user = self.lock(&format!("apt-{distribution}.lock"))?;
            let mut run = Mmdebstrap::new("apt", work.path(), &apt)?
                .hook(Hook::Extract, "hook-extract", EXTRACT)?
                .hook(Hook::Customize, "hook-customize", CUSTOMIZE)?
                .env("MAYFLY_MACHINE_ID", &key[..32]);
            for packages in distribution.packages() {
                run = run.arg(format!("--include={packages}"));
            }
            let finished = run.run(
                distribution.suite(),
                &root,
                &distribution.sources(),
                self.cancel,
                |line| {
                    steps.tick(line.is_some_and(|l| {
                        l.starts_with("Unpacking ") || l.starts_with("Setting up ")
                    }));
                },
            )?;
            if !finished.status.success() {
                return Err(Error::Packages { distribution, detail: finished.detail() });
            }
        }
        let packages = read_lines(&work.path().join("packages"))?;
        if let Some(package) = other_version(wanted, &packages) {
            return Err(Error::MirrorChanged { distribution, package });
        }
        progress::say(&format!("{distribution}: writing the disk"));
        File::create_new(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .context("create", &disk)?;
        let made =
            Sandbox::new("mke2fs").args(MKE2FS).args([&root, &disk]).run(self.cancel, |_| ())?;
        if !made.status.success() {
            return Err(Error::Disk { path: disk, detail: made.detail() });
        }
        let record = Record {
            key: key.to_owned(),
            distribution: distribution.to_string(),
            disk_bytes: sealed(&disk)?,
            kernels: kernels(&work.path().join("boot"))?,
            packages,
        };
        keep_only(work.path(), &["disk.img", "boot"])?;
        let path = work.path().join(RECORD);
        let json =
            serde_json::to_vec_pretty(&record).map_err(io::Error::other).context("write", &path)?;
        fs::write(&path, json).context("write", &path)?;
        sealed(&path)?;
        Ok(self.cache.rename(work, dir)?)
    }

    /// Removes the images of `distribution` that nobody uses, but for the one with this key.
    fn remove_old(&self, distribution: Distribution, key: &str) -> Result<(), Error> {
        let rootfs = self.hosts.join("rootfs");
        for entry in fs::read_dir(&rootfs).context("read", &rootfs)?.flatten() {
            let Ok(file) = File::open(entry.path().join(RECORD)) else { continue };
            let Ok(record) = serde_json::from_reader::<_, Record>(&file) else { continue };
            if record.distribution != distribution.to_string() || record.key == key {
                continue;
            }
            if let Ok(_unused) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // In one step out of sight; it goes with the folder that it is moved to.
                let garbage = self.cache.work_dir(self.cancel)?;
                let moved = garbage.path().join("old");
                fs::rename(entry.path(), moved).context("remove", &entry.path())?;
            }
        }
        Ok(())
    }

    fn apt(&self, distribution: Distribution) -> Result<PathBuf, Error> {
        Ok(self.cache.apt(distribution.suite(), &distribution.sources().join("\n"))?)
    }

    fn lock(&self, name: &str) -> Result<Flock<File>, Error> {
        let begun = Instant::now();
        let mut said = false;
        loop {
            if let Some(lock) = self.cache.try_lock(name)? {
                return Ok(lock);
            }
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if begun.elapsed() > BUILD_LIMIT {
                return Err(Error::LockTaken {
                    path: self.hosts.join("locks").join(name),
                    limit: BUILD_LIMIT,
                });
            }
            if !said {
                progress::say("waiting for another process that makes the same image");
                said = true;
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }
}

/// `name=version` out of a line of `apt-get --simulate`: `Inst NAME [OLD] (VERSION ORIGIN [ARCH])`.
fn planned(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.split_once('(')?.1.split(' ').next()?;
    Some(format!("{name}={version}"))
}

/// A package that was installed in another version than planned. (apt may plan one that it can do
/// without in the end.)
fn other_version(planned: &[String], installed: &[String]) -> Option<String> {
    let name = |package: &str| package.split('=').next().unwrap_or_default().to_owned();
    let versions: HashMap<String, &String> =
        planned.iter().map(|package| (name(package), package)).collect();
    installed
        .iter()
        .find(|package| versions.get(&name(package)).is_some_and(|planned| planned != package))
        .cloned()
}

fn key(distribution: Distribution, packages: &[String]) -> String {
    let mut digest = blake3::Hasher::new();
    let (suite, disk) = (distribution.suite().to_owned(), format!("{DISK_BYTES} {MKE2FS:?}"));
    let own = [VERSION.to_owned(), suite, EXTRACT.to_owned(), CUSTOMIZE.to_owned(), disk];
    for part in own.iter().chain(packages) {
        digest.update(&(part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().to_hex().to_string()
}

/// The length of a file that is on disk when this returns.
fn sealed(path: &Path) -> Result<u64, Error> {
    let file = File::open(path).context("open", path)?;
    file.sync_all().context("write", path)?;
    Ok(file.metadata().context("look at", path)?.len())
}

fn kernels(boot: &Path) -> Result<Vec<KernelFiles>, Error> {
    let mut kernels = Vec::new();
    for entry in fs::read_dir(boot).context("read", boot)? {
        let entry = entry.context("read", boot)?;
        kernels.push(KernelFiles {
            release: entry.file_name().to_string_lossy().into_owned(),
            vmlinuz_bytes: sealed(&entry.path().join("vmlinuz"))?,
            initrd_bytes: sealed(&entry.path().join("initrd"))?,
        });
    }
    Ok(kernels)
}

fn keep_only(dir: &Path, names: &[&str]) -> Result<(), Error> {
    for entry in fs::read_dir(dir).context("read", dir)? {
        let entry = entry.context("read", dir)?;
        let path = entry.path();
        if !names.iter().any(|name| entry.file_name() == *name) {
            let is_dir = entry.file_type().context("look at", &path)?.is_dir();
            let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.context("remove", &path)?;
        }
    }
    Ok(())
}

fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    let text = fs::read_to_string(path).context("read", path)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planned_packages_are_read_with_their_versions() {
        let new = "Inst libc6 (2.41-12+deb13u5 Debian:13.8/stable [amd64]) []";
        assert_eq!(planned(new).as_deref(), Some("libc6=2.41-12+deb13u5"));
        let newer = "Inst dpkg [1.22.1] (1.22.2 Debian:13.8/stable [amd64])";
        assert_eq!(planned(newer).as_deref(), Some("dpkg=1.22.2"));
        assert_eq!(planned("Conf libc6 (2.41-12 Debian:13.8/stable [amd64])"), None);
    }

    #[test]
    fn a_version_that_was_not_planned_is_noticed() {
        let list = |packages: &[&str]| -> Vec<String> {
            packages.iter().map(|package| (*package).to_owned()).collect()
        };
        let planned = list(&["a=1", "b=2", "left-out=1"]);
        assert_eq!(other_version(&planned, &list(&["a=1", "b=2", "base=7"])), None);
        assert_eq!(other_version(&planned, &list(&["a=1", "b=3"])).as_deref(), Some("b=3"));
    }

    #[test]
    fn a_new_version_of_a_package_is_another_image() {
        let packages = |version: &str| vec![format!("a={version}"), "b=1".to_owned()];
        let first = key(Distribution::Debian13, &packages("1"));
        assert_eq!(first, key(Distribution::Debian13, &packages("1")));
        assert_ne!(first, key(Distribution::Debian13, &packages("2")));
        assert_ne!(first, key(Distribution::Debian12, &packages("1")));
        assert_ne!(first, key(Distribution::Debian13, &packages("1")[..1]));
    }

    #[test]
    fn an_image_is_found_whole_or_not_at_all() {
        let hosts =
            std::env::temp_dir().join(format!("mayfly-emulated-host-test-{}", std::process::id()));
        let cancel = AtomicBool::new(false);
        let images = Images::new(&hosts, &cancel);
        let work = images.cache.work_dir(&cancel).expect("a folder");
        let kernel = work.path().join("boot/6.12.1-amd64");
        fs::create_dir_all(&kernel).expect("a folder");
        for file in [kernel.join("vmlinuz"), kernel.join("initrd"), work.path().join("disk.img")] {
            fs::write(file, "content").expect("a file");
        }
        let kernels = kernels(&work.path().join("boot")).expect("kernels");
        let distribution = Distribution::Debian13.to_string();
        let record =
            Record { key: "k".into(), distribution, disk_bytes: 7, kernels, packages: Vec::new() };
        assert!(Image::open(work.path(), "k").is_none(), "it has no record yet");
        fs::write(work.path().join(RECORD), serde_json::to_vec(&record).expect("JSON"))
            .expect("a file");
        let dir = hosts.join("rootfs/k");
        images.cache.rename(work, &dir).expect("renamed");
        let image = Image::open(&dir, "k").expect("whole");
        assert_eq!(image.boot_files(Platform::ALL[0]).expect("a kernel").release, "6.12.1-amd64");
        image.boot_files(Platform::ALL[1]).expect_err("no kernel 6.1");
        assert!(Image::open(&dir, "other").is_none(), "another key");
        images.remove_old(Distribution::Debian12, "new").expect("looked through");
        images.remove_old(Distribution::Debian13, "new").expect("looked through");
        assert!(dir.exists(), "one of another distribution, then one in use");
        fs::write(dir.join("boot/6.12.1-amd64/initrd"), "cut").expect("a file");
        assert!(Image::open(&dir, "k").is_none(), "a file of another length");
        drop(image);
        images.remove_old(Distribution::Debian13, "new").expect("removed");
        assert!(!dir.exists(), "one that nobody uses");
        fs::remove_dir_all(&hosts).expect("removed");
    }
}
