//! A container start with crun: the floor without a virtual machine, and without its isolation.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command as StdCommand, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::sample::Sample;
use crate::error::{self, BenchError};
use crate::machine::hybrid_cgroups;

const SYSTEM: &str = "crun";
/// What the container's first process says.
const ANSWER: &str = "ready";
const LIMIT: Duration = Duration::from_secs(10);

/// A bundle to start containers from.
#[derive(Debug)]
pub struct Containers {
    dir: tempfile::TempDir,
    crun: PathBuf,
    /// A mount namespace in which crun can work; `None` where it can in ours.
    mounts: Option<OwnedFd>,
}

fn refused(reason: impl Into<String>) -> BenchError {
    BenchError::Peer { system: SYSTEM, reason: reason.into() }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

impl Containers {
    /// Makes a bundle whose root holds a static busybox.
    ///
    /// # Errors
    /// [`BenchError::Peer`] when crun or busybox is missing.
    pub async fn new() -> Result<Self, BenchError> {
        let missing = |what: &str| refused(format!("{what} not found: install the packages crun and busybox-static"));
        let crun = find(SYSTEM).ok_or_else(|| missing(SYSTEM))?;
        let busybox = find("busybox").ok_or_else(|| missing("busybox"))?;
        let dir = tempfile::Builder::new().prefix("mayfly-bench-crun").tempdir();
        let dir = dir.map_err(error::io("make", "a folder for containers"))?;
        let bin = dir.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).map_err(error::io("make", &bin))?;
        std::fs::copy(&busybox, bin.join("busybox")).map_err(error::io("copy", &busybox))?;
        for mount_point in ["proc", "dev", "sys"] {
            let path = dir.path().join("rootfs").join(mount_point);
            std::fs::create_dir(&path).map_err(error::io("make", &path))?;
        }
        let config = dir.path().join("config.json");
        std::fs::write(&config, bundle().to_string()).map_err(error::io("write", &config))?;
        let mounts = if hybrid_cgroups() { Some(without_unified().await?) } else { None };
        Ok(Self { dir, crun, mounts })
    }

    /// Starts container `id` and waits for its answer, then removes it.
    ///
    /// # Errors
    /// [`BenchError`]; the container is gone then.
    pub async fn measure(&self, id: &str) -> Result<Sample, BenchError> {
        let mut command = Command::from(self.command(&["run", "--bundle", ".", id])?);
        let removal = Removal { containers: self, id };
        let begun = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(error::io("start", &self.crun))?;
        let answered = answer(&mut child).await;
        let took = begun.elapsed();
        drop(removal);
        let _ = child.wait().await;
        answered?;
        match self.state().join(id).exists() {
            false => Ok(Sample::new(took, None)),
            true => Err(refused(format!("cannot remove container {id}"))),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, args: &[&str]) -> Result<StdCommand, BenchError> {
        let mut command = StdCommand::new(&self.crun);
        command.arg("--root").arg(self.state()).args(args).current_dir(self.dir.path());
        if let Some(mounts) = &self.mounts {
            let mounts = mounts.try_clone().map_err(error::io("use", "a mount namespace"))?;
            let folder = CString::new(self.dir.path().as_os_str().as_bytes())
                .map_err(|e| error::io("use", self.dir.path())(e.into()))?;
            // SAFETY: the closure runs between fork and exec and makes two system calls, setns(2) and chdir(2), with what
            // was allocated before the fork.
            unsafe { command.pre_exec(move || enter(&mounts, &folder)) };
        }
        Ok(command)
    }
}

/// Removes a container when dropped, so that none is left by an interrupted start either: crun's death does not end it.
struct Removal<'a> {
    containers: &'a Containers,
    id: &'a str,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // `crun run` removes a container that has ended, too, and then this one complains.
        if let Ok(mut command) = self.containers.command(&["delete", "--force", self.id]) {
            let _ = command.stdin(Stdio::null()).output();
        }
    }
}

/// Into the namespace, and back into the folder that it sees under the same name: setns(2) leads to the root.
fn enter(mounts: &OwnedFd, folder: &CStr) -> io::Result<()> {
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    Ok(nix::unistd::chdir(folder)?)
}

async fn answer(child: &mut Child) -> Result<(), BenchError> {
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(refused("its output is not ours to read"));
    };
    let mut line = String::new();
    let mut stdout = BufReader::new(stdout);
    match tokio::time::timeout(LIMIT, stdout.read_line(&mut line)).await {
        Ok(Ok(_)) if line.trim_end() == ANSWER => Ok(()),
        Ok(Ok(_)) => {
            let _ = child.start_kill();
            let mut words = String::new();
            let _ = (&mut stderr).take(4096).read_to_string(&mut words).await;
            Err(refused(format!("the container did not answer: {}", words.trim())))
        }
        Ok(Err(source)) => Err(error::io("read", "the container's answer")(source)),
        Err(_) => Err(BenchError::Silent { what: "a container", seconds: LIMIT.as_secs(), context: String::new() }),
    }
}

/// crun refuses to work where cgroup v2 is mounted beside v1 (its `cgroups in hybrid mode not supported`). A mount namespace
/// without that one mount is all it needs; it lives as long as the returned descriptor.
async fn without_unified() -> Result<OwnedFd, BenchError> {
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("umount /sys/fs/cgroup/unified && echo done && read -r _")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(error::io("run", "unshare"))?;
    let mut line = String::new();
    if let Some(stdout) = holder.stdout.take() {
        let read = tokio::time::timeout(LIMIT, BufReader::new(stdout).read_line(&mut line)).await;
        read.ok().transpose().map_err(error::io("read from", "unshare"))?;
    }
    if line.trim() != "done" {
        return Err(refused("cannot make a mount namespace without cgroup v2, which crun needs on this host"));
    }
    let path = format!("/proc/{}/ns/mnt", holder.id().unwrap_or(0));
    let namespace = File::open(&path).map_err(error::io("open", &path))?;
    holder.kill().await.map_err(error::io("end", "unshare"))?;
    Ok(namespace.into())
}

/// A container with the namespaces and mounts that `crun spec` gives, without cgroup mount and terminal.
fn bundle() -> serde_json::Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/busybox", "sh", "-c", format!("echo {ANSWER}; exec /bin/busybox sleep 60")],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": { "bounding": [], "effective": [], "inheritable": [], "permitted": [] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "mayfly-bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
