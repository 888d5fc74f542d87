//! `/init` of the initramfs: loads modules, mounts the root disk, switches to it.

use crate::init::mount_all;
use crate::time_scale::scaled;
use mayfly_protocol::{PROBE_ANSWER, PROBE_PARAMETER};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Modules to load, one absolute path inside the initramfs per line, in order; `#` starts a
/// comment.
const MODULES: &str = "/etc/mayfly/modules";
const ROOT_DEVICE: &str = "/dev/vda";
const NEW_ROOT: &str = "/newroot";
const AGENT: &str = "/usr/lib/mayfly/agent";
/// <linux/module.h>
const MODULE_INIT_COMPRESSED_FILE: libc::c_int = 4;
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// Runs as init of the initial ramdisk; never returns but with what failed.
pub fn run() -> String {
    match boot() {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn boot() -> Result<std::convert::Infallible, String> {
    mount_all(&[("devtmpfs", "/dev", "mode=0755"), ("proc", "/proc", ""), ("sysfs", "/sys", "")])?;
    if asked_to_probe() {
        // A failing write to the console shows as a probe without an answer.
        crate::console::say(PROBE_ANSWER);
        crate::init::power_off();
    }
    load_modules()?;
    wait_for_root_device()?;
    std::fs::create_dir_all(NEW_ROOT).map_err(|error| format!("{NEW_ROOT}: {error}"))?;
    mount(Some(ROOT_DEVICE), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
        .map_err(|error| format!("mount {ROOT_DEVICE} as ext4: {error}"))?;
    switch_root()
}

/// A host that probes its KVM wants to know whether a guest gets this far, and nothing more.
fn asked_to_probe() -> bool {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    cmdline.split_whitespace().any(|parameter| parameter == PROBE_PARAMETER)
}

fn load_modules() -> Result<(), String> {
    let list = match std::fs::read_to_string(MODULES) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{MODULES}: {error}")),
    };
    for path in
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        load_module(path).map_err(|error| format!("load module {path}: {error}"))?;
    }
    Ok(())
}

fn load_module(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // finit_module(2): a compressed module is expanded by the kernel where CONFIG_MODULE_DECOMPRESS
    // is on.
    let compressed = [".xz", ".zst", ".gz"].iter().any(|end| path.ends_with(end));
    let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
    // SAFETY: the descriptor is open, the parameters are an empty C string, and the kernel keeps
    // neither.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    match nix::errno::Errno::result(result) {
        // Built in, or in the list twice.
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn wait_for_root_device() -> Result<(), String> {
    let limit = scaled(DEVICE_LIMIT);
    let deadline = Instant::now() + limit;
    while !Path::new(ROOT_DEVICE).exists() {
        if Instant::now() >= deadline {
            return Err(format!(
                "no {ROOT_DEVICE} after {limit:?}: is the virtio disk attached, and virtio_blk in {MODULES}?"
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// switch_root(8): the initramfs cannot be unmounted, so it is emptied and mounted over.
fn switch_root() -> Result<std::convert::Infallible, String> {
    for source in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{source}");
        std::fs::create_dir_all(&target).map_err(|error| format!("{target}: {error}"))?;
        mount(Some(source), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| format!("move {source}: {error}"))?;
    }
    let device = std::fs::metadata("/").map_err(|error| format!("/: {error}"))?.dev();
    empty(Path::new("/"), device);
    let step = |what: &str, result: nix::Result<()>| {
        result.map_err(|error| format!("switch root: {what}: {error}"))
    };
    step("chdir", chdir(NEW_ROOT))?;
    step("move", mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>))?;
    step("chroot", chroot("."))?;
    step("chdir", chdir("/"))?;
    let program = CString::new(AGENT).map_err(|error| error.to_string())?;
    execv(&program, &[&program]).map_err(|error| format!("start {AGENT} of the root disk: {error}"))
}

/// Removes everything below `directory` that is on `device`. What cannot be removed only costs
/// memory.
fn empty(directory: &Path, device: u64) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.dev() != device => {}
            Ok(metadata) if metadata.is_dir() => {
                empty(&path, device);
                let _ = std::fs::remove_dir(&path);
            }
            Ok(_) => {
                let _ = std::fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
}
