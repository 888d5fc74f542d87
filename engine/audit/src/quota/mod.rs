//! Sessions that use up what they can get, beside a neighbour that must not notice much.

mod disk;
mod memory;
mod meter;
mod processes;
mod processors;
mod starts;

use futures::FutureExt;

use super::check::Check;
use super::report::{Threat, Vantage};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "quota.processes",
        tried: "A fork bomb in the guest; and one on the host in a cgroup with a session's bounds, as a taken-over VMM might.",
        threat: Threat::Resources,
        vantage: Vantage::GuestRoot,
        control: "The bomb goes off: the guest has more processes than the session may have tasks; without bounds the host has too.",
        run: |lab| processes::run(lab).boxed(),
    },
    Check {
        id: "quota.memory",
        tried: "A session that may use less memory than its guest has writes to all it can get.",
        threat: Threat::Resources,
        vantage: Vantage::GuestRoot,
        control: "The same without that bound uses more.",
        run: |lab| memory::run(lab).boxed(),
    },
    Check {
        id: "quota.disk",
        tried: "A session with a disk quota writes more than that to its disk.",
        threat: Threat::Resources,
        vantage: Vantage::GuestRoot,
        control: "The same without a quota makes the overlay larger than that.",
        run: |lab| disk::run(lab).boxed(),
    },
    Check {
        id: "quota.processors",
        tried: "A session that may use a quarter of a processor computes without end.",
        threat: Threat::Resources,
        vantage: Vantage::GuestRoot,
        control: "The same without that bound uses more.",
        run: |lab| processors::run(lab).boxed(),
    },
];
