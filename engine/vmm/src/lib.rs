//! Virtual machine monitors: what the engine asks of one, and the QEMU driver.
//!
//! Everything a VMM works with reaches it as an inherited descriptor ([`Descriptors`]): no path, no
//! name, nothing left behind when it dies, and nothing to find from inside.

mod accel;
mod children;
mod console;
mod driver;
pub mod hardening;
mod helper;
mod jail;
mod process;
pub mod qemu;
pub mod qmp;

pub use accel::{Accel, EMULATION_WARNING};
pub use console::ConsoleTail;
pub use driver::{
    Descriptors, DirectBoot, DiskFormat, DiskLayer, Driver, ForkSpec, LaunchSpec, Launched,
    MachineShape, Purpose, RamDescriptors, Vmm, VmmError,
};
pub use helper::Helper;
pub use jail::JailError;
pub use process::{Confinement, Exit, ProcessError, VmmProcess};
