//! Starts stock QEMU with the machine of a golden.

use std::fs::{File, OpenOptions};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use mayfly_vmm::qemu::{CPU_MODEL_KVM, CPU_MODEL_TCG, MACHINE};
use mayfly_vmm::qmp::QmpClient;
use mayfly_vmm::{
    Accel, Confinement, ConsoleTail, DiskFormat, DiskLayer, MachineShape, VmmProcess,
};
use serde_json::json;
use tokio::net::UnixStream;

use crate::error::{BenchError, io};

const QMP: RawFd = 3;
const CHANNEL: RawFd = 4;
const CONSOLE: RawFd = 5;
const STATE: RawFd = 6;
const FIRST_DISK: RawFd = 10;

/// Source of guest memory.
#[derive(Debug, Clone, Copy)]
pub enum Memory<'a> {
    /// QEMU's own, as it is by default.
    Anonymous,
    /// The content of a file, mapped privately. Only to turn a golden into what QEMU itself can
    /// restore.
    File(&'a Path),
}

/// First action of QEMU.
#[derive(Debug)]
pub enum Start<'a> {
    /// Boots a kernel.
    Boot {
        /// Kernel image.
        kernel: &'a Path,
        /// Initial ramdisk.
        initramfs: &'a Path,
        /// Kernel command line.
        cmdline: &'a str,
    },
    /// Loads an internal snapshot of the top disk and goes on.
    LoadVm(&'a str),
    /// Reads a migration stream and goes on.
    Incoming {
        /// `file:PATH` or `exec:COMMAND`.
        uri: String,
        /// Memory is at fixed places of the file (QEMU 9 and later).
        mapped_ram: bool,
    },
    /// Waits, stopped, for a device state on the stream of [`Qemu::state`].
    Import,
}

/// Description of what to start.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The QEMU program.
    pub program: &'a Path,
    /// Shape of the machine.
    pub shape: &'a MachineShape,
    /// Memory of the guest.
    pub memory: Memory<'a>,
    /// Disk layers, from the base to the writable layer.
    pub disk: Vec<DiskLayer>,
    /// First action of QEMU.
    pub start: Start<'a>,
}

/// A QEMU process with its streams. Dropping it kills the process.
pub struct Qemu {
    /// Process of QEMU.
    pub process: VmmProcess,
    /// Control connection, not negotiated yet.
    pub qmp: QmpClient,
    /// Host end of the guest channel.
    pub channel: UnixStream,
    /// Host end of the stream for [`Start::Import`].
    pub state: UnixStream,
    /// The end of the guest's console.
    pub console: ConsoleTail,
}

fn stream() -> Result<(UnixStream, OwnedFd), BenchError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    };
    make().map_err(io("make", "a stream to QEMU"))
}

/// Creates a disk layer from a file.
///
/// # Errors
/// [`BenchError::Io`].
pub fn layer(path: &Path, format: DiskFormat, writable: bool) -> Result<DiskLayer, BenchError> {
    let file: File =
        OpenOptions::new().read(true).write(writable).open(path).map_err(io("open", path))?;
    Ok(DiskLayer { file: file.into(), format })
}

impl Qemu {
    /// Starts QEMU.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn start(spec: Spec<'_>) -> Result<Self, BenchError> {
        let (qmp, qmp_end) = stream()?;
        let (channel, channel_end) = stream()?;
        let (console, console_end) = stream()?;
        let (state, state_end) = stream()?;
        let mut inherit = vec![
            (qmp_end, QMP),
            (channel_end, CHANNEL),
            (console_end, CONSOLE),
            (state_end, STATE),
        ];
        let program = spec.program.to_string_lossy().into_owned();
        let args = command_line(spec, &mut inherit);
        // `exec:` of a migration stream needs a search path.
        let env = vec![("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())];
        let process =
            VmmProcess::start(&program, args, env, inherit, Confinement::default()).await?;
        Ok(Self {
            process,
            qmp: QmpClient::new(qmp),
            channel,
            state,
            console: ConsoleTail::follow(console),
        })
    }
}

/// As the engine's, but for memory and start; see `engine/vmm/src/qemu/command_line.rs` for the
/// reasons.
fn command_line(spec: Spec<'_>, inherit: &mut Vec<(OwnedFd, RawFd)>) -> Vec<String> {
    let Spec { shape, memory, disk, start, .. } = spec;
    let (accel, cpu) = match shape.accel {
        Accel::Kvm => ("kvm", CPU_MODEL_KVM),
        Accel::Tcg => ("tcg,thread=multi", CPU_MODEL_TCG),
    };
    let size = shape.memory_bytes;
    let memory = match memory {
        Memory::Anonymous => format!("memory-backend-ram,id=ram,size={size}"),
        Memory::File(path) => {
            format!("memory-backend-file,id=ram,size={size},mem-path={},share=off", path.display())
        }
    };
    let mut args: Vec<String> = Vec::with_capacity(64);
    let mut push = |new: &[&str]| args.extend(new.iter().map(|a| (*a).to_owned()));
    push(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    push(&[
        "-M",
        &format!("{MACHINE},memory-backend=ram"),
        "-accel",
        accel,
        "-cpu",
        cpu,
        "-bios",
        "qboot.rom",
    ]);
    push(&[
        "-smp",
        &shape.vcpus.to_string(),
        "-m",
        &format!("{}M", size >> 20),
        "-object",
        &memory,
    ]);
    push(&["-global", "virtio-mmio.force-legacy=off"]);
    for (id, number) in [("qmp", QMP), ("console", CONSOLE), ("channel", CHANNEL)] {
        push(&["-chardev", &format!("socket,id={id},fd={number}")]);
    }
    push(&["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]);
    push(&["-device", "virtio-serial-device,max_ports=2"]);
    push(&[
        "-device",
        &format!("virtserialport,chardev=channel,name={}", mayfly_protocol::PORT_NAME),
    ]);
    let top = disk.len().saturating_sub(1);
    for ((at, layer), number) in disk.into_iter().enumerate().zip(FIRST_DISK..) {
        inherit.push((layer.file, number));
        push(&["-add-fd", &format!("fd={number},set={}", at + 1)]);
        let file = json!({ "driver": "file", "filename": format!("/dev/fdset/{}", at + 1), "locking": "off" });
        let mut node = json!({
            "node-name": format!("layer{at}"), "read-only": at != top, "file": file, "cache": { "no-flush": true },
        });
        match layer.format {
            DiskFormat::Raw => node["driver"] = json!("raw"),
            DiskFormat::Qcow2 => {
                node["driver"] = json!("qcow2");
                node["backing"] = json!(at.checked_sub(1).map(|below| format!("layer{below}")));
            }
        }
        push(&["-blockdev", &node.to_string()]);
    }
    push(&["-device", &format!("virtio-blk-device,drive=layer{top}")]);
    match start {
        Start::Boot { kernel, initramfs, cmdline } => {
            let path = |path: &Path| path.display().to_string();
            push(&["-kernel", &path(kernel), "-initrd", &path(initramfs), "-append", cmdline]);
        }
        Start::LoadVm(name) => push(&["-loadvm", name]),
        Start::Incoming { uri, mapped_ram } => {
            if mapped_ram {
                push(&["-global", "migration.mapped-ram=on"]);
            }
            push(&["-incoming", &uri]);
        }
        // Without the recorded run state whoever loads the stream runs on by itself, as after a
        // live migration.
        Start::Import => {
            push(&["-S", "-incoming", "defer", "-global", "migration.store-global-state=off"]);
        }
    }
    args
}

/// Number under which QEMU inherits the stream of [`Start::Import`].
pub const IMPORT_FD: RawFd = STATE;

/// Makes an empty qcow2 image at `path` for a disk of `virtual_size` bytes.
///
/// # Errors
/// [`BenchError`] with the words of `qemu-img`.
pub fn create_image(path: &Path, virtual_size: u64) -> Result<(), BenchError> {
    let tool = PathBuf::from("qemu-img");
    let output = std::process::Command::new(&tool)
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(virtual_size.to_string())
        .output()
        .map_err(io("run", &tool))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Peer {
        system: "qemu-img",
        reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
