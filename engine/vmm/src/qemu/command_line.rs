//! QEMU's command line. The same for a boot and a restore but for the kernel and `-incoming`, as
//! live migration demands: both sides must build the same machine (QEMU
//! `docs/devel/migration/main.rst`).

use std::os::fd::{OwnedFd, RawFd};

use mayfly_vmm_contract::preload::{PAGED_MEMORY, PagedMemory, Source};
use mayfly_vmm_contract::text;
use serde_json::json;

use super::program::FIRMWARE;
use crate::jail::PRELOAD;
use crate::{Accel, Descriptors, DirectBoot, DiskFormat, MachineShape, Purpose, RamDescriptors};

/// Machine line. ACPI stays on: Debian's kernels find virtio-mmio devices only through it. Without
/// PIT and PIC the TSC calibration of a booting guest sometimes hangs. Guest memory is not offered
/// to the host's page merging, whose timing would tell one session about another's memory, and is
/// left out of core dumps.
pub const MACHINE: &str = "microvm,x-option-roms=off,rtc=on,pit=on,pic=on,isa-serial=on,mem-merge=off,dump-guest-core=off";
/// CPU model under software emulation: all that TCG can do, without five-level page tables, which
/// only add a level to every emulated page walk, and without fast string operations, which make
/// kernels clear and copy pages with `rep stosb`/`rep movsb`: TCG executes those byte by byte
/// (measured: 4 to 6 times slower than loops of 8-byte stores). Without nested virtualization, as
/// under KVM.
pub const CPU_MODEL_TCG: &str = "max,la57=off,erms=off,fsrm=off,svm=off";
/// Room for translated code under software emulation, in MiB. QEMU would take up to 1 GiB, which a
/// guest can make it fill; with all of it in use [`mayfly_host::cgroup::VMM_OVERHEAD`] must still
/// hold the rest.
const TRANSLATIONS_MIB: u64 = 384;
const _: () = assert!(TRANSLATIONS_MIB << 20 <= mayfly_host::cgroup::VMM_OVERHEAD / 2);
/// CPU model under KVM: the host's very CPU, without
///
/// - nested virtualization (`vmx` of Intel, `svm` of AMD; QEMU takes either on any host): the
///   largest part of KVM that a guest would reach besides what it needs;
/// - performance counters (`pmu`): they tell a guest about its neighbours, and are state to be
///   saved;
/// - `arch-capabilities`, the list of vulnerabilities that the CPU does not have: some nested hosts
///   do not pass on its MSR 0x10a, it changes with the host's microcode, which no pin of a golden
///   covers, and guests run without mitigations;
/// - asynchronous page faults told to the guest (`kvm-asyncpf`), which lets a task sleep until its
///   page is there: restored guests have been seen to have tasks that sleep for ever
///   (firecracker-microvm/firecracker#3020, #5322). A guest that wants them all the same is refused
///   (`kvm-pv-enforce-cpuid`; `KVM_CAP_ENFORCE_PV_FEATURE_CPUID` in the kernel's
///   `virt/kvm/api.rst`).
pub const CPU_MODEL_KVM: &str = "host,vmx=off,svm=off,pmu=off,arch-capabilities=off,kvm-asyncpf=off,kvm-asyncpf-int=off,\
    kvm-pv-enforce-cpuid=on";

/// Descriptor numbers in the VMM process.
pub(super) mod fd {
    use std::os::fd::RawFd;
    pub const QMP: RawFd = 3;
    pub const CHANNEL: RawFd = 4;
    pub const CONSOLE: RawFd = 5;
    pub const DEVICE_STATE: RawFd = 6;
    pub const RAM: RawFd = 7;
    pub const USERFAULTFD: RawFd = 8;
    pub const HANDSHAKE: RawFd = 9;
    pub const KERNEL: RawFd = 10;
    pub const INITRAMFS: RawFd = 11;
    /// A zygote boots no kernel, nor does any other VMM whose memory is paged.
    pub const ZYGOTE: RawFd = KERNEL;
    pub const KEEPER: RawFd = INITRAMFS;
    pub const FIRST_DISK: RawFd = 12;
}

/// The path under which QEMU opens guest memory in a session. Nothing is there: the preload library
/// answers the open with the page-cache descriptor, and without that library QEMU fails to start.
const SESSION_RAM_PATH: &str = "/mayfly/ram";

/// What to start QEMU with.
#[derive(Debug)]
pub(super) struct CommandLine {
    pub args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
    pub inherit: Vec<(OwnedFd, RawFd)>,
}

/// The engine's streams to a VMM, as the ends that the VMM inherits.
#[derive(Debug)]
pub(super) struct StreamEnds {
    pub qmp: OwnedFd,
    pub channel: OwnedFd,
    pub console: OwnedFd,
    pub device_state: OwnedFd,
    /// Where a VMM whose memory is paged sends its userfaultfd.
    pub keeper: OwnedFd,
}

impl CommandLine {
    pub fn new(
        shape: &MachineShape,
        purpose: Purpose,
        descriptors: Descriptors,
        streams: StreamEnds,
        zygote: Option<OwnedFd>,
    ) -> Self {
        let env = vec![("LD_PRELOAD", PRELOAD.to_owned())];
        let mut line = Self { args: Vec::with_capacity(64), env, inherit: Vec::with_capacity(16) };
        line.machine(shape, zygote.is_some());
        let StreamEnds { qmp, channel, console, device_state, keeper } = streams;
        line.memory(shape, descriptors.ram, keeper, zygote);
        line.streams([qmp, channel, console, device_state]);
        line.disk(descriptors.disk);
        match purpose {
            Purpose::Boot(boot) => line.boot(boot),
            Purpose::Restore | Purpose::Zygote => line.push(&["-incoming", "defer"]),
        }
        line
    }

    fn push(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(|a| (*a).to_owned()));
    }

    fn machine(&mut self, shape: &MachineShape, zygote: bool) {
        let (accel, cpu) = match shape.accel {
            Accel::Kvm => ("kvm".to_owned(), CPU_MODEL_KVM),
            Accel::Tcg => (format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}"), CPU_MODEL_TCG),
        };
        self.push(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        self.push(&["-M", &format!("{MACHINE},memory-backend=ram"), "-accel", &accel, "-cpu", cpu]);
        self.push(&["-bios", FIRMWARE]);
        self.push(&["-smp", &shape.vcpus.to_string()]);
        self.push(&["-m", &format!("{}M", shape.memory_bytes >> 20)]);
        self.push(&["-global", "virtio-mmio.force-legacy=off"]);
        // A zygote forks, and its children take a user; the preload library's own filter leaves
        // room for just that (engine/vmm/preload/src/filter.rs).
        let sandbox = if zygote {
            "on,obsolete=deny,elevateprivileges=allow,spawn=allow,resourcecontrol=deny"
        } else {
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        };
        self.push(&["-sandbox", sandbox]);
    }

    fn memory(
        &mut self,
        shape: &MachineShape,
        ram: RamDescriptors,
        keeper: OwnedFd,
        zygote: Option<OwnedFd>,
    ) {
        let (path, share) = match ram {
            RamDescriptors::Template { file } => {
                self.inherit.push((file, fd::RAM));
                (format!("/proc/self/fd/{}", fd::RAM), "on")
            }
            RamDescriptors::Session { page_cache, userfaultfd_device, handshake } => {
                self.inherit.push((page_cache, fd::RAM));
                self.inherit.push((userfaultfd_device, fd::USERFAULTFD));
                self.inherit.push((handshake, fd::HANDSHAKE));
                self.inherit.push((keeper, fd::KEEPER));
                let memory = PagedMemory {
                    path: SESSION_RAM_PATH.as_bytes(),
                    source: Source::PageCache(fd::RAM),
                    userfaultfd_device: fd::USERFAULTFD,
                    socket: fd::HANDSHAKE,
                    keeper: fd::KEEPER,
                    zygote: zygote.is_some().then_some(fd::ZYGOTE),
                };
                self.inherit.extend(zygote.map(|zygote| (zygote, fd::ZYGOTE)));
                self.env.push((text(PAGED_MEMORY), memory.to_string()));
                (SESSION_RAM_PATH.to_owned(), "off")
            }
        };
        let size = shape.memory_bytes;
        self.push(&[
            "-object",
            &format!("memory-backend-file,id=ram,size={size},mem-path={path},share={share}"),
        ]);
    }

    fn streams(&mut self, [qmp, channel, console, device_state]: [OwnedFd; 4]) {
        let chardev = |line: &mut Self, id: &str, end: OwnedFd, number: RawFd| {
            line.inherit.push((end, number));
            line.push(&["-chardev", &format!("socket,id={id},fd={number}")]);
        };
        chardev(self, "qmp", qmp, fd::QMP);
        chardev(self, "console", console, fd::CONSOLE);
        chardev(self, "channel", channel, fd::CHANNEL);
        self.inherit.push((device_state, fd::DEVICE_STATE));
        self.push(&["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]);
        self.push(&["-device", "virtio-serial-device,max_ports=2"]);
        self.push(&[
            "-device",
            &format!("virtserialport,chardev=channel,name={}", mayfly_protocol::PORT_NAME),
        ]);
    }

    fn disk(&mut self, layers: Vec<crate::DiskLayer>) {
        let Some(top) = layers.len().checked_sub(1) else {
            // A probe guest has no disk.
            return;
        };
        for ((at, layer), number) in layers.into_iter().enumerate().zip(fd::FIRST_DISK..) {
            let set = at + 1;
            let read_only = at != top;
            self.inherit.push((layer.file, number));
            self.push(&["-add-fd", &format!("fd={number},set={set}")]);
            let file = json!({
                "driver": "file", "filename": format!("/dev/fdset/{set}"), "locking": "off", "discard": "unmap",
            });
            let mut node = json!({
                "node-name": format!("layer{at}"), "read-only": read_only, "discard": "unmap", "file": file,
                // Flushes are pointless for a disk that is thrown away.
                "cache": { "no-flush": true },
            });
            match layer.format {
                DiskFormat::Raw => node["driver"] = json!("raw"),
                DiskFormat::Qcow2 => {
                    node["driver"] = json!("qcow2");
                    if at > 0 {
                        node["backing"] = json!(format!("layer{}", at - 1));
                    }
                }
            }
            self.push(&["-blockdev", &node.to_string()]);
        }
        // QEMU's own choice stops the guest when the host's disk is full, and nobody would let it
        // run on.
        let errors = "werror=report,rerror=report";
        self.push(&["-device", &format!("virtio-blk-device,drive=layer{top},{errors}")]);
    }

    fn boot(&mut self, boot: DirectBoot) {
        self.inherit.push((boot.kernel, fd::KERNEL));
        self.inherit.push((boot.initramfs, fd::INITRAMFS));
        let path = |number: RawFd| format!("/proc/self/fd/{number}");
        self.push(&[
            "-kernel",
            &path(fd::KERNEL),
            "-initrd",
            &path(fd::INITRAMFS),
            "-append",
            &boot.cmdline,
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskLayer;
    use std::fs::File;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn line(purpose: Purpose, ram: RamDescriptors) -> CommandLine {
        let shape = MachineShape { accel: Accel::Tcg, vcpus: 2, memory_bytes: 1 << 30 };
        let disk = vec![
            DiskLayer { file: null(), format: DiskFormat::Raw },
            DiskLayer { file: null(), format: DiskFormat::Qcow2 },
            DiskLayer { file: null(), format: DiskFormat::Qcow2 },
        ];
        let streams = streams();
        CommandLine::new(&shape, purpose, Descriptors { ram, disk }, streams, None)
    }

    fn streams() -> StreamEnds {
        StreamEnds {
            qmp: null(),
            channel: null(),
            console: null(),
            device_state: null(),
            keeper: null(),
        }
    }

    fn session() -> RamDescriptors {
        RamDescriptors::Session {
            page_cache: null(),
            userfaultfd_device: null(),
            handshake: null(),
        }
    }

    #[test]
    fn boot_and_restore_build_the_same_machine() {
        let boot = DirectBoot { kernel: null(), initramfs: null(), cmdline: "quiet".into() };
        let booted = line(Purpose::Boot(boot), RamDescriptors::Template { file: null() });
        let restored = line(Purpose::Restore, session());
        let same = |args: &[String]| {
            let end = args.iter().position(|a| a == "-kernel" || a == "-incoming").unwrap();
            let devices = args[..end].iter().filter(|a| !a.starts_with("memory-backend-file"));
            devices.cloned().collect::<Vec<_>>()
        };
        assert_eq!(same(&booted.args), same(&restored.args));
    }

    #[test]
    fn descriptor_numbers_are_unique_and_all_passed() {
        let line = line(Purpose::Restore, session());
        let mut numbers: Vec<_> = line.inherit.iter().map(|(_, n)| *n).collect();
        numbers.sort_unstable();
        let expected: Vec<_> =
            (fd::QMP..=fd::FIRST_DISK + 2).filter(|number| *number != fd::ZYGOTE).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn a_guest_without_layers_has_no_disk() {
        let shape = MachineShape { accel: Accel::Kvm, vcpus: 1, memory_bytes: 1 << 28 };
        let streams = streams();
        let descriptors = Descriptors { ram: session(), disk: Vec::new() };
        let line = CommandLine::new(&shape, Purpose::Restore, descriptors, streams, None);
        assert!(!line.args.iter().any(|a| a.contains("virtio-blk")), "{:?}", line.args);
    }

    #[test]
    fn only_the_last_disk_layer_is_writable() {
        let line = line(Purpose::Restore, session());
        let nodes: Vec<serde_json::Value> = line
            .args
            .iter()
            .filter(|a| a.starts_with('{'))
            .map(|a| serde_json::from_str(a).unwrap())
            .collect();
        let writable: Vec<_> = nodes.iter().map(|n| n["read-only"] == json!(false)).collect();
        assert_eq!(writable, [false, false, true]);
        assert_eq!(nodes[2]["backing"], json!("layer1"));
        let device = line.args.iter().find(|a| a.starts_with("virtio-blk-device")).unwrap();
        assert_eq!(device, "virtio-blk-device,drive=layer2,werror=report,rerror=report");
    }
}
