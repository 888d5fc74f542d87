//! The channel against the real agent, which runs here as a process on a socket instead of in a
//! guest.

mod bounds;
mod clock;
mod docker;
mod exec;
mod files;
mod forward;
mod hostile;
mod phases;
mod tar;
mod turns;
mod users;
mod watch;

use super::{Aside, Buffers, Channel, ChannelError, SetAside};
use command_fds::{CommandFdExt, FdMapping};
use mayfly_protocol::{Entropy, Hello, HelloAck, PROTOCOL_VERSION};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An agent process with a state directory; killed and waited for when dropped.
pub(crate) struct Agent {
    child: Child,
    state: TempDir,
}

impl Agent {
    /// Starts an agent and returns the host's end of its stream. Must be called in a runtime.
    fn start() -> (Self, UnixStream) {
        let state = tempfile::tempdir().unwrap();
        let (host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new(agent_program());
        command.args(["serve", "--fd", "3", "--state"]).arg(state.path());
        command
            .fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(guest), child_fd: 3 }])
            .unwrap();
        let child = command.spawn().unwrap();
        host.set_nonblocking(true).unwrap();
        (Self { child, state }, UnixStream::from_std(host).unwrap())
    }

    /// Starts an agent and opens its channel.
    pub(crate) async fn open() -> (Self, Channel) {
        let (agent, stream) = Self::start();
        let (channel, ack) = Channel::open(stream, &hello("first")).await.unwrap();
        assert_eq!(ack.errors, []);
        (agent, channel)
    }

    /// A line of its /proc/PID/status (proc_pid_status(5)).
    fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Resident memory in bytes.
    fn resident(&self) -> u64 {
        self.status("VmRSS") * 1024
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Process ids of its children, those that nobody has waited for included.
    fn children(&self) -> Vec<u32> {
        let mut children = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // The name may hold blanks and brackets; the parent is the second field behind it.
            let parent = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            if parent == Some(self.child.id()) {
                children
                    .extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
            }
        }
        children
    }

    fn identity(&self, name: &str) -> String {
        std::fs::read_to_string(self.state.path().join("identity").join(name)).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bound that counts.
#[derive(Debug)]
struct Room(Arc<Semaphore>);

#[derive(Debug)]
struct Taken(Arc<Semaphore>, OwnedSemaphorePermit);

impl Aside for Taken {
    fn grow(&mut self, more: usize) -> bool {
        let permits = self.0.clone().try_acquire_many_owned(u32::try_from(more).unwrap());
        permits.map(|permits| self.1.merge(permits)).is_ok()
    }
}

impl Buffers for Room {
    fn set_aside(&self, bytes: usize) -> Option<SetAside> {
        let permit = self.0.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap()).ok()?;
        Some(Box::new(Taken(self.0.clone(), permit)))
    }
}

/// The errno of a request that failed in the guest.
fn errno<T: std::fmt::Debug>(result: Result<T, ChannelError>) -> i32 {
    match result {
        Err(ChannelError::Guest(error)) => error.errno,
        other => panic!("{other:?}"),
    }
}

fn hello(session: &str) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        session: session.into(),
        hostname: format!("mayfly-{session}"),
        machine_id: [0x11; 16],
        boot_id: [0x22; 16],
        wall_clock_ns: 1_800_000_000_000_000_000,
        entropy: Entropy::new([0x33; 64]),
    }
}

fn good_ack() -> Vec<u8> {
    HelloAck { protocol: PROTOCOL_VERSION, agent: "test".into(), open: true, errors: Vec::new() }
        .encode()
}

/// The agent of this build: from `MAYFLY_AGENT`, or beside this test's own target directory, built
/// there when missing.
fn agent_program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("MAYFLY_AGENT") {
            return path.into();
        }
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let program = profile.join("mayfly-agent");
        if !program.exists() {
            let mut cargo =
                Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["build", "--package", "mayfly-agent", "--profile"]);
            let name = profile.file_name().unwrap();
            cargo.arg(if name == "debug" { "dev".as_ref() } else { name });
            cargo
                .env("CARGO_TARGET_DIR", profile.parent().unwrap())
                .current_dir(env!("CARGO_MANIFEST_DIR"));
            assert!(cargo.status().unwrap().success(), "the agent does not build");
        }
        assert!(program.exists(), "no agent at {}; set MAYFLY_AGENT", program.display());
        program
    })
}
