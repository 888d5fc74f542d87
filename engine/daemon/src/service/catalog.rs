//! Catalog of golden images, followed as they come, change and go.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Digest, Error, Manifest, Store};
use parking_lot::Mutex;

/// How often to look whether the store has changed.
const INTERVAL: Duration = Duration::from_secs(2);
/// A look that was taken so short ago is good enough: requests for goldens that are not there must
/// not keep us busy.
const FRESH: Duration = Duration::from_millis(200);

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
    /// When the store was read last, and what its files were like then.
    looked: tokio::sync::Mutex<Option<(Instant, Vec<FileMark>)>>,
}

type FileMark = (std::ffi::OsString, u64, std::time::SystemTime);

impl Catalog {
    /// Creates a catalog that has not been read yet.
    pub fn new(layout: &Layout) -> Self {
        Self {
            store: layout.store(),
            entries: Arc::default(),
            looked: tokio::sync::Mutex::new(None),
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

    /// Reads the store, unless that was done a moment ago or nothing has changed. Whether anything
    /// has.
    ///
    /// # Errors
    /// Those of [`Store::open_read_only`], except that no store at all is an empty one.
    pub async fn refresh(&self) -> Result<bool, Error> {
        let mut looked = self.looked.lock().await;
        if looked.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH) {
            return Ok(false);
        }
        let (store, before) = (self.store.clone(), looked.take().map(|(_, marks)| marks));
        let read = tokio::task::spawn_blocking(move || {
            let marks = marks(&store);
            let found = if before.as_ref() == Some(&marks) { None } else { Some(read(&store)?) };
            Ok::<_, Error>((marks, found))
        });
        let (marks, found) = match read.await {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        *looked = Some((Instant::now(), marks));
        let Some(found) = found else { return Ok(false) };
        let mut entries = self.entries.lock();
        let changed = *entries != found;
        *entries = found;
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

/// Names, sizes and times of the files that a commit changes: cheaper to look at than the database
/// is to open.
fn marks(store: &Path) -> Vec<FileMark> {
    let files = std::fs::read_dir(store.join("db")).into_iter().flatten().flatten();
    let mut marks: Vec<FileMark> = files
        .filter_map(|file| {
            let metadata = file.metadata().ok()?;
            // Readers make empty logs, and change the index of the log each time.
            if metadata.len() == 0 || file.file_name().as_bytes().ends_with(b"-shm") {
                return None;
            }
            Some((file.file_name(), metadata.len(), metadata.modified().ok()?))
        })
        .collect();
    marks.sort();
    marks
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
    async fn reading_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path().join("store")).unwrap());
        let before = marks(&dir.path().join("store"));
        assert!(!before.is_empty());
        for _ in 0..2 {
            Store::open_read_only(dir.path().join("store")).unwrap().entries().unwrap();
            assert_eq!(marks(&dir.path().join("store")), before);
        }
    }
}
