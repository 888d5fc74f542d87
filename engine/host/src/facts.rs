//! Facts that cost something to find out and hold until the host reboots or their subject changes.
//!
//! Kept as small JSON files in the runtime root. Each carries what it depends on (the host's boot
//! id and the caller's `subject`); a fact whose subject differs is no fact, so a stale one cannot
//! be used.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    boot_id: String,
    subject: String,
    fact: T,
}

/// The facts of this host.
#[derive(Debug, Clone)]
pub struct Facts {
    dir: PathBuf,
    boot_id: String,
}

impl Facts {
    /// Creates access to the facts kept below the runtime root of `layout`.
    pub fn new(layout: &Layout) -> Self {
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { dir: layout.facts(), boot_id: boot_id.trim().to_owned() }
    }

    /// Returns the fact `name` about `subject`, when it is known.
    pub fn get<T: DeserializeOwned>(&self, name: &str, subject: &str) -> Option<T> {
        let bytes = std::fs::read(self.dir.join(name)).ok()?;
        let envelope: Envelope<T> = serde_json::from_slice(&bytes).ok()?;
        (!self.boot_id.is_empty()
            && envelope.boot_id == self.boot_id
            && envelope.subject == subject)
            .then_some(envelope.fact)
    }

    /// Remembers a fact. A failure to write only means that it is found out again.
    pub fn put<T: Serialize>(&self, name: &str, subject: &str, fact: T) {
        let write = || -> std::io::Result<()> {
            Layout::create(&self.dir).map_err(std::io::Error::other)?;
            let envelope =
                Envelope { boot_id: self.boot_id.clone(), subject: subject.to_owned(), fact };
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            serde_json::to_writer(&mut file, &envelope)?;
            file.persist(self.dir.join(name))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, name, "cannot remember a fact");
        }
    }
}

/// Returns a fingerprint of a file, without which its content cannot have changed: device, inode,
/// size, and the times of its last change. The time of modification can be set (utimensat(2)), that
/// of the status change only by setting the clock, see inode(7).
///
/// # Errors
/// When the file cannot be looked at.
pub fn fingerprint(path: &std::path::Path) -> std::io::Result<String> {
    std::fs::metadata(path).map(|metadata| fingerprint_of(&metadata))
}

/// Returns what [`fingerprint`] does, of a file that was looked at already.
pub fn fingerprint_of(m: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!(
        "{}:{}:{}:{}.{}:{}.{}",
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_holds_for_its_subject_and_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::new(&Layout::new("/nonexistent", dir.path()));
        facts.put("kvm", "kernel-1", true);
        assert_eq!(facts.get::<bool>("kvm", "kernel-1"), Some(true));
        assert_eq!(facts.get::<bool>("kvm", "kernel-2"), None);
        let other_boot = Facts { boot_id: "another".into(), ..facts.clone() };
        assert_eq!(other_boot.get::<bool>("kvm", "kernel-1"), None);
        std::fs::write(dir.path().join("facts/kvm"), "{").unwrap();
        assert_eq!(facts.get::<bool>("kvm", "kernel-1"), None);
    }

    #[test]
    fn a_fingerprint_changes_with_the_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let before = fingerprint(file.path()).unwrap();
        std::fs::write(file.path(), "x").unwrap();
        let after = fingerprint(file.path()).unwrap();
        assert_ne!(before, after);
        // Other content of the same length, with the time of modification set back.
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(file.path(), "y").unwrap();
        file.as_file().set_modified(modified).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().modified().unwrap(), modified);
        assert_ne!(after, fingerprint(file.path()).unwrap());
    }
}
