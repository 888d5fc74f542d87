//! The operating systems that are emulated, and what is installed in each.

use std::fmt;
use std::str::FromStr;

/// Where Debian's packages are. How this host reaches it (proxy, certificates) is taken from its
/// own apt settings.
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// What the launcher would install, what a server has anyway, and what the control path and the
/// cases need.
const PACKAGES: [&str; 23] = [
    "ca-certificates",
    "crun",
    "curl",
    "dbus",
    "docker-compose",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "jq",
    "kmod",
    "libpam-systemd",
    "linux-image-amd64",
    "login",
    "mmdebstrap",
    "openssh-client",
    "procps",
    "qemu-guest-agent",
    "qemu-system-x86",
    "qemu-utils",
    "systemd-sysv",
    "udev",
    "util-linux",
    "zstd",
];

/// A stock Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian 12, bookworm: QEMU 7.2, kernel 6.1, and the kernel of bookworm-backports beside it.
    Debian12,
    /// Debian 13, trixie: QEMU 10.0, kernel 6.12.
    Debian13,
}

/// Kernel that a host is booted with, of those of its distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The one of the release.
    Release,
    /// The one of its backports.
    Backports,
}

/// A distribution with one of its kernels: what is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    /// Distribution of the host.
    pub distribution: Distribution,
    /// Kernel of the host.
    pub kernel: Kernel,
}

impl Distribution {
    /// Returns the codename, which is the name of the suite.
    pub fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }

    /// Returns the arguments of mmdebstrap's `--include`: package names, and patterns of apt
    /// (apt-patterns(7)).
    pub fn packages(self) -> Vec<String> {
        let mut packages = vec![PACKAGES.join(",")];
        match self {
            // Its docker client has no package of its own.
            Self::Debian12 => packages.extend([
                "docker.io".to_owned(),
                "?reverse-depends(?and(?exact-name(linux-image-amd64),?archive(backports)))"
                    .to_owned(),
            ]),
            Self::Debian13 => packages.push("docker-cli,docker-buildx".to_owned()),
        }
        packages
    }

    /// Lines of a sources.list(5).
    pub fn sources(self) -> Vec<String> {
        let suite = self.suite();
        let mut lines = vec![
            format!("deb {MIRROR} {suite} main"),
            format!("deb {MIRROR} {suite}-updates main"),
            format!("deb {SECURITY_MIRROR} {suite}-security main"),
        ];
        if self == Self::Debian12 {
            lines.push(format!("deb {MIRROR} {suite}-backports main"));
        }
        lines
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
        })
    }
}

impl Platform {
    /// All that can be booted.
    pub const ALL: [Self; 3] = [
        Self { distribution: Distribution::Debian13, kernel: Kernel::Release },
        Self { distribution: Distribution::Debian12, kernel: Kernel::Release },
        Self { distribution: Distribution::Debian12, kernel: Kernel::Backports },
    ];

    /// Returns whether stock Linux guests run under its KVM. Under Debian 12's own kernel 6.1 the
    /// emulated processor resets as soon as one does.
    pub fn has_kvm(self) -> bool {
        self.distribution == Distribution::Debian13 || self.kernel == Kernel::Backports
    }

    /// Returns whether `release` (uname(2)) is its kernel.
    pub fn boots(self, release: &str) -> bool {
        let own = match self.distribution {
            Distribution::Debian12 => "6.1.",
            Distribution::Debian13 => return true,
        };
        release.starts_with(own) == (self.kernel == Kernel::Release)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = if self.kernel == Kernel::Backports { "-backports" } else { "" };
        write!(f, "{}{kernel}", self.distribution)
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|platform| platform.to_string() == text);
        let known = || Self::ALL.map(|platform| platform.to_string()).join(", ");
        found.ok_or_else(|| format!("there is no emulated host {text:?}; there are {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_has_a_name_of_its_own() {
        for platform in Platform::ALL {
            assert_eq!(platform.to_string().parse(), Ok(platform));
        }
        assert!(
            "debian11"
                .parse::<Platform>()
                .unwrap_err()
                .contains("debian13, debian12, debian12-backports")
        );
    }

    #[test]
    fn a_kernel_belongs_to_one_platform_of_its_distribution() {
        let [trixie, own, backports] = Platform::ALL;
        assert!(trixie.boots("6.12.43+deb13-amd64"));
        assert!(own.boots("6.1.0-56-amd64") && !backports.boots("6.1.0-56-amd64"));
        assert!(backports.boots("6.12.95+deb12-amd64") && !own.boots("6.12.95+deb12-amd64"));
    }
}
