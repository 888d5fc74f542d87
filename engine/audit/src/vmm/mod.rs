//! Attacks of code that has taken a VMM over: system calls that the real VMM process is made to
//! make.

mod attack;
mod descriptors;
pub(super) mod disk;
mod files;
mod kernel;
mod network;
mod privileges;
mod processes;
mod sharing;

use futures::FutureExt;

use super::check::Check;
use super::report::{Threat, Vantage};

const CONTROL: &str =
    "An ordinary process of root is made to make the same calls, and they succeed.";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "vmm.files",
        tried: "Open files and folders of the host, secret ones and such as everybody may read, and sockets, devices and \
                control files by their paths.",
        threat: Threat::HostFiles,
        vantage: Vantage::TakenOverVmm,
        control: CONTROL,
        run: |lab| files::run(lab).boxed(),
    },
    Check {
        id: "vmm.processes",
        tried: "Signal, trace, read and look at the engine, at a neighbour's VMM and at all processes; start a process or \
                another program.",
        threat: Threat::Processes,
        vantage: Vantage::TakenOverVmm,
        control: CONTROL,
        run: |lab| processes::run(lab).boxed(),
    },
    Check {
        id: "vmm.network",
        tried: "Make sockets of every kind and connect to listeners of the host: loopback, abstract and named Unix sockets.",
        threat: Threat::Network,
        vantage: Vantage::TakenOverVmm,
        control: CONTROL,
        run: |lab| network::run(lab).boxed(),
    },
    Check {
        id: "vmm.privileges",
        tried: "Become root, enter or make namespaces, mount, change the root, raise limits, undo what ties it to its engine.",
        threat: Threat::Privileges,
        vantage: Vantage::TakenOverVmm,
        control: CONTROL,
        run: |lab| privileges::run(lab).boxed(),
    },
    Check {
        id: "vmm.kernel",
        tried: "Reach parts of the kernel that a VMM has no need of: userfaultfd, bpf, perf, keys, io_uring, modules, kexec, \
                huge pages, splice, calls newer than Mayfly knows.",
        threat: Threat::Privileges,
        vantage: Vantage::TakenOverVmm,
        control: CONTROL,
        run: |lab| kernel::run(lab).boxed(),
    },
    Check {
        id: "vmm.descriptors",
        tried: "Write to what all sessions of a golden share: page cache, base disk, disk delta; through the descriptors the \
                VMM holds, through mappings, and by opening them again.",
        threat: Threat::Integrity,
        vantage: Vantage::TakenOverVmm,
        control: "The same calls on a file of its own, opened for writing, succeed in an ordinary process of root.",
        run: |lab| descriptors::run(lab).boxed(),
    },
    Check {
        id: "vmm.sharing",
        tried: "Reach guest memory past the pager: through a userfaultfd or another descriptor, by moving it, by having its \
                holes filled; set status flags of the disks that all sessions of a golden share; have an open file \
                description in common with a neighbour, the engine or the zygote.",
        threat: Threat::Integrity,
        vantage: Vantage::TakenOverVmm,
        control: "The same calls in an ordinary process of root, on a file that looks like a page cache and on the same disks, \
                  succeed; a descriptor and its duplicate are found to be of one open file description.",
        run: |lab| sharing::run(lab).boxed(),
    },
    Check {
        id: "vmm.disk",
        tried: "Take space of the host's disk beyond the quota, through the writable disk that the VMM has: by calls that \
                allocate beyond the end of a file, and by leaving the project that is charged for it.",
        threat: Threat::Resources,
        vantage: Vantage::TakenOverVmm,
        control: "An ordinary process of root makes the same calls on a file of the same folder, and they succeed.",
        run: |lab| disk::run(lab).boxed(),
    },
];
