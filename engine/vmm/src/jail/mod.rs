//! Jail of a VMM process, which limits what it sees of the host: namespaces of its own, a root with
//! only what it needs, and no privileges.
//!
//! - [`JailRoot`] is that root, made once for a driver;
//! - `libraries` finds the files a program is loaded from;
//! - `spawner` makes processes in PID namespaces of their own;
//! - [`ZygoteNamespace`] is the one of a zygote and its forks;
//! - `program` is what they execute, and the fork;
//! - `confine` is what a child does between fork and exec.

mod confine;
mod libraries;
mod program;
mod root;
mod spawner;
mod zygote_namespace;

pub(super) use confine::{Child, Owner};
pub(super) use libraries::loaded_by;
pub(super) use mayfly_vmm_contract::confine::Rlimits;
pub(super) use program::Program;
pub(super) use root::PRELOAD;
pub use root::{JailError, JailRoot};
pub(super) use spawner::{PidNamespace, spawn};
pub use zygote_namespace::ZygoteNamespace;
