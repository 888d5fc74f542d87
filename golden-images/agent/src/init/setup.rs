//! Setup that a system needs before its first service: mounts, cgroups, limits, links, the loopback
//! interface.

use super::sysctl;
use crate::port::write_file;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// Modules to load with modprobe(8) before the services start, one name per line; `#` starts a
/// comment.
const MODULES_LOAD: &str = "/etc/mayfly/modules-load";

/// Bound of all logs together; a log that reaches its share is truncated by the supervisor, this is
/// the hard end.
const LOG_SPACE: &str = "mode=0755,size=16m";

/// Open files of a process, soft and hard, as systemd sets them (systemd-system.conf(5),
/// `DefaultLimitNOFILE=`). Old programs close every descriptor up to the soft limit before they
/// execute another, and programs that use select(2) break above 1024 (getrlimit(2)). A program that
/// needs more raises its own: dockerd and containerd do so, as all programs in Go.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// File systems of a guest: type, place, options.
const MOUNTS: &[(&str, &str, &str)] = &[
    ("devtmpfs", "/dev", "mode=0755"),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("mqueue", "/dev/mqueue", ""),
    ("tmpfs", "/run", "mode=0755,size=20%"),
    ("tmpfs", "/tmp", "mode=1777,size=50%"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("tmpfs", "/run/mayfly/log", LOG_SPACE),
];

/// Does all of it. A step that fails is an error; only modules and links may.
pub fn prepare() -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    mount_all(MOUNTS)?;
    // As systemd does it: mounts of containers are to be seen by the host side of a bind mount.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .map_err(|error| format!("make / shared: {error}"))?;
    cgroups().map_err(|error| format!("cgroups: {error}"))?;
    limits().map_err(|error| format!("limits: {error}"))?;
    loopback().map_err(|error| format!("interface lo: {error}"))?;
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let link = format!("/dev/{link}");
        if let Err(error) = symlink(target, &link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            warnings.push(format!("{link}: {error}"));
        }
    }
    warnings.extend(load_modules());
    warnings.extend(sysctl::apply());
    warnings.extend(super::stillness::prepare());
    Ok(warnings)
}

/// Mounts each `(type, place, options)` unless it is there already.
pub fn mount_all(mounts: &[(&str, &str, &str)]) -> Result<(), String> {
    for (kind, place, options) in mounts {
        std::fs::create_dir_all(place).map_err(|error| format!("make {place}: {error}"))?;
        if is_mount_point(Path::new(place)) {
            continue;
        }
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        match *kind {
            "devtmpfs" | "devpts" => flags.remove(MsFlags::MS_NODEV | MsFlags::MS_NOEXEC),
            // Programs are run from there.
            "tmpfs" => flags.remove(MsFlags::MS_NOEXEC),
            _ => {}
        }
        mount(Some(*kind), *place, Some(*kind), flags, Some(*options))
            .map_err(|error| format!("mount {kind} on {place}: {error}"))?;
    }
    Ok(())
}

/// Whether a directory is on another device than the one above it, as mountpoint(1) finds out.
fn is_mount_point(place: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    place.parent().is_some_and(|parent| device(place) != device(parent))
}

/// Moves PID 1 to a leaf and enables every controller for the other groups: a group with processes
/// cannot enable controllers (Documentation/admin-guide/cgroup-v2, "No Internal Process
/// Constraint"; the root is exempt, but dockerd's own nesting is simpler to reason about when it is
/// empty).
fn cgroups() -> io::Result<()> {
    std::fs::create_dir_all("/sys/fs/cgroup/init")?;
    write_file("/sys/fs/cgroup/init/cgroup.procs", "1")?;
    for controller in
        std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?.split_whitespace()
    {
        write_file("/sys/fs/cgroup/cgroup.subtree_control", &format!("+{controller}"))?;
    }
    Ok(())
}

/// Limits of everything in the guest, unless it sets its own.
fn limits() -> io::Result<()> {
    for (resource, soft, hard) in [
        (Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1),
        (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY),
    ] {
        setrlimit(resource, soft, hard)?;
    }
    Ok(())
}

/// Sets IFF_UP on lo (netdevice(7)); the kernel gives it 127.0.0.1 and ::1 by itself.
#[expect(clippy::cast_possible_truncation, reason = "IFF_UP is a small number")]
fn loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which zeros are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *target = byte.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one ifreq.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    })?;
    // SAFETY: SIOCGIFFLAGS has just written this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of one ifreq.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)
    })?;
    Ok(())
}

fn load_modules() -> Vec<String> {
    if !Path::new(MODULES_LOAD).exists() {
        return Vec::new();
    }
    let list = match std::fs::read_to_string(MODULES_LOAD) {
        Ok(list) => list,
        Err(error) => return vec![format!("{MODULES_LOAD}: {error}")],
    };
    let names: Vec<&str> = list
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    if names.is_empty() {
        return Vec::new();
    }
    let mut command = Command::new("/sbin/modprobe");
    command
        .args(["-a", "-q"])
        .args(&names)
        .env("PATH", crate::exec::DEFAULT_PATH)
        .stdin(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Vec::new(),
        Ok(status) => vec![format!("modprobe {}: {status}", names.join(" "))],
        Err(error) => vec![format!("/sbin/modprobe: {error}")],
    }
}
