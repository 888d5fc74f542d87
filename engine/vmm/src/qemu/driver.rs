//! Starts QEMU processes.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mayfly_host::descriptors;
use mayfly_host::facts::{self, Facts};
use mayfly_host::layout::Layout;
use mayfly_vmm_contract::preload::CONFINE;
use mayfly_vmm_contract::text;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::command_line::{CPU_MODEL_KVM, CPU_MODEL_TCG, CommandLine, MACHINE, StreamEnds};
use super::fork::ForkSocket;
use super::keeper::Keeper;
use super::machine::QemuVmm;
use super::program::{self, QemuProgram};
use crate::hardening::{self, Hardening};
use crate::jail::{self, JailError, JailRoot, PidNamespace};
use crate::process::Surroundings;
use crate::qmp::QmpClient;
use crate::{
    Accel, ConsoleTail, Driver, LaunchSpec, Launched, Purpose, RamDescriptors, VmmError, VmmProcess,
};

/// Driver that starts microVMs with the QEMU of this host.
#[derive(Debug)]
pub struct QemuDriver {
    kvm: QemuProgram,
    /// `None`: there is a program for KVM only.
    tcg: Option<QemuProgram>,
    preload: PathBuf,
    layout: Layout,
    hardening: Hardening,
    /// The root directories of VMMs without and with `/dev/kvm`, made when first wanted.
    roots: [OnceCell<Arc<JailRoot>>; 2],
}

impl QemuDriver {
    /// Finds the QEMU of this host, and returns a driver for it. `preload` is the library that
    /// hands guest memory to the pager.
    ///
    /// # Errors
    /// [`VmmError::NotInstalled`], [`VmmError::UnknownVersion`] when the program cannot be run,
    /// [`VmmError::Hardening`].
    pub fn find(preload: &Path, layout: &Layout) -> Result<Self, VmmError> {
        let hardening = hardening::from_env()?;
        let facts = Facts::new(layout);
        let kvm = QemuProgram::find(Accel::Kvm, &facts)?;
        let tcg = match QemuProgram::find(Accel::Tcg, &facts) {
            Ok(program) => Some(program),
            Err(VmmError::NoEmulation { .. } | VmmError::NotInstalled { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            kvm,
            tcg,
            preload: preload.to_owned(),
            layout: layout.clone(),
            hardening,
            roots: Default::default(),
        })
    }

    /// Returns the program for `accel`.
    ///
    /// # Errors
    /// [`VmmError::NoEmulation`].
    pub fn program(&self, accel: Accel) -> Result<&QemuProgram, VmmError> {
        match accel {
            Accel::Kvm => Ok(&self.kvm),
            Accel::Tcg => self.tcg.as_ref().ok_or_else(|| VmmError::NoEmulation {
                program: self.kvm.path.display().to_string(),
            }),
        }
    }

    async fn root(&self, accel: Accel) -> Result<Arc<JailRoot>, VmmError> {
        let program = &self.program(accel)?.path;
        let made = self.roots[usize::from(accel == Accel::Kvm)].get_or_try_init(|| async {
            let (program, preload, layout) =
                (program.clone(), self.preload.clone(), self.layout.clone());
            let make =
                tokio::task::spawn_blocking(move || make_root(&program, &preload, &layout, accel));
            let root = make.await.map_err(|e| VmmError::Io {
                action: "make the root directory of VMMs",
                cause: e.into(),
            })?;
            Ok::<_, VmmError>(Arc::new(root?))
        });
        made.await.cloned()
    }
}

/// Everything QEMU opens by a path: itself, its libraries, the firmware, the preload library.
fn make_root(
    program: &Path,
    preload: &Path,
    layout: &Layout,
    accel: Accel,
) -> Result<JailRoot, VmmError> {
    let (facts, fact) = (Facts::new(layout), format!("qemu-files-{accel}"));
    // The loader's cache is written anew whenever libraries are installed.
    let subject: Vec<_> = [program, preload, Path::new("/etc/ld.so.cache")]
        .map(|path| facts::fingerprint(path).unwrap_or_default())
        .into();
    let subject = subject.join(" ");
    let files: Vec<PathBuf> = if let Some(files) = facts.get(&fact, &subject) {
        files
    } else {
        let mut files = jail::loaded_by(&[program, preload])?;
        files.push(program.to_owned());
        files.push(program::firmware(program)?);
        facts.put(&fact, &subject, &files);
        files
    };
    let staging = layout.run().join("jail");
    Layout::create(&staging).map_err(|e| JailError::Mount {
        action: "a folder for it".into(),
        cause: std::io::Error::other(e),
    })?;
    Ok(JailRoot::make(&files, &[(jail::PRELOAD, preload)], accel == Accel::Kvm, &staging)?)
}

/// A connected pair: our end for tokio, the other to inherit.
pub(super) fn stream() -> Result<(UnixStream, OwnedFd), VmmError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
        descriptors::refuse(&ours);
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    make().map_err(|cause| VmmError::Io { action: "cannot make a stream to the VMM", cause })
}

#[async_trait::async_trait]
impl Driver for QemuDriver {
    fn name(&self, accel: Accel) -> &'static str {
        self.program(accel).unwrap_or(&self.kvm).name()
    }

    fn version(&self, accel: Accel) -> &str {
        &self.program(accel).unwrap_or(&self.kvm).version
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
        let program = self.program(spec.shape.accel)?.path.to_string_lossy();
        let root = self.root(spec.shape.accel).await?;
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let (device_state, device_state_end) = stream()?;
        let (keeper, keeper_end) = Keeper::pair()
            .map_err(|cause| VmmError::Io { action: "cannot make a stream to the VMM", cause })?;
        let streams = StreamEnds {
            qmp: qmp_end,
            channel: channel_end,
            console: console_end,
            device_state: device_state_end,
            keeper: keeper_end,
        };
        let paged = matches!(spec.descriptors.ram, RamDescriptors::Session { .. });
        let (zygote, zygote_end) = match spec.purpose {
            Purpose::Zygote => {
                let (ours, theirs) = ForkSocket::pair(&spec.descriptors)?;
                (Some(ours), Some(theirs))
            }
            _ => (None, None),
        };
        let pids = if zygote.is_some() { PidNamespace::Zygote } else { PidNamespace::Own };
        let mut line =
            CommandLine::new(&spec.shape, spec.purpose, spec.descriptors, streams, zygote_end);
        line.env.push((text(CONFINE), self.hardening.to_string()));
        line.env.extend(root.search_path().map(|path| ("LD_LIBRARY_PATH", path.to_owned())));
        tracing::debug!(args = ?line.args, "starting QEMU");
        let within = Some(Surroundings { jail: root, pids, own_cores: self.hardening.own_cores });
        let process = VmmProcess::start_in(
            within,
            &program,
            line.args,
            line.env,
            line.inherit,
            spec.confinement,
        )
        .await?;
        let keeper = paged.then_some(keeper);
        let vmm =
            Box::new(QemuVmm::new(process, QmpClient::new(qmp), device_state, keeper, zygote));
        Ok(Launched { vmm, channel, console: ConsoleTail::follow(console) })
    }
}
