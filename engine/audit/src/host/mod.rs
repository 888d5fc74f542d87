//! VMMs and the egress proxy as the host sees them: nothing is attacked here, the protections themselves are looked at.

mod cgroups;
mod descriptors;
mod look;
mod namespaces;
mod root;
mod status;

use futures::FutureExt;

use super::check::Check;
use super::report::{Threat, Vantage};

const CONTROL: &str = "An ordinary process of root does not pass the same look.";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "host.user",
        tried: "Each VMM and the egress proxy has a user and group of its own, not root, and no groups beside.",
        threat: Threat::Privileges,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| status::user(lab).boxed(),
    },
    Check {
        id: "host.capabilities",
        tried: "A VMM or the egress proxy has no capability in any set, cannot gain one (bounding set, no_new_privs), and has a seccomp filter.",
        threat: Threat::Privileges,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| status::capabilities(lab).boxed(),
    },
    Check {
        id: "host.namespaces",
        tried: "A VMM or the egress proxy shares no mount, process, network, IPC or UTS namespace with the host or another of them.",
        threat: Threat::Processes,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| namespaces::run(lab).boxed(),
    },
    Check {
        id: "host.root",
        tried: "The file system of a VMM and of the egress proxy is read-only, and holds nothing but what its program needs.",
        threat: Threat::HostFiles,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| root::run(lab).boxed(),
    },
    Check {
        id: "host.descriptors",
        tried: "A VMM has open what it works with: no folder, no device beside what it needs, and no writable file but its own \
                disk overlay and its error output.",
        threat: Threat::HostFiles,
        vantage: Vantage::HostView,
        control: "An ordinary process that has the page cache open for writing does not pass the same look.",
        run: |lab| descriptors::run(lab).boxed(),
    },
    Check {
        id: "host.limits",
        tried: "A VMM or the egress proxy has bounds on core dumps, open files, the size of files and processes (getrlimit(2)), and a score by \
                which the kernel kills it before the engine when the host is out of memory.",
        threat: Threat::Resources,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| status::limits(lab).boxed(),
    },
    Check {
        id: "host.cgroups",
        tried: "A VMM or the egress proxy is in a cgroup of its own with bounds on memory, swap and tasks.",
        threat: Threat::Resources,
        vantage: Vantage::HostView,
        control: CONTROL,
        run: |lab| cgroups::run(lab).boxed(),
    },
];
