//! The parts of a golden as plain files, taken out of the store.

use std::fs::File;
use std::path::{Path, PathBuf};

use mayfly_engine::Engine;
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::session::OverlayTemplate;
use mayfly_golden_images::cmdline::{emulation_parameter, host_tsc_khz};
use mayfly_snapshotter::{Store, StreamKind};
use mayfly_vmm::{Accel, DiskFormat, DiskLayer, MachineShape};

use super::qemu::layer;
use crate::error::{BenchError, io};

/// The files of one golden. All but the boot artifacts are in `dir` and go with it.
#[derive(Debug)]
pub struct Artifacts {
    /// The QEMU program.
    pub program: PathBuf,
    /// Shape of the machine.
    pub shape: MachineShape,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial ramdisk.
    pub initramfs: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// Memory of the stopped guest, sparse.
    pub ram: PathBuf,
    /// Device state without memory.
    pub device_state: Vec<u8>,
    /// Bytes of the guest's disk.
    pub disk_bytes: u64,
    base_disk: PathBuf,
    disk_delta: PathBuf,
    overlay: OverlayTemplate,
    dir: tempfile::TempDir,
}

impl Artifacts {
    /// Takes `golden` out of the store of `engine`, into a folder in the directory for temporary
    /// files.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn take(engine: &Engine, golden: &LoadedGolden) -> Result<Self, BenchError> {
        let manifest = golden.manifest();
        let layout = engine.layout();
        let dir = tempfile::Builder::new()
            .prefix("mayfly-bench-")
            .tempdir()
            .map_err(io("make", "a folder for files"))?;
        let store = Store::open_read_only(layout.store())?;
        let copy = |kind: StreamKind, name: &str| {
            let path = dir.path().join(name);
            let file = File::create_new(&path).map_err(io("create", &path))?;
            store.reader(manifest, kind)?.copy_to(&file, &mut |_| {})?;
            Ok::<_, BenchError>(path)
        };
        let ram = copy(StreamKind::Ram, "ram")?;
        let disk_delta = copy(StreamKind::Disk, "delta.qcow2")?;
        let device = copy(StreamKind::Device, "device")?;
        let device_state = std::fs::read(&device).map_err(io("read", &device))?;

        let boot = golden.boot_artifacts()?;
        let accel = golden.shape().accel;
        let own = &manifest.vm.kernel_cmdline;
        let cmdline = match accel {
            Accel::Kvm => own.clone(),
            Accel::Tcg => {
                format!("{own} {}", host_tsc_khz().map(emulation_parameter).unwrap_or_default())
            }
        };
        Ok(Self {
            program: mayfly_vmm::qemu::find_program(accel)?,
            shape: golden.shape().clone(),
            kernel: boot.kernel.path.clone(),
            initramfs: boot.initramfs.path.clone(),
            cmdline,
            ram,
            device_state,
            disk_bytes: manifest.base_disk.len,
            base_disk: boot.base_disk.path.clone(),
            disk_delta,
            overlay: OverlayTemplate::new(manifest.base_disk.len)?,
            dir,
        })
    }

    /// Returns the folder for files that go with these.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a disk as a session of Mayfly has it: base, delta, and `top`, or a fresh overlay
    /// without a name.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn session_disk(&self, top: Option<&Path>) -> Result<Vec<DiskLayer>, BenchError> {
        let top = match top {
            Some(path) => layer(path, DiskFormat::Qcow2, true)?,
            None => self.fresh()?,
        };
        Ok(vec![
            layer(&self.base_disk, DiskFormat::Raw, false)?,
            layer(&self.disk_delta, DiskFormat::Qcow2, false)?,
            top,
        ])
    }

    /// Makes a disk as it was before the first boot: base and a fresh overlay.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn boot_disk(&self) -> Result<Vec<DiskLayer>, BenchError> {
        Ok(vec![layer(&self.base_disk, DiskFormat::Raw, false)?, self.fresh()?])
    }

    fn fresh(&self) -> Result<DiskLayer, BenchError> {
        Ok(DiskLayer {
            file: self.overlay.instantiate(self.dir.path())?,
            format: DiskFormat::Qcow2,
        })
    }
}
