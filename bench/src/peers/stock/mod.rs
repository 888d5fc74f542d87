//! Stock QEMU: the same kernel, disk, agent and machine as Mayfly's, but QEMU's own ways to keep
//! and to restore a guest. No preload library, no pager; guest memory is anonymous, as QEMU makes
//! it by default.

mod artifacts;
mod export;
mod guest;
mod qemu;

pub use artifacts::Artifacts;
pub use export::{Exported, export};
pub use guest::{boot, incoming, load_vm};
