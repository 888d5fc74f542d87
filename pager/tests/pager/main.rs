//! The pager against real processes: VMMs made for the test, a toy guest under /dev/kvm, and stock QEMU.

mod child;
mod faults;
mod host;
mod isolation;
mod kvm;
mod life;
mod qemu;
mod support;
