//! What this host can do, checked by doing it, and what to do about what it cannot.

use std::path::{Path, PathBuf};

use mayfly_golden_images::{Builder, Recipe};
use mayfly_snapshotter::Digest;
use serde::Serialize;

use super::{kvm, userfaultfd};
use crate::cgroup::{CgroupError, Limits, Place, SessionCgroup, Subject};
use crate::instance::Instance;
use crate::layout::{self, Layout};
use crate::vmm::qemu;

/// Free space below which a golden build may fail, in bytes.
const SPACE_FOR_A_BUILD: u64 = 4 << 30;
/// Free memory below which sessions are few, in bytes.
const MEMORY_FOR_SESSIONS: u64 = 2 << 30;

/// How one check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Mayfly works, but slower or with less.
    Limited,
    /// Mayfly does not work.
    Missing,
}

/// One thing that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub subject: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing needs doing.
    pub advice: String,
}

impl Check {
    fn new(subject: &'static str, outcome: Outcome, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject, outcome, found: found.into(), advice: advice.into() }
    }

    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Ok, found, "")
    }

    fn missing(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(subject, Outcome::Missing, found, advice)
    }
}

/// Checks everything. Runs a probe guest when there is a kernel to run; leaves nothing behind.
pub async fn examine(layout: &Layout) -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let mut checks = vec![
        if root { Check::ok("root", "yes") } else { Check::missing("root", "no", "run mayfly with sudo") },
        kernel_release(),
        userfaultfd_check(),
        cgroups(layout),
        user_namespaces(),
        qemu_check(),
        kvm_check(layout).await,
    ];
    checks.extend([("qemu-img", "qemu-utils"), ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")].map(
        |(program, package)| match on_path(program) {
            Some(path) => Check::ok(program, path.display().to_string()),
            None => Check::missing(program, "not found", format!("apt-get install {package}")),
        },
    ));
    checks.push(match on_path("docker") {
        Some(path) => Check::ok("docker client", path.display().to_string()),
        None => Check::new(
            "docker client",
            Outcome::Limited,
            "not found",
            "only `mayfly run --docker` needs it: apt-get install docker.io (its daemon may stay off)",
        ),
    });
    checks.push(helper("preload library", layout::preload_library()));
    checks.push(helper("guest agent", layout::guest_agent()));
    checks.push(space(layout));
    checks.push(memory());
    checks
}

fn helper(subject: &'static str, found: Result<PathBuf, layout::LayoutError>) -> Check {
    match found {
        Ok(path) => Check::ok(subject, path.display().to_string()),
        Err(error) => Check::missing(subject, error.to_string(), "build it with ./mayfly"),
    }
}

fn kernel_release() -> Check {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    Check::ok("kernel", release)
}

fn userfaultfd_check() -> Check {
    match userfaultfd::open() {
        Ok(_) => Check::ok("userfaultfd", userfaultfd::DEVICE),
        Err(error) => {
            Check::missing("userfaultfd", error.to_string(), "use a kernel with CONFIG_USERFAULTFD=y, as root")
        }
    }
}

fn cgroups(layout: &Layout) -> Check {
    const SUBJECT: &str = "cgroups";
    let instance = match Instance::enter(layout) {
        Ok(instance) => instance,
        Err(error) => return Check::missing(SUBJECT, error.to_string(), "run as root, or set MAYFLY_RUN"),
    };
    let subject = Subject { guest_memory: 64 << 20, disk_dir: layout.disks() };
    let try_one = || {
        let cgroup = SessionCgroup::create(&instance.cgroup_name("doctor"), &Limits::default(), subject)?;
        let found = (cgroup.version(), cgroup.bounds_swap());
        cgroup.entrance()?;
        cgroup.remove()?;
        Ok::<_, CgroupError>((Place::of_this_process()?, found))
    };
    match try_one() {
        Ok((_, (_, bounds_swap))) if !bounds_swap && has_swap() => {
            let found = "memory, cpu and pids can be limited, swap cannot: a session may swap beyond its memory limit";
            Check::new(SUBJECT, Outcome::Limited, found, "boot with swapaccount=1, or turn swap off")
        }
        Ok((place, (version, _))) => match place.limitation() {
            Some(limitation) => Check::new(SUBJECT, Outcome::Limited, limitation.found(), limitation.remedy()),
            None => {
                let folders: Vec<String> = place.folders("").iter().map(|dir| dir.display().to_string()).collect();
                let found = format!("{version}, memory with swap, cpu and pids can be limited; {}", folders.join(", "));
                Check::ok(SUBJECT, found)
            }
        },
        Err(error) => Check::missing(SUBJECT, error.found(), error.remedy()),
    }
}

fn has_swap() -> bool {
    // One line of headings, then one for each swap area (proc(5)).
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().nth(1).is_some())
}

/// Whether an ordinary process may make a user namespace, which a fork of a zygote has to.
fn user_namespaces() -> Check {
    const SUBJECT: &str = "user namespaces";
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    let forbidden = [
        (
            read("user/max_user_namespaces").trim() == "0",
            "user.max_user_namespaces=0",
            "sysctl -w user.max_user_namespaces=65536",
        ),
        (
            read("kernel/unprivileged_userns_clone").trim() == "0",
            "kernel.unprivileged_userns_clone=0",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            read("kernel/apparmor_restrict_unprivileged_userns").trim() == "1",
            "kernel.apparmor_restrict_unprivileged_userns=1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    match forbidden.into_iter().find(|(is, _, _)| *is) {
        Some((_, setting, advice)) => {
            let found = format!("{setting}: standbys are restored one by one instead of forked from a zygote");
            Check::new(SUBJECT, Outcome::Limited, found, advice)
        }
        None => Check::ok(SUBJECT, "a zygote can be forked"),
    }
}

fn qemu_check() -> Check {
    const SUBJECT: &str = "QEMU";
    let advice = "apt-get install qemu-system-x86 (7.2 or later)";
    match qemu::find_program().and_then(|program| qemu::program_version(&program).map(|v| (program, v))) {
        Ok((program, version)) => Check::ok(SUBJECT, format!("{version}, {}", program.display())),
        Err(error) => Check::missing(SUBJECT, error.to_string(), advice),
    }
}

async fn kvm_check(layout: &Layout) -> Check {
    const SUBJECT: &str = "KVM";
    const SLOWER: &str = "sessions run under software emulation, 10 to 30 times slower inside and no security boundary by \
        QEMU's own policy; use a host with hardware virtualization";
    let Some(artifacts) = boot_artifacts(layout) else {
        let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        let found = match device {
            Ok(_) => "/dev/kvm opens, which proves little; not probed yet for lack of a guest kernel".to_owned(),
            Err(error) => format!("cannot open /dev/kvm: {error}"),
        };
        return Check::new(SUBJECT, Outcome::Limited, found, "run `mayfly golden build`, which runs a probe guest");
    };
    let probe = async {
        let digest = Digest::from(artifacts.kernel_blake3);
        let library = layout::preload_library().map_err(|e| e.to_string())?;
        let program = qemu::find_program().map_err(|e| e.to_string())?;
        let driver = qemu::QemuDriver::new(program, &library, layout).map_err(|e| e.to_string())?;
        Ok::<_, String>(kvm::probe(layout, &driver, &artifacts.kernel, &artifacts.initramfs, &digest).await)
    };
    match probe.await {
        Ok(kvm::Verdict::Usable) => Check::ok(SUBJECT, "usable: a probe guest ran to user space"),
        Ok(kvm::Verdict::NoDevice { reason }) => Check::new(SUBJECT, Outcome::Limited, reason, SLOWER),
        Ok(kvm::Verdict::Broken { reason }) => {
            Check::new(SUBJECT, Outcome::Limited, format!("/dev/kvm opens but is not usable: {reason}"), SLOWER)
        }
        Err(reason) => Check::new(SUBJECT, Outcome::Limited, format!("cannot be probed: {reason}"), SLOWER),
    }
}

/// Kernel and initramfs of the default golden image, when its boot artifacts are there.
fn boot_artifacts(layout: &Layout) -> Option<mayfly_golden_images::BootArtifacts> {
    let builder = Builder::new(layout.images(), layout::guest_agent().ok()?);
    builder.find(&Recipe::builtin_default()).ok()?
}

fn on_path(program: &str) -> Option<PathBuf> {
    // Root's tools are often not on the PATH of a sudo shell.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|p| p.is_file())
}

fn space(layout: &Layout) -> Check {
    const SUBJECT: &str = "disk space";
    let existing = layout.home().ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let free = nix::sys::statvfs::statvfs(existing).map_or(0, |s| s.blocks_available() * s.fragment_size());
    let found = format!("{} free below {}", indicatif::HumanBytes(free), layout.home().display());
    if free >= SPACE_FOR_A_BUILD {
        return Check::ok(SUBJECT, found);
    }
    Check::new(SUBJECT, Outcome::Limited, found, "a golden build needs about 4 GiB; MAYFLY_HOME names another place")
}

fn memory() -> Check {
    const SUBJECT: &str = "memory";
    let info: Option<procfs::Meminfo> = procfs::Current::current().ok();
    let available = info.and_then(|m| m.mem_available).unwrap_or(0);
    let found = format!("{} available", indicatif::HumanBytes(available));
    if available >= MEMORY_FOR_SESSIONS {
        return Check::ok(SUBJECT, found);
    }
    Check::new(SUBJECT, Outcome::Limited, found, "a golden build needs its guest's memory; a session some tens of MiB")
}
