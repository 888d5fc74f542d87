//! Loads a golden image for restoring: metadata from the store, disk files verified, this host
//! checked against its pins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mayfly_golden_images::{BootArtifacts, find_artifacts};
use mayfly_host::facts::Facts;
use mayfly_host::layout::Layout;
use mayfly_snapshotter::{Digest, FileRef, Manifest, SealKey, Store, StreamKind, StreamReader};
use mayfly_vmm::{Accel, DiskFormat, DiskLayer, Driver, MachineShape};

use super::artifacts::ArtifactSeal;
use super::disk::VerifiedFile;
use super::error::GoldenError;
use super::first_steps::FirstSteps;
use super::pins::host_pins;
use super::tsc;
use crate::kvm;
use crate::session::OverlayTemplate;

/// Everything a session needs of its golden image, held open. Cheap to share.
#[derive(Debug)]
pub struct LoadedGolden {
    manifest: Manifest,
    shape: MachineShape,
    ram_key: String,
    device_state: Arc<[u8]>,
    base_disk: VerifiedFile,
    disk_delta: VerifiedFile,
    overlay: OverlayTemplate,
    first_steps: FirstSteps,
    artifacts: Option<BootArtifacts>,
    artifact_seal: ArtifactSeal,
}

impl LoadedGolden {
    /// Loads golden `name`.
    ///
    /// # Errors
    /// [`GoldenError`]: unknown name, a host that does not match, a damaged or missing file.
    pub fn open(layout: &Layout, driver: &dyn Driver, name: &str) -> Result<Self, GoldenError> {
        let store = Store::open_read_only(layout.store())?;
        // An unknown name is told before a missing key.
        store.manifest(name)?;
        let key = SealKey::load(layout.seal_key())?;
        let store = store.with_seal_key(key.clone());
        let (manifest, _) = store.sealed(name)?;
        let accel = accel_of(&manifest)?;
        let host = host_pins(driver, accel, manifest.pins.kernel_blake3);
        let mismatch = |mismatch| GoldenError::Mismatch { name: name.to_owned(), mismatch };
        manifest.pins.check(&host).map_err(mismatch)?;
        match accel {
            Accel::Tcg => check_clock(&manifest)?,
            Accel::Kvm => {
                kvm::require_device().map_err(|obstacle| GoldenError::NeedsKvm {
                    name: name.to_owned(),
                    obstacle,
                })?;
            }
        }

        let facts = Facts::new(layout);
        let base_path = base_disk_path(layout, &manifest)?;
        let base_disk = VerifiedFile::open(&facts, &key, &base_path, &manifest.base_disk)?;

        let device = store.reader(&manifest, StreamKind::Device)?;
        let device_state = read_all(&device)?.into();
        let disk_delta = disk_delta(layout, &facts, &key, &store, &manifest)?;

        let shape = MachineShape {
            accel,
            vcpus: manifest.vm.vcpus,
            memory_bytes: manifest.vm.memory_bytes,
        };
        let overlay = OverlayTemplate::new(manifest.base_disk.len)?;
        let ram_key = manifest.streams.ram.table_blake3.to_string();
        let artifact_seal = ArtifactSeal::new(key, facts);
        let image = label_of(&manifest, label::IMAGE)?;
        let artifacts = find_artifacts(&layout.images(), image, &artifact_seal);
        Ok(Self {
            shape,
            ram_key,
            device_state,
            base_disk,
            disk_delta,
            overlay,
            first_steps: FirstSteps::of(&manifest),
            artifacts,
            artifact_seal,
            manifest,
        })
    }

    /// Returns the name of the golden image.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Returns the manifest of the golden image.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the shape of its machine.
    pub fn shape(&self) -> &MachineShape {
        &self.shape
    }

    /// Returns whether a Docker daemon runs in its guests.
    pub fn has_docker(&self) -> bool {
        self.manifest.labels.contains_key(label::DOCKER)
    }

    /// Returns the user of commands that name none; `None` for root.
    pub fn default_user(&self) -> Option<&str> {
        self.manifest.labels.get(label::DEFAULT_USER).map(String::as_str)
    }

    /// Returns what its sessions do first.
    pub(crate) fn first_steps(&self) -> &FirstSteps {
        &self.first_steps
    }

    /// Returns the artifacts it was booted from, to boot it again.
    ///
    /// # Errors
    /// [`GoldenError::NoArtifacts`].
    pub fn boot_artifacts(&self) -> Result<&BootArtifacts, GoldenError> {
        let found = self
            .artifacts
            .as_ref()
            .filter(|a| self.manifest.pins.kernel_blake3 == Digest::from(a.kernel.blake3));
        found.ok_or_else(|| GoldenError::NoArtifacts { name: self.manifest.name.to_string() })
    }

    /// What [`LoadedGolden::boot_artifacts`] are checked with when they are booted.
    pub(super) fn artifact_seal(&self) -> &ArtifactSeal {
        &self.artifact_seal
    }

    /// Content identity of its memory.
    pub(crate) fn ram_key(&self) -> &str {
        &self.ram_key
    }

    pub(crate) fn device_state(&self) -> &Arc<[u8]> {
        &self.device_state
    }

    pub(crate) fn overlay(&self) -> &OverlayTemplate {
        &self.overlay
    }

    /// Opens the golden's own disk layers for one VMM, read-only, base first.
    ///
    /// # Errors
    /// [`GoldenError`] when no more files can be opened.
    pub fn disk_layers(&self) -> Result<Vec<DiskLayer>, GoldenError> {
        Ok(vec![
            DiskLayer { file: self.base_disk.open_for_vmm()?, format: DiskFormat::Raw },
            DiskLayer { file: self.disk_delta.open_for_vmm()?, format: DiskFormat::Qcow2 },
        ])
    }
}

/// Labels of a manifest that say where the parts outside the store are.
pub(super) mod label {
    /// Key of the boot artifacts, and thereby the folder of the base disk.
    pub const IMAGE: &str = "image_key";
    /// blake3 of the disk delta's bytes.
    pub const DELTA_BLAKE3: &str = "disk_delta_blake3";
    /// Frequency of the time stamp counter the guest was booted with, in kHz.
    pub const TSC_KHZ: &str = "tsc_khz";
    /// Version of the guest's packages, one per line.
    pub const PACKAGES: &str = "packages";
    /// Set where a Docker daemon runs in its guests.
    pub const DOCKER: &str = "docker";
    /// User of commands that name none, where that is not root.
    pub const DEFAULT_USER: &str = "default_user";
    /// The recipe's `warm_up` commands, as a list in JSON.
    pub const WARM_UP: &str = "warm_up";
}

/// Path of a golden's base disk.
pub(super) fn base_disk_path(layout: &Layout, manifest: &Manifest) -> Result<PathBuf, GoldenError> {
    let key = label_of(manifest, label::IMAGE)?;
    let name = manifest.base_disk.file_name.as_str();
    // Of a manifest that is to be removed nothing is known to be true, and this path is removed
    // with it.
    if key.parse::<Digest>().is_err() || Path::new(name).file_name() != Some(name.as_ref()) {
        return Err(GoldenError::Incomplete {
            name: manifest.name.to_string(),
            what: label::IMAGE,
        });
    }
    Ok(mayfly_golden_images::artifact_dir(&layout.images(), key)
        .join(&manifest.base_disk.file_name))
}

/// Path of a golden's disk delta as a file; named by content, so that equal deltas are one file.
pub(super) fn delta_path(layout: &Layout, blake3: &Digest) -> PathBuf {
    layout.disks().join(format!("{blake3}.qcow2"))
}

fn label_of<'a>(manifest: &'a Manifest, label: &'static str) -> Result<&'a str, GoldenError> {
    manifest
        .labels
        .get(label)
        .map(String::as_str)
        .ok_or_else(|| GoldenError::Incomplete { name: manifest.name.to_string(), what: label })
}

/// The accelerator that a golden was made with.
pub(super) fn accel_of(manifest: &Manifest) -> Result<Accel, GoldenError> {
    let name = || manifest.name.to_string();
    manifest.pins.accel.parse().map_err(|reason| GoldenError::Accel { name: name(), reason })
}

/// A guest under software emulation reads the host's time stamp counter and believes in the
/// frequency it was booted with.
pub(super) fn check_clock(manifest: &Manifest) -> Result<(), GoldenError> {
    let golden = label_of(manifest, label::TSC_KHZ)?.parse().unwrap_or(0);
    let host = tsc::khz();
    if tsc::same(golden, host) {
        return Ok(());
    }
    Err(GoldenError::Clock { name: manifest.name.to_string(), golden, host })
}

/// The disk delta as a file that a VMM can open: taken out of the store when it is not there, or
/// not what it should be.
fn disk_delta(
    layout: &Layout,
    facts: &Facts,
    key: &SealKey,
    store: &Store,
    manifest: &Manifest,
) -> Result<VerifiedFile, GoldenError> {
    let text = label_of(manifest, label::DELTA_BLAKE3)?;
    let damaged =
        |_| GoldenError::Incomplete { name: manifest.name.to_string(), what: label::DELTA_BLAKE3 };
    let blake3: Digest = text.parse().map_err(damaged)?;
    let path = delta_path(layout, &blake3);
    let reference =
        FileRef { file_name: format!("{blake3}.qcow2"), blake3, len: manifest.streams.disk.len };
    if let Ok(file) = VerifiedFile::open(facts, key, &path, &reference) {
        return Ok(file);
    }
    let failed = |action| {
        let path = path.clone();
        move |cause| GoldenError::Io { action, path, cause }
    };
    Layout::create(&layout.disks()).map_err(|e| failed("create")(std::io::Error::other(e)))?;
    let file = tempfile::NamedTempFile::new_in(layout.disks()).map_err(failed("create"))?;
    let reader = store.reader(manifest, StreamKind::Disk)?;
    reader.copy_to(file.as_file(), &mut |_| {})?;
    file.as_file().sync_all().map_err(failed("write"))?;
    file.persist(&path).map_err(|e| failed("create")(e.error))?;
    VerifiedFile::open(facts, key, &path, &reference)
}

fn read_all(reader: &StreamReader) -> Result<Vec<u8>, GoldenError> {
    let mut bytes = vec![0; usize::try_from(reader.len()).unwrap_or(usize::MAX)];
    for (chunk, part) in bytes.chunks_mut(reader.chunk_size()).enumerate() {
        if !reader.is_zero(chunk) {
            reader.read_chunk(chunk, part)?;
        }
    }
    Ok(bytes)
}
