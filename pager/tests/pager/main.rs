//! The pager against real processes: VMMs made for the test, a toy guest under /dev/kvm, and stock
//! QEMU.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod child;
mod fairness;
mod faults;
mod fuse;
mod holding;
mod host;
mod isolation;
mod kvm;
mod life;
mod qemu;
mod support;
