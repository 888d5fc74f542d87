//! Turns a recipe into the boot artifacts of a golden image: root file system, kernel, initramfs
//! and guest agent.
//!
//! ```text
//! recipe.toml ─> Recipe ─┐
//! guest agent ───────────┼─> BuildKey ─> cache hit? ── yes ──────────────────────────────> BootArtifacts
//! builder version ───────┘                   no │                                               ▲
//!                          mmdebstrap ─> root directory ─> kernel, initramfs, ext4 disk ─ rename ┘
//! ```
//!
//! This crate starts no virtual machine. It runs as root on a Debian-like host with `mmdebstrap`,
//! `mke2fs` and `unshare` on the search path; every child process lives in its own mount and PID
//! namespace and dies with the process that started it. What a recipe or a package brings runs in a
//! user namespace besides, as nobody on the host.

mod agent;
mod artifacts;
mod bootstrap;
mod builder;
mod cache;
pub mod cmdline;
mod disk;
mod entry_file;
mod error;
mod images;
mod initramfs;
mod kernel;
mod key;
mod mmdebstrap;
mod modules;
mod progress;
mod recipe;
mod root_dir;
mod rootfs;
mod sandbox;
mod seal;
mod userns;

pub use artifacts::{ArtifactFile, BootArtifacts, artifact_dir, find_artifacts};
pub use builder::Builder;
pub use cache::{Cache, WorkDir};
pub use error::{DiskFullError, Error};
pub use kernel::{ImageFormat, KernelError, extract_vmlinux, has_pvh_entry};
pub use key::BuildKey;
pub use mmdebstrap::{Hook, Mmdebstrap};
pub use modules::{ModuleIndex, ModulesError};
pub use progress::{NoProgress, Progress, Step};
pub use recipe::{Debian, Docker, DockerImage, Hooks, ImageSource, Recipe, RecipeError, User, Vm};
pub use sandbox::{Finished, Sandbox};
pub use seal::{KeyedSeal, Seal};
pub use userns::{FIRST_ID, IDS};
