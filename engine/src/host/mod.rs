//! What this host can do: KVM, userfaultfd, memory, space; and `mayfly doctor`, which says so.

pub mod doctor;
pub mod facts;
pub mod kvm;
pub mod memory;
pub mod tsc;
pub mod userfaultfd;
