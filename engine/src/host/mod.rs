//! What this host can do: KVM, userfaultfd, memory, space; and `mayfly doctor`, which says so.

pub mod doctor;
pub mod kvm;
pub mod tsc;

/// What is to be known before sessions run under software emulation.
pub(crate) const EMULATION_WARNING: &str = "sessions run under software emulation (TCG), which is no security boundary by \
    QEMU's own policy: run only what you would run as an unprivileged user of this host";
