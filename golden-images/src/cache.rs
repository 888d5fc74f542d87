//! The content-addressed cache of builds.
//!
//! ```text
//! <cache>/rootfs/<key>/        a complete build: it gets this name by rename, after its files are on disk
//! <cache>/rootfs/.tmp-*/       a build under way, locked by its builder; an unlocked one is garbage and removed
//! <cache>/apt/<suite>-<hash>/  package files and lists, shared by the builds of a suite and mirror
//! <cache>/locks/               lock files
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::artifacts::{BootArtifacts, Record, artifact_dir};
use crate::error::{Error, IoContext as _};
use crate::key::BuildKey;
use crate::seal::Seal;

const RECORD: &str = "artifacts.json";
const TEMP_PREFIX: &str = ".tmp-";
/// How often a taken lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Why an entry cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// There is none.
    Missing,
    /// It is not as it was written; what is wrong, in words.
    Changed(String),
}

/// The cache below one directory. Public for other images that are made in the same way.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// A directory for a build under way; removed when dropped, unless published.
#[derive(Debug)]
pub struct WorkDir {
    dir: TempDir,
    _lock: Flock<File>,
}

impl WorkDir {
    /// Returns the path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Cache {
    /// Creates a handle of the cache below `dir`, which is made on first use.
    pub fn new(dir: PathBuf) -> Self {
        // Hook scripts change their working directory.
        Self { dir: std::path::absolute(&dir).unwrap_or(dir) }
    }

    fn make(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        // The folders above it may be those of all of Mayfly, which are for root alone.
        let own = || DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        own().and_then(|()| fs::create_dir_all(&path)).context("create", &path)?;
        Ok(path)
    }

    /// Takes the exclusive lock `name`; `None` when another has it.
    ///
    /// # Errors
    /// The lock file cannot be opened or locked.
    pub fn try_lock(&self, name: &str) -> Result<Option<Flock<File>>, Error> {
        let path = self.make("locks")?.join(name);
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
                .open(&path)
                .context("open", &path)
        };
        loop {
            match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
                // A pruned lock file has no name any more; a lock on it excludes nobody.
                Ok(lock) if lock.metadata().context("look at", &path)?.nlink() > 0 => {
                    return Ok(Some(lock));
                }
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
                Err((_, error)) => return Err(error).context("lock", &path),
            }
        }
    }

    /// Waits for the exclusive lock `name`.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` is set meanwhile.
    pub(crate) fn lock(&self, name: &str, cancel: &AtomicBool) -> Result<Flock<File>, Error> {
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    /// The complete build of `key`, as its sealed record tells. The content of the files is not
    /// looked at.
    pub(crate) fn find(&self, key: BuildKey, seal: &dyn Seal) -> Result<BootArtifacts, Unusable> {
        let dir = artifact_dir(&self.dir, &key.to_string());
        let path = dir.join(RECORD);
        let changed = |why: &str| Unusable::Changed(format!("{} {why}", path.display()));
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::Missing),
            other => other.map_err(|error| changed(&format!("cannot be read: {error}")))?,
        };
        let record: Record = serde_json::from_slice(&bytes)
            .map_err(|error| changed(&format!("is damaged: {error}")))?;
        record.open(key, &dir, seal).map_err(changed)
    }

    /// As [`Cache::find`], when each file has the content it was written with.
    pub(crate) fn find_whole(
        &self,
        key: BuildKey,
        seal: &dyn Seal,
    ) -> Result<BootArtifacts, Unusable> {
        let found = self.find(key, seal)?;
        for file in [&found.kernel, &found.initramfs, &found.base_disk] {
            seal.check(file).map_err(Unusable::Changed)?;
        }
        Ok(found)
    }

    /// Opens the package cache for `suite` from `mirrors`, with the directories that apt wants.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn apt(&self, suite: &str, mirrors: &str) -> Result<PathBuf, Error> {
        let hash = blake3::hash(mirrors.as_bytes()).to_hex();
        let name = format!("apt/{suite}-{}", &hash[..16]);
        self.make(&format!("{name}/archives/partial"))?;
        self.make(&format!("{name}/lists/partial"))?;
        Ok(self.dir.join(name))
    }

    /// Makes a directory for a build and removes those of builders that died.
    ///
    /// # Errors
    /// A directory cannot be made or removed, or `cancel` is set.
    pub fn work_dir(&self, cancel: &AtomicBool) -> Result<WorkDir, Error> {
        // Held while a directory is made and locked, so that no one takes it for garbage in
        // between.
        let _guard = self.lock("work-dirs", cancel)?;
        let parent = self.make("rootfs")?;
        self.reap(&parent)?;
        let dir = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir_in(&parent)
            .context("create a directory in", &parent)?;
        let lock = try_lock(dir.path()).context("lock", dir.path())?;
        let Some(lock) = lock else {
            return Err(io::Error::from(Errno::EWOULDBLOCK)).context("lock", dir.path());
        };
        Ok(WorkDir { dir, _lock: lock })
    }

    fn reap(&self, parent: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(parent).context("read", parent)? {
            let entry = entry.context("read", parent)?;
            let path = entry.path();
            if !entry.file_name().as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
                continue;
            }
            if let Ok(Some(_lock)) = try_lock(&path) {
                tracing::warn!(path = %path.display(), "removing what an interrupted build left");
                fs::remove_dir_all(&path).context("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Removes the complete builds that `keep` does not want, unless a builder works on them;
    /// returns how many bytes they took on disk.
    pub(crate) fn prune(
        &self,
        keep: &dyn Fn(&str) -> bool,
        cancel: &AtomicBool,
    ) -> Result<u64, Error> {
        let parent = self.make("rootfs")?;
        let mut freed = 0;
        for entry in fs::read_dir(&parent).context("read", &parent)? {
            let name = entry.context("read", &parent)?.file_name().to_string_lossy().into_owned();
            if BuildKey::from_hex(&name).is_none() || keep(&name) {
                continue;
            }
            let lock_path = self.make("locks")?.join(format!("{name}.lock"));
            let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
            let Ok(lock) =
                Flock::lock(lock.context("open", &lock_path)?, FlockArg::LockExclusiveNonblock)
            else {
                continue;
            };
            // In one step out of sight; what is left of it after a crash is garbage as any other.
            let garbage = self.work_dir(cancel)?;
            let moved = garbage.path().join(&name);
            fs::rename(parent.join(&name), &moved).context("remove", &parent.join(&name))?;
            freed += allocated(&moved);
            // The file goes before its lock: whoever waits for the lock finds that out in `lock`.
            fs::remove_file(&lock_path).context("remove", &lock_path)?;
            drop(lock);
        }
        Ok(freed)
    }

    /// Makes the build in `work` the complete build of `key`. `work` must hold nothing but the
    /// files of `record`.
    pub(crate) fn publish(
        &self,
        key: BuildKey,
        work: WorkDir,
        record: Record,
        seal: &dyn Seal,
    ) -> Result<BootArtifacts, Error> {
        let path = work.path().join(RECORD);
        let json = record.sealed(seal).and_then(|record| serde_json::to_vec_pretty(&record));
        let json = json.map_err(io::Error::other).context("write", &path)?;
        fs::write(&path, json).context("write", &path)?;
        File::open(&path).and_then(|f| f.sync_all()).context("write", &path)?;
        let target = artifact_dir(&self.dir, &key.to_string());
        self.rename(work, &target)?;
        self.find(key, seal).map_err(|_| Error::Io {
            action: "read back",
            path: target,
            cause: io::Error::other("the entry changed while it was written"),
        })
    }

    /// Gives a finished directory, whose files are on disk, the name `target` in place of what has
    /// it. Whoever has that name's lock is the only one who may.
    ///
    /// # Errors
    /// The rename fails, or what was there cannot be removed.
    pub fn rename(&self, work: WorkDir, target: &Path) -> Result<(), Error> {
        File::open(work.path()).and_then(|f| f.sync_all()).context("write", work.path())?;
        // Only a damaged entry can be here: a complete one would have been found, and builders of a
        // key wait for each other.
        match fs::remove_dir_all(target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("replace", target);
            }
            _ => {}
        }
        fs::rename(work.path(), target).context("rename the build to", target)?;
        // The directory has moved: nothing is left to remove under its old name.
        let _ = work.dir.keep();
        let parent = target.parent().unwrap_or(&self.dir);
        File::open(parent).and_then(|f| f.sync_all()).context("write", parent)
    }
}

/// Bytes that the files directly in `dir` take on disk.
fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry_file::EntryFile;
    use crate::seal::KeyedSeal;

    static NO: AtomicBool = AtomicBool::new(false);
    const SEAL: &KeyedSeal = &KeyedSeal([1; 32]);

    fn record(key: BuildKey, dir: &Path) -> Record {
        for name in ["disk", "kernel", "initramfs"] {
            fs::write(dir.join(name), name).expect("written");
        }
        Record {
            key: key.to_string(),
            base_disk: EntryFile::seal(dir, "disk", SEAL).expect("sealed"),
            kernel: EntryFile::seal(dir, "kernel", SEAL).expect("sealed"),
            kernel_format: crate::ImageFormat::Vmlinux,
            kernel_release: "1".into(),
            initramfs: EntryFile::seal(dir, "initramfs", SEAL).expect("sealed"),
            cmdline: String::new(),
            vcpus: 1,
            memory_mib: 256,
            docker: false,
            packages: vec![],
            warm_commands: vec![],
            note: None,
        }
    }

    fn key(n: u8) -> BuildKey {
        BuildKey::from_hex(&blake3::hash(&[n]).to_hex()).expect("hex")
    }

    fn entries(dir: &Path) -> Vec<String> {
        let names =
            fs::read_dir(dir.join("rootfs")).expect("there").map(|e| e.expect("entry").file_name());
        names.map(|n| n.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn an_entry_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        let work = cache.work_dir(&NO).expect("made");
        let record = record(key(1), work.path());
        cache.find(key(1), SEAL).unwrap_err();
        let found = cache.publish(key(1), work, record, SEAL).expect("published");
        assert_eq!(fs::read(found.base_disk.path).expect("there"), b"disk");
        cache.find(key(2), SEAL).unwrap_err();
        assert_eq!(entries(dir.path()), [key(1).to_string()]);
        assert!(crate::find_artifacts(dir.path(), &key(1).to_string(), SEAL).is_some());
        assert!(
            crate::find_artifacts(dir.path(), &format!("../rootfs/{}", key(1)), SEAL).is_none()
        );
    }

    #[test]
    fn a_damaged_entry_is_not_found_and_can_be_replaced() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        let work = cache.work_dir(&NO).expect("made");
        let first = record(key(1), work.path());
        let found = cache.publish(key(1), work, first, SEAL).expect("published");
        fs::write(&found.kernel.path, "short").expect("written");
        cache.find(key(1), SEAL).unwrap_err();
        let work = cache.work_dir(&NO).expect("made");
        let second = record(key(1), work.path());
        cache.publish(key(1), work, second, SEAL).expect("published again");
        cache.find(key(1), SEAL).expect("there");
        fs::write(artifact_dir(dir.path(), &key(1).to_string()).join(RECORD), "{")
            .expect("written");
        cache.find(key(1), SEAL).unwrap_err();
    }

    #[test]
    fn an_entry_that_others_wrote_or_altered_is_not_used() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        let publish = |seal: &KeyedSeal| {
            let work = cache.work_dir(&NO).expect("made");
            let record = record(key(1), work.path());
            cache.publish(key(1), work, record, seal).expect("published")
        };
        let why = |result: Result<BootArtifacts, Unusable>| match result {
            Err(Unusable::Changed(why)) => why,
            other => panic!("{other:?}"),
        };
        let whole = || cache.find_whole(key(1), SEAL);
        assert!(matches!(whole(), Err(Unusable::Missing)));
        let found = publish(SEAL);
        whole().expect("as it was written");
        for file in [&found.kernel, &found.initramfs, &found.base_disk] {
            let good = fs::read(&file.path).expect("there");
            let evil = vec![b'x'; good.len()];
            fs::write(&file.path, &evil).expect("written");
            assert!(why(whole()).contains("was changed"), "of the same length");
            // With its hash in the record put right.
            let json = artifact_dir(dir.path(), &key(1).to_string()).join(RECORD);
            let text = fs::read_to_string(&json).expect("there");
            let forged = blake3::hash(&evil).to_hex().to_string();
            let forged = text.replace(file.blake3.to_hex().as_str(), &forged);
            fs::write(&json, forged).expect("written");
            assert!(why(whole()).contains("does not carry this host's seal"));
            fs::write(&json, text).expect("written");
            fs::write(&file.path, good).expect("written");
            whole().expect("as it was written again");
        }
        publish(&KeyedSeal([2; 32]));
        assert!(why(whole()).contains("does not carry this host's seal"));
    }

    #[test]
    fn the_directory_of_a_dead_builder_is_removed_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        let living = cache.work_dir(&NO).expect("made");
        let dead = dir.path().join("rootfs/.tmp-dead");
        fs::create_dir_all(dead.join("root/etc")).expect("made");
        drop(cache.work_dir(&NO).expect("made"));
        assert!(!dead.exists() && living.path().exists());
        drop(living);
        assert!(entries(dir.path()).is_empty());
    }

    #[test]
    fn pruning_removes_what_nobody_wants_or_works_on() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        for n in 1..=3 {
            let work = cache.work_dir(&NO).expect("made");
            let record = record(key(n), work.path());
            cache.publish(key(n), work, record, SEAL).expect("published");
        }
        let busy = cache.lock(&format!("{}.lock", key(2)), &NO).expect("free");
        let wanted = key(1).to_string();
        let freed = cache.prune(&|name| name == wanted, &NO).expect("pruned");
        assert!(freed >= 4 * 512, "{freed}");
        assert!(
            cache.find(key(1), SEAL).is_ok()
                && cache.find(key(2), SEAL).is_ok()
                && cache.find(key(3), SEAL).is_err()
        );
        assert_eq!(entries(dir.path()).len(), 2);
        drop(busy);
        cache.prune(&|_| false, &NO).expect("pruned");
        assert!(entries(dir.path()).is_empty());
        cache.lock(&format!("{}.lock", key(2)), &NO).expect("made anew");
    }

    #[test]
    fn waiting_for_a_lock_can_be_cancelled() {
        let dir = tempfile::tempdir().expect("temp dir");
        let cache = Cache::new(dir.path().into());
        let _held = cache.lock("x", &NO).expect("free");
        assert!(matches!(cache.lock("x", &AtomicBool::new(true)), Err(Error::Cancelled)));
    }
}
