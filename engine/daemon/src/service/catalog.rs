//! Catalog of golden images, followed as they come, change and go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Changes, Digest, Error, Manifest, Store, Version};
use parking_lot::Mutex;

/// How often to look whether the store has changed, so that pools follow although nobody asks for a
/// session. Each request looks for itself.
const INTERVAL: Duration = Duration::from_secs(2);

/// Properties that make a golden image another one under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    ram: Digest,
    device: Digest,
}

impl Identity {
    /// Creates the identity of a golden with this manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let streams = &manifest.streams;
        Self { ram: streams.ram.table_blake3, device: streams.device.table_blake3 }
    }
}

/// A golden image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the golden image.
    pub name: String,
    /// Identity of the golden image.
    pub identity: Identity,
    /// Bytes that it takes in the store.
    pub stored_bytes: u64,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Size of its disk in bytes.
    pub disk_bytes: u64,
}

/// The catalog of golden images in the store.
#[derive(Debug)]
pub struct Catalog {
    store: PathBuf,
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    changes: Arc<Mutex<Changes>>,
    /// The version of the store that the entries are of.
    read: Mutex<Option<Version>>,
    /// Held while the store is read.
    reading: tokio::sync::Mutex<()>,
}

impl Catalog {
    /// Creates a catalog that has not been read yet.
    pub fn new(layout: &Layout) -> Self {
        Self {
            changes: Arc::new(Mutex::new(Changes::of(layout.store()))),
            store: layout.store(),
            entries: Arc::default(),
            read: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Returns all golden images, sorted by name.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().values().cloned().collect()
    }

    /// Returns the golden image with this name.
    pub fn get(&self, name: &str) -> Option<Entry> {
        self.entries.lock().get(name).cloned()
    }

    /// Returns what makes the golden image with this name another one than an earlier.
    pub fn identity(&self, name: &str) -> Option<Identity> {
        self.entries.lock().get(name).map(|entry| entry.identity.clone())
    }

    /// Returns whether there is a golden image with this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.lock().contains_key(name)
    }

    /// Returns whether the entries are those of the store at this moment; false also when that cannot
    /// be told at once.
    /// Takes some microseconds.
    pub fn is_current(&self) -> bool {
        let now = self.changes.lock().version().ok();
        now.is_some() && now == *self.read.lock()
    }

    /// Reads the store, unless nothing has changed. Whether anything has.
    ///
    /// # Errors
    /// Those of [`Store::open_read_only`], except that no store at all is an empty one.
    pub async fn refresh(&self) -> Result<bool, Error> {
        let _reading = self.reading.lock().await;
        let (store, changes, before) =
            (self.store.clone(), self.changes.clone(), *self.read.lock());
        let read = tokio::task::spawn_blocking(move || {
            // First: what is committed while the store is read may or may not be seen, and is read
            // again. `None` while another process repairs the database.
            let version = match changes.lock().version() {
                Err(Error::Database { .. }) => None,
                other => Some(other?),
            };
            let is_known = version.is_some() && version == before;
            let found = if is_known { None } else { Some(read(&store)?) };
            Ok::<_, Error>((version, found))
        });
        let (version, found) = match read.await {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let Some(found) = found else { return Ok(false) };
        let changed = {
            let mut entries = self.entries.lock();
            let changed = *entries != found;
            *entries = found;
            changed
        };
        // Last: who finds it current uses the entries.
        *self.read.lock() = version;
        Ok(changed)
    }

    /// Follows the store for ever; calls `changed` when there is something new.
    pub async fn watch(&self, changed: impl Fn()) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            match self.refresh().await {
                Ok(true) => changed(),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "cannot read the golden images"),
            }
        }
    }
}

fn read(store: &Path) -> Result<BTreeMap<String, Entry>, Error> {
    let store = match Store::open_read_only(store) {
        Ok(store) => store,
        Err(Error::NoStore { .. }) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for (name, manifest) in store.entries()? {
        match manifest {
            Ok(manifest) => {
                let entry = Entry {
                    identity: Identity::of(&manifest),
                    stored_bytes: manifest.stored_bytes(),
                    memory_bytes: manifest.vm.memory_bytes,
                    accel: manifest.pins.accel.clone(),
                    vcpus: manifest.vm.vcpus,
                    disk_bytes: manifest.base_disk.len,
                    name: name.clone(),
                };
                found.insert(name, entry);
            }
            Err(error) => tracing::warn!(golden = %name, %error, "passed over"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_store_is_an_empty_one_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(&Layout::new(dir.path(), dir.path()));
        assert!(!catalog.refresh().await.unwrap());
        assert!(catalog.entries().is_empty() && catalog.get("default").is_none());
    }

    #[tokio::test]
    async fn a_damaged_store_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("store/db")).unwrap();
        std::fs::write(dir.path().join("store/db/store.sqlite"), "nothing").unwrap();
        let catalog = Catalog::new(&Layout::new(dir.path(), dir.path()));
        assert!(matches!(catalog.refresh().await, Err(Error::DamagedStore { .. })));
    }

    #[tokio::test]
    async fn a_store_of_an_earlier_version_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("store/db")).unwrap();
        std::fs::write(dir.path().join("store/db/CURRENT"), "MANIFEST-000005\n").unwrap();
        let catalog = Catalog::new(&Layout::new(dir.path(), dir.path()));
        assert!(matches!(catalog.refresh().await, Err(Error::StoreVersion { found: 1, .. })));
    }

    #[tokio::test]
    async fn a_commit_of_another_is_seen_at_once_and_reading_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(&Layout::new(dir.path(), dir.path()));
        assert!(!catalog.is_current(), "it was not read yet");
        catalog.refresh().await.unwrap();
        for _ in 0..3 {
            assert!(catalog.is_current());
            // It counts how often it was opened for writing.
            drop(Store::open(dir.path().join("store")).unwrap());
            assert!(!catalog.is_current());
            assert!(!catalog.refresh().await.unwrap(), "there is no golden in it");
            Store::open_read_only(dir.path().join("store")).unwrap().entries().unwrap();
        }
        assert!(catalog.is_current());
    }
}
