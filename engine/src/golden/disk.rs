//! A disk file of a golden image: checked against its hash, and used through the very descriptor
//! that was checked.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mayfly_host::facts::{self, Facts};
use mayfly_snapshotter::{FileRef, SealKey};
use parking_lot::Mutex;

use super::error::GoldenError;

/// Two changes closer together than this may leave the same time on a file: the kernel takes it
/// from a clock that ticks (100 times a second at the least, `CONFIG_HZ`).
const TICK: Duration = Duration::from_millis(50);

/// An open disk file whose content is what the golden image needs.
#[derive(Debug)]
pub(super) struct VerifiedFile {
    file: File,
    path: PathBuf,
    reference: FileRef,
    /// What the file was like when its content was checked.
    fingerprint: Mutex<String>,
}

impl VerifiedFile {
    /// Opens the file at `path` and checks its content against `reference`, unless that was done
    /// since the host was booted and the file has not changed since. `key` keeps others from making
    /// up that it was.
    pub fn open(
        facts: &Facts,
        key: &SealKey,
        path: &Path,
        reference: &FileRef,
    ) -> Result<Self, GoldenError> {
        // A pipe in its place must not make anyone wait.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file =
            file.map_err(|cause| GoldenError::Io { action: "open", path: path.to_owned(), cause })?;
        let this = Self {
            file,
            path: path.to_owned(),
            reference: reference.clone(),
            fingerprint: Mutex::default(),
        };
        let fact = format!("verified-{}", reference.blake3);
        let subject = |fingerprint: &str| {
            let text = format!("{fingerprint} {} {}", reference.blake3, reference.len);
            format!("{fingerprint} {}", key.note(&text))
        };
        let seen = this.look()?;
        let fingerprint = if let Some(()) = facts.get::<()>(&fact, &subject(&seen)) {
            seen
        } else {
            let checked = this.check()?;
            facts.put(&fact, &subject(&checked), ());
            checked
        };
        *this.fingerprint.lock() = fingerprint;
        Ok(this)
    }

    /// Opens a descriptor for one VMM alone: through a duplicate (dup(2)) it could change the
    /// status flags of all other VMMs. Costs one fstat(2), unless the file has changed since it was
    /// checked.
    pub fn open_for_vmm(&self) -> Result<OwnedFd, GoldenError> {
        let mut fingerprint = self.fingerprint.lock();
        if self.look()? != *fingerprint {
            // Its name may have gone, which is a change as well; content is what counts.
            *fingerprint = self.check()?;
        }
        mayfly_host::descriptors::open_again(&self.file)
            .map(OwnedFd::from)
            .map_err(|cause| self.failed("use", cause))
    }

    fn look(&self) -> Result<String, GoldenError> {
        let metadata = self.file.metadata().map_err(|cause| self.failed("look at", cause))?;
        if !metadata.is_file() {
            return Err(self.failed("use", std::io::Error::other("it is no regular file")));
        }
        // Through a mapping that was written to before, content changes without a new time.
        let owners = [0, nix::unistd::geteuid().as_raw()];
        if metadata.mode() & 0o022 != 0 || !owners.contains(&metadata.uid()) {
            let cause =
                std::io::Error::other("another user may write it; remove it and build again");
            return Err(self.failed("use", cause));
        }
        Ok(facts::fingerprint_of(&metadata))
    }

    /// Hashes the file; what it was like all the while.
    fn check(&self) -> Result<String, GoldenError> {
        let metadata = self.file.metadata().map_err(|cause| self.failed("look at", cause))?;
        let changed = Duration::new(
            metadata.ctime().unsigned_abs(),
            u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if now.saturating_sub(changed) < TICK {
            // A change just after this one would be seen by its time.
            std::thread::sleep(TICK);
        }
        let before = self.look()?;
        self.reference.verify_open(&self.file, &self.path)?;
        if self.look()? != before {
            return Err(self.failed("check", std::io::Error::other("it changes while it is read")));
        }
        Ok(before)
    }

    fn failed(&self, action: &'static str, cause: std::io::Error) -> GoldenError {
        GoldenError::Io { action, path: self.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::os::unix::fs::FileExt;

    use super::*;
    use mayfly_host::layout::Layout;

    struct Place {
        dir: tempfile::TempDir,
        facts: Facts,
        key: SealKey,
        reference: FileRef,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let facts = Facts::new(&Layout::new("/nonexistent", dir.path().join("run")));
            let key = SealKey::load_or_create(&dir.path().join("seal.key")).unwrap();
            let path = dir.path().join("base.img");
            std::fs::write(&path, "good content").unwrap();
            Self { facts, key, reference: FileRef::of(&path).unwrap(), dir }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("base.img")
        }

        fn open(&self) -> Result<VerifiedFile, GoldenError> {
            VerifiedFile::open(&self.facts, &self.key, &self.path(), &self.reference)
        }
    }

    #[test]
    fn content_that_was_changed_is_refused_also_with_its_time_set_back() {
        let place = Place::new();
        let opened = place.open().unwrap();
        place.open().unwrap();
        let file = File::options().write(true).open(place.path()).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"evil", 0).unwrap();
        file.set_modified(before).unwrap();
        assert!(matches!(place.open(), Err(GoldenError::File(_))));
        assert!(
            matches!(opened.open_for_vmm(), Err(GoldenError::File(_))),
            "one that was opened before is handed out"
        );
        file.write_all_at(b"good", 0).unwrap();
        place.open().unwrap();
        opened.open_for_vmm().unwrap();
    }

    #[test]
    fn a_file_that_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;

        let place = Place::new();
        let opened = place.open().unwrap();
        let allow = |mode| {
            std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        allow(0o664);
        for error in [place.open().unwrap_err(), opened.open_for_vmm().unwrap_err()] {
            assert!(error.to_string().contains("another user may write it"), "{error}");
        }
        allow(0o644);
        opened.open_for_vmm().unwrap();
    }

    #[test]
    fn what_is_used_is_what_was_checked_whatever_becomes_of_the_name() {
        let place = Place::new();
        let opened = place.open().unwrap();
        std::fs::write(place.dir.path().join("evil"), "evil content").unwrap();
        std::fs::rename(place.dir.path().join("evil"), place.path()).unwrap();
        let mut file = File::from(opened.open_for_vmm().unwrap());
        file.rewind().unwrap();
        let text = std::io::read_to_string(file).unwrap();
        assert_eq!(text, "good content");
        place.open().unwrap_err();
    }

    #[test]
    fn what_one_vmm_does_to_its_descriptor_no_other_has() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let place = Place::new();
        let opened = place.open().unwrap();
        let (mine, other) = (opened.open_for_vmm().unwrap(), opened.open_for_vmm().unwrap());
        fcntl(&mine, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        let appends = |flags: nix::Result<i32>| flags.unwrap() & libc::O_APPEND != 0;
        assert!(appends(fcntl(&mine, FcntlArg::F_GETFL)), "the flag can be set");
        assert!(!appends(fcntl(&other, FcntlArg::F_GETFL)));
        assert!(!appends(fcntl(&opened.file, FcntlArg::F_GETFL)));
    }

    #[test]
    fn a_fact_that_was_made_up_is_not_believed() {
        let place = Place::new();
        place.open().unwrap();
        std::fs::write(place.path(), "evil content").unwrap();
        let fingerprint = facts::fingerprint(&place.path()).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = SealKey::load_or_create(&elsewhere.path().join("key")).unwrap();
        let text = format!("{fingerprint} {} {}", place.reference.blake3, place.reference.len);
        for subject in [fingerprint.clone(), format!("{fingerprint} {}", foreign.note(&text))] {
            place.facts.put(&format!("verified-{}", place.reference.blake3), &subject, ());
            assert!(matches!(place.open(), Err(GoldenError::File(_))), "{subject}");
        }
        // With the key it is believed: the check above can fail.
        let subject = format!("{fingerprint} {}", place.key.note(&text));
        place.facts.put(&format!("verified-{}", place.reference.blake3), &subject, ());
        place.open().unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let place = Place::new();
        std::fs::remove_file(place.path()).unwrap();
        nix::unistd::mkfifo(&place.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(place.open(), Err(GoldenError::Io { .. })));
    }
}
