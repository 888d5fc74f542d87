//! The QEMU driver: a microvm with virtio-mmio devices, controlled through QMP.

mod command_line;
mod driver;
mod fork;
mod keeper;
mod machine;
mod program;
mod watch;

pub use command_line::{CPU_MODEL_KVM, CPU_MODEL_TCG, MACHINE};
pub use driver::QemuDriver;
pub use program::{Build, QemuProgram, find as find_program};
