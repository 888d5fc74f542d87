//! Attacks as root of a guest.

pub(super) mod ask;
mod credentials;
mod devices;
mod disk;
mod identity;
mod memory;
mod neighbours;
mod network;
mod ports;
mod power;
mod program;
mod registers;

use futures::FutureExt;

use super::check::Check;
use super::report::{Threat, Vantage};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "guest.memory",
        tried: "Read all physical memory a guest can name, through /proc/kcore and /dev/mem, also beyond its own, and look \
                for what the host and a neighbour keep in theirs.",
        threat: Threat::Memory,
        vantage: Vantage::GuestRoot,
        control: "The same reader finds a mark that is planted in the guest's own memory.",
        run: |lab| memory::run(lab).boxed(),
    },
    Check {
        id: "guest.ports",
        tried: "Read all 65536 I/O ports with iopl(2), and everything QEMU's configuration device (fw_cfg) tells.",
        threat: Threat::Devices,
        vantage: Vantage::GuestRoot,
        control: "The same program reaches the devices that are there: the interrupt controllers, and the signature of fw_cfg.",
        run: |lab| ports::run(lab).boxed(),
    },
    Check {
        id: "guest.registers",
        tried: "Write model-specific registers (MSRs) and look for the change in a neighbour and on the host.",
        threat: Threat::Privileges,
        vantage: Vantage::GuestRoot,
        control: "The guest that wrote reads back what it wrote.",
        run: |lab| registers::run(lab).boxed(),
    },
    Check {
        id: "guest.devices",
        tried: "List every bus, block device, serial port and character device for something that is passed through from the \
                host, and open /dev/kvm, userfaultfd, vhost and vfio.",
        threat: Threat::Devices,
        vantage: Vantage::GuestRoot,
        control: "The same lists show the disk and the channel that are there.",
        run: |lab| devices::run(lab).boxed(),
    },
    Check {
        id: "guest.disk",
        tried: "Write to the raw disk, read and write past its end, and look for a neighbour's data on it.",
        threat: Threat::Integrity,
        vantage: Vantage::GuestRoot,
        control: "The writer reads back what it wrote, and the hash of a changed copy of the golden's disk differs.",
        run: |lab| disk::run(lab).boxed(),
    },
    Check {
        id: "guest.network",
        tried: "Look for a network card and a route, and connect to a listener on the host's loopback interface, to a \
                neighbour, to private addresses and to metadata services.",
        threat: Threat::Network,
        vantage: Vantage::GuestRoot,
        control: "The host itself reaches that listener; the guest reaches one of its own, also under a metadata address.",
        run: |lab| network::run(lab).boxed(),
    },
    Check {
        id: "guest.packets",
        tried: "Capture packets on all interfaces (AF_PACKET) while the host and a neighbour send.",
        threat: Threat::Neighbour,
        vantage: Vantage::GuestRoot,
        control: "The capture shows the guest's own packets.",
        run: |lab| network::packets(lab).boxed(),
    },
    Check {
        id: "guest.neighbours",
        tried: "Look for a neighbour's processes, files, containers and abstract sockets, and connect to the sockets of the \
                engine, the pager and a neighbour's Docker daemon by their paths on the host.",
        threat: Threat::Neighbour,
        vantage: Vantage::GuestRoot,
        control: "The same look shows the guest's own.",
        run: |lab| neighbours::run(lab).boxed(),
    },
    Check {
        id: "guest.credentials",
        tried: "Listen in the place of the guest's Docker daemon for tokens, cookies and keys that a docker client on the \
                host sends with its requests.",
        threat: Threat::Credentials,
        vantage: Vantage::GuestRoot,
        control: "The same listener reads a header that is no secret.",
        run: |lab| credentials::run(lab).boxed(),
    },
    Check {
        id: "guest.identity",
        tried: "Find the machine id, host name, boot id, also that of containers, or kernel random numbers of a neighbour that \
                began from the same memory.",
        threat: Threat::Neighbour,
        vantage: Vantage::GuestRoot,
        control: "Two looks in one session give the same id, so that two sessions could.",
        run: |lab| identity::run(lab).boxed(),
    },
    Check {
        id: "guest.power",
        tried: "Reset, crash, power off and replace the machine: sysrq, reboot(2), kexec, reset and shutdown ports.",
        threat: Threat::Processes,
        vantage: Vantage::GuestRoot,
        control: "What has an effect at all ends the session that did it.",
        run: |lab| power::run(lab).boxed(),
    },
];
