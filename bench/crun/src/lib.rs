//! Containers of crun, to compare a session's start with: the floor without a virtual machine, and
//! without its isolation.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::time::{Duration, Instant};

use mayfly_host::time_scale::scaled;
use mayfly_protocol::Printable;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

const PROGRAM: &str = "crun";
/// What the container's first process says.
const ANSWER: &str = "ready";
/// Bound on a start, before it is scaled; it catches what hangs.
const LIMIT: Duration = Duration::from_secs(10);
/// Where systemd mounts cgroup v2 beside the controllers of v1.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// What a shell needs of the host, where it is a folder of its own and where it is a link into
/// /usr.
const USERLAND: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];

/// Reason why there is no container to compare with.
#[derive(Debug, thiserror::Error)]
pub enum CrunError {
    /// The program is not installed.
    #[error("crun is not installed: install the package crun")]
    NotInstalled,
    /// A file or a process of ours.
    #[error("cannot {action} {path} for a container of crun: {cause}")]
    Io {
        /// Operation that was attempted.
        action: &'static str,
        /// Path it was attempted with.
        path: PathBuf,
        /// Cause of the failure.
        cause: io::Error,
    },
    /// The program did something else than it should.
    #[error("crun: {0}")]
    Refused(String),
    /// The container did not answer.
    #[error("a container of crun did not answer within {0:?}")]
    Silent(Duration),
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CrunError + use<'a> {
    move |cause| CrunError::Io { action, path: path.to_owned(), cause }
}

/// A bundle to start containers from, in a temporary folder that goes with it.
#[derive(Debug)]
pub struct Containers {
    dir: tempfile::TempDir,
    crun: PathBuf,
    /// A mount namespace in which crun can work; `None` where it can in ours.
    mounts: Option<OwnedFd>,
}

impl Containers {
    /// Makes a bundle whose root has this host's programs, read-only.
    ///
    /// # Errors
    /// [`CrunError`]; nothing is left behind then.
    pub async fn new() -> Result<Self, CrunError> {
        let crun = find(PROGRAM).ok_or(CrunError::NotInstalled)?;
        let dir = tempfile::Builder::new().prefix("mayfly-crun-").tempdir();
        let dir = dir.map_err(failed("make a folder in", &std::env::temp_dir()))?;
        let root = dir.path().join("rootfs");
        std::fs::create_dir(&root).map_err(failed("make", &root))?;
        let mut binds = Vec::new();
        for path in USERLAND.map(Path::new) {
            let place = root.join(path.strip_prefix("/").unwrap_or(path));
            match std::fs::symlink_metadata(path) {
                Ok(there) if there.is_symlink() => {
                    let link = std::fs::read_link(path).map_err(failed("read", path))?;
                    std::os::unix::fs::symlink(link, &place).map_err(failed("make", &place))?;
                }
                Ok(there) if there.is_dir() => binds.push(path),
                _ => {}
            }
        }
        let config = dir.path().join("config.json");
        std::fs::write(&config, bundle(&binds).to_string()).map_err(failed("write", &config))?;
        let mounts = if Path::new(UNIFIED).join("cgroup.procs").exists() {
            Some(without_unified().await?)
        } else {
            None
        };
        Ok(Self { dir, crun, mounts })
    }

    /// Starts container `id`, waits until its first process has written a line, and removes it.
    /// Returns how long the line took.
    ///
    /// # Errors
    /// [`CrunError`]; the container is gone then.
    pub async fn start(&self, id: &str) -> Result<Duration, CrunError> {
        let mut command = Command::from(self.command(&["run", "--bundle", ".", id])?);
        let begun = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed("run", &self.crun))?;
        let mut running = Running { containers: self, id, child };
        let answered = answer(&mut running.child).await;
        let took = begun.elapsed();
        drop(running);
        answered?;
        match self.state().join(id).exists() {
            false => Ok(took),
            true => Err(CrunError::Refused(format!("container {id} cannot be removed"))),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// crun with these arguments, in a process group of its own: Ctrl-C is for us, and we remove
    /// what it has started.
    fn command(&self, args: &[&str]) -> Result<StdCommand, CrunError> {
        let mut command = StdCommand::new(&self.crun);
        command
            .arg("--root")
            .arg(self.state())
            .args(args)
            .current_dir(self.dir.path())
            .process_group(0);
        if let Some(mounts) = &self.mounts {
            let mounts =
                mounts.try_clone().map_err(failed("use a mount namespace in", self.dir.path()))?;
            let folder = CString::new(self.dir.path().as_os_str().as_bytes())
                .map_err(|e| failed("use", self.dir.path())(e.into()))?;
            // SAFETY: the closure runs between fork and exec and makes two system calls, setns(2)
            // and chdir(2), with what was allocated before the fork.
            unsafe { command.pre_exec(move || enter(&mounts, &folder)) };
        }
        Ok(command)
    }
}

/// A container that is started or runs. Dropping it removes it, so that none is left by an
/// interrupted start either: crun's death does not end it.
struct Running<'a> {
    containers: &'a Containers,
    id: &'a str,
    child: Child,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // One that is killed while it makes a container leaves parts of it behind that it cannot be
        // asked to remove yet.
        let status = self.containers.state().join(self.id).join("status");
        let begun = Instant::now();
        while !status.exists()
            && matches!(self.child.try_wait(), Ok(None))
            && begun.elapsed() < scaled(LIMIT)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // `crun run` removes a container that has ended, too, and then this one complains.
        if let Ok(mut command) = self.containers.command(&["delete", "--force", self.id]) {
            let _ = command.stdin(Stdio::null()).output();
        }
        // Its container is gone, and it follows.
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < scaled(LIMIT) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Into the namespace, and back into the folder that it sees under the same name: setns(2) leads to
/// the root.
fn enter(mounts: &OwnedFd, folder: &CStr) -> io::Result<()> {
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    Ok(nix::unistd::chdir(folder)?)
}

async fn answer(child: &mut Child) -> Result<(), CrunError> {
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(CrunError::Refused("its output is not ours to read".to_owned()));
    };
    let mut line = String::new();
    let mut stdout = BufReader::new(stdout.take(4096));
    match tokio::time::timeout(scaled(LIMIT), stdout.read_line(&mut line)).await {
        Ok(Ok(_)) if line.trim_end() == ANSWER => Ok(()),
        Ok(Ok(_)) => {
            let mut words = String::new();
            let mut end = stderr.take(4096);
            let _ = tokio::time::timeout(scaled(LIMIT), end.read_to_string(&mut words)).await;
            Err(CrunError::Refused(format!(
                "the container did not answer: {}",
                Printable(words.trim())
            )))
        }
        Ok(Err(cause)) => Err(failed("read the answer in", Path::new("stdout"))(cause)),
        Err(_) => Err(CrunError::Silent(scaled(LIMIT))),
    }
}

/// crun refuses to work where cgroup v2 is mounted beside v1 (its `cgroups in hybrid mode not
/// supported`). A mount namespace without that one mount is all it needs; it lives as long as the
/// returned descriptor.
async fn without_unified() -> Result<OwnedFd, CrunError> {
    let unshare = Path::new("unshare");
    let mut holder = Command::new(unshare)
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!("umount {UNIFIED} && echo done && read -r _"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed("run", unshare))?;
    let mut line = String::new();
    if let Some(stdout) = holder.stdout.take() {
        let read =
            tokio::time::timeout(scaled(LIMIT), BufReader::new(stdout).read_line(&mut line)).await;
        read.ok().transpose().map_err(failed("read from", unshare))?;
    }
    if line.trim() != "done" {
        let reason = "needs a mount namespace without cgroup v2 on this host, which cannot be made";
        return Err(CrunError::Refused(reason.to_owned()));
    }
    let path = PathBuf::from(format!("/proc/{}/ns/mnt", holder.id().unwrap_or(0)));
    let namespace = File::open(&path).map_err(failed("open", &path))?;
    holder.kill().await.map_err(failed("end", unshare))?;
    Ok(namespace.into())
}

/// A container with the namespaces and mounts that `crun spec` gives, without cgroup mount and
/// terminal, and with `binds` of the host at their places.
fn bundle(binds: &[&Path]) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &[]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    mounts.extend(
        binds
            .iter()
            .map(|path| json!({ "destination": path, "type": "bind", "source": path, "options": ["bind", "ro"] })),
    );
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", format!("echo {ANSWER}; exec sleep 60")],
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "capabilities": { "bounding": [], "effective": [], "inheritable": [], "permitted": [] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "mayfly-crun",
        "mounts": mounts,
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
