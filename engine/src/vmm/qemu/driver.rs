//! Starts QEMU processes.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::command_line::{CPU_MODEL_KVM, CPU_MODEL_TCG, CommandLine, MACHINE, StreamEnds};
use super::fork::ForkSocket;
use super::machine::QemuVmm;
use super::program;
use crate::host::facts::{self, Facts};
use crate::layout::Layout;
use crate::qmp::QmpClient;
use crate::vmm::jail::{self, JailError, JailRoot, PidNamespace};
use crate::vmm::process::Surroundings;
use crate::vmm::{Accel, ConsoleTail, Driver, LaunchSpec, Launched, Purpose, VmmError, VmmProcess};

/// Starts microVMs with the QEMU of this host.
#[derive(Debug)]
pub struct QemuDriver {
    program: PathBuf,
    version: String,
    preload: PathBuf,
    layout: Layout,
    /// The root directories of VMMs without and with `/dev/kvm`, made when first wanted.
    roots: [OnceCell<Arc<JailRoot>>; 2],
}

impl QemuDriver {
    /// A driver for `program`. `preload` is the library that hands guest memory to the pager. The version is asked of the
    /// program once per host boot and change of it.
    ///
    /// # Errors
    /// [`VmmError::UnknownVersion`] when the program cannot be run.
    pub fn new(program: PathBuf, preload: &Path, layout: &Layout) -> Result<Self, VmmError> {
        let facts = Facts::new(layout);
        let subject = facts::fingerprint(&program).unwrap_or_default();
        let version = match facts.get("qemu-version", &subject) {
            Some(version) => version,
            None => {
                let version = program::version(&program)?;
                facts.put("qemu-version", &subject, &version);
                version
            }
        };
        Ok(Self { program, version, preload: preload.to_owned(), layout: layout.clone(), roots: Default::default() })
    }

    async fn root(&self, accel: Accel) -> Result<Arc<JailRoot>, VmmError> {
        let kvm = accel == Accel::Kvm;
        let made = self.roots[usize::from(kvm)].get_or_try_init(|| async {
            let (program, preload, layout) = (self.program.clone(), self.preload.clone(), self.layout.clone());
            let make = tokio::task::spawn_blocking(move || make_root(&program, &preload, &layout, kvm));
            let root =
                make.await.map_err(|e| VmmError::Io { action: "make the root directory of VMMs", source: e.into() })?;
            Ok::<_, VmmError>(Arc::new(root?))
        });
        made.await.cloned()
    }
}

/// Everything QEMU opens by a path: itself, its libraries, the firmware, the preload library.
fn make_root(program: &Path, preload: &Path, layout: &Layout, kvm: bool) -> Result<JailRoot, VmmError> {
    let facts = Facts::new(layout);
    // The loader's cache is written anew whenever libraries are installed.
    let subject: Vec<_> = [program, preload, Path::new("/etc/ld.so.cache")]
        .map(|path| facts::fingerprint(path).unwrap_or_default())
        .into();
    let subject = subject.join(" ");
    let files: Vec<PathBuf> = match facts.get("qemu-files", &subject) {
        Some(files) => files,
        None => {
            let mut files = jail::loaded_by(program, preload)?;
            files.push(program.to_owned());
            files.push(program::firmware(program)?);
            facts.put("qemu-files", &subject, &files);
            files
        }
    };
    let staging = layout.run().join("jail");
    Layout::create(&staging)
        .map_err(|e| JailError::Mount { action: "a folder for it".into(), source: std::io::Error::other(e) })?;
    Ok(JailRoot::make(&files, &[(jail::PRELOAD, preload)], kvm, &staging)?)
}

/// A connected pair: our end for tokio, the other to inherit.
pub(super) fn stream() -> Result<(UnixStream, OwnedFd), VmmError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    make().map_err(|source| VmmError::Io { action: "cannot make a stream to the VMM", source })
}

#[async_trait::async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn machine(&self) -> &str {
        MACHINE
    }

    fn cpu_model(&self, accel: Accel) -> &str {
        match accel {
            Accel::Kvm => CPU_MODEL_KVM,
            Accel::Tcg => CPU_MODEL_TCG,
        }
    }

    fn can_fork(&self, accel: Accel) -> bool {
        accel == Accel::Tcg && cfg!(target_arch = "x86_64")
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Launched, VmmError> {
        let root = self.root(spec.shape.accel).await?;
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let (device_state, device_state_end) = stream()?;
        let streams =
            StreamEnds { qmp: qmp_end, channel: channel_end, console: console_end, device_state: device_state_end };
        let (zygote, zygote_end) = match spec.purpose {
            Purpose::Zygote => {
                let (ours, theirs) = ForkSocket::pair(&spec.descriptors)?;
                (Some(ours), Some(theirs))
            }
            _ => (None, None),
        };
        let pids = if zygote.is_some() { PidNamespace::Zygotes } else { PidNamespace::Own };
        let mut line = CommandLine::new(&spec.shape, spec.purpose, spec.descriptors, streams, zygote_end);
        line.env.extend(root.search_path().map(|path| ("LD_LIBRARY_PATH", path.to_owned())));
        tracing::debug!(args = ?line.args, "starting QEMU");
        let program = self.program.to_string_lossy();
        let within = Some(Surroundings { jail: root, pids });
        let process =
            VmmProcess::start_in(within, &program, line.args, line.env, line.inherit, spec.confinement).await?;
        let vmm = Box::new(QemuVmm::new(process, QmpClient::new(qmp), device_state, zygote));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }
}
