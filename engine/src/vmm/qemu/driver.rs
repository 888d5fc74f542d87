//! Starts QEMU processes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::command_line::{CPU_MODEL_KVM, CPU_MODEL_TCG, CommandLine, MACHINE, StreamEnds};
use super::fork::ForkSocket;
use super::machine::QemuVmm;
use super::program;
use crate::host::facts::{self, Facts};
use crate::layout::Layout;
use crate::qmp::QmpClient;
use crate::vmm::{Accel, ConsoleTail, Driver, LaunchSpec, Launched, Purpose, VmmError, VmmProcess};

/// Starts microVMs with the QEMU of this host.
#[derive(Debug)]
pub struct QemuDriver {
    program: PathBuf,
    version: String,
    preload: PathBuf,
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
        Ok(Self { program, version, preload: preload.to_owned() })
    }
}

/// The group that may use `/dev/kvm`, which QEMU opens itself; Debian's udev rules give it to the group `kvm`.
fn kvm_group() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060).then_some(device.gid())
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

    async fn launch(&self, mut spec: LaunchSpec) -> Result<Launched, VmmError> {
        if spec.shape.accel == Accel::Kvm && spec.confinement.uid.is_some() {
            spec.confinement.group = kvm_group();
        }
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let (device_state, device_state_end) = stream()?;
        let streams =
            StreamEnds { qmp: qmp_end, channel: channel_end, console: console_end, device_state: device_state_end };
        let preload = match spec.purpose {
            Purpose::Boot(_) => None,
            Purpose::Restore | Purpose::Zygote => {
                Some(OwnedFd::from(File::open(&self.preload).map_err(|source| VmmError::Io {
                    action: "cannot open the preload library (libmayfly_preload.so beside the mayfly binary)",
                    source,
                })?))
            }
        };
        let (zygote, zygote_end) = match spec.purpose {
            Purpose::Zygote => {
                spec.confinement.may_change_user = true;
                let (ours, theirs) = ForkSocket::pair(&spec.descriptors)?;
                (Some(ours), Some(theirs))
            }
            _ => (None, None),
        };
        let line = CommandLine::new(&spec.shape, spec.purpose, spec.descriptors, streams, preload, zygote_end);
        tracing::debug!(args = ?line.args, "starting QEMU");
        let program = self.program.to_string_lossy();
        let process = VmmProcess::start(&program, line.args, line.env, line.inherit, spec.confinement).await?;
        let vmm = Box::new(QemuVmm::new(process, QmpClient::new(qmp), device_state, zygote));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }
}
