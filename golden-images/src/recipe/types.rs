//! The validated form of a recipe.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

/// A validated recipe. Built by [`Recipe::load`](crate::Recipe::load),
/// [`parse`](crate::Recipe::parse) or [`builtin_default`](crate::Recipe::builtin_default); every
/// path in it is resolved against the recipe's own directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recipe {
    /// Name of the golden image: `[a-z0-9][a-z0-9._-]{0,62}`.
    pub name: String,
    /// The Debian system.
    pub debian: Debian,
    /// The virtual machine.
    pub vm: Vm,
    /// The docker daemon and its preloaded images.
    pub docker: Docker,
    /// Shell commands run in the root directory while it is built, in order.
    pub setup: Vec<String>,
    /// Shell commands run in the booted guest before its snapshot, in order.
    pub warm_up: Vec<String>,
    /// Programs run inside a session.
    pub hooks: Hooks,
    /// Users of the system besides those of packages, in the order in which they are made.
    pub users: Vec<User>,
    /// User of a session's commands that name none; root when there is none.
    pub default_user: Option<String>,
}

/// A `[[user]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Name: `[a-z_][a-z0-9_-]{0,31}`.
    pub name: String,
    /// User id, 1 to 60000, and id of the user's own group where that is free; the next free one
    /// from 1000 on when there is none.
    pub uid: Option<u32>,
    /// Home directory. It is made from `/etc/skel`.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Further groups, which must exist.
    pub groups: Vec<String>,
    /// Whether sudo(8) runs everything as anybody, without a password.
    pub sudo: bool,
}

/// The `[debian]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Debian {
    /// Suite, e.g. `trixie`.
    pub suite: String,
    /// Package mirror.
    pub mirror: String,
    /// Mirror of the security updates; empty for none.
    pub security_mirror: String,
    /// Packages installed besides the essential ones, without their recommendations.
    pub packages: Vec<String>,
    /// Kernel package. It is unpacked, not installed: the image needs no initramfs tools and no
    /// boot loader.
    pub kernel: String,
}

/// The `[vm]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u32,
    /// Guest memory in MiB, 256 to 262144.
    pub memory_mib: u32,
    /// Size of the root disk in MiB, 512 to 1048576. The file is sparse.
    pub disk_mib: u64,
}

/// The `[docker]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Docker {
    /// Whether containerd and dockerd are started.
    pub enabled: bool,
    /// Images in the daemon of every session.
    pub images: Vec<DockerImage>,
}

/// A `[[docker.image]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DockerImage {
    /// Reference of the image, e.g. `busybox:latest`.
    pub tag: String,
    /// Source of its content.
    pub source: ImageSource,
    /// Dockerfile instructions applied on import (`docker import --change`), e.g. `CMD ["sh"]`.
    pub changes: Vec<String>,
}

/// Source of a docker image's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// An archive made by `docker save`.
    Load(#[serde(skip)] PathBuf),
    /// A root file system as a tar file.
    Import(#[serde(skip)] PathBuf),
    /// A directory with a Dockerfile, built in the guest (which has no network).
    Build(#[serde(skip)] PathBuf),
    /// A root file system made of files of the golden image's own root.
    Files {
        /// Path in the image to the path in the golden image's root.
        files: BTreeMap<String, String>,
        /// Path in the image to the names of symbolic links beside it (or absolute paths) that lead
        /// to it.
        links: BTreeMap<String, Vec<String>>,
        /// Path in the image to the text of a file.
        text: BTreeMap<String, String>,
    },
}

/// The `[hooks]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Hooks {
    /// Executable files run in every session right after it got its identity and entropy, in order.
    /// For programs that keep random state of their own and must reseed it.
    #[serde(skip)]
    pub after_restore: Vec<PathBuf>,
}
