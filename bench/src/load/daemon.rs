//! The daemon under load: one of our own, or one that runs already.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mayfly_client::Client;
use mayfly_host::layout::{Layout, mayfly_program};
use mayfly_pager::client::PagerClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

use crate::error::{BenchError, io};

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to discard everything and end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A daemon. One of our own is ended when this is dropped, with its pager and its folder.
#[derive(Debug)]
pub struct Daemon {
    client: Client,
    pid: u32,
    pager: PagerClient,
    own: Option<Own>,
}

/// What we started.
#[derive(Debug)]
struct Own {
    child: Child,
    pager: PagerClient,
    /// Runtime folder of daemon and pager.
    run: tempfile::TempDir,
}

impl Daemon {
    /// Starts `mayfly serve ARGS...` with a runtime folder of its own below `/run`; the goldens are
    /// those of this host.
    ///
    /// # Errors
    /// [`BenchError::Daemon`] with the last line of its log when it does not come up.
    pub async fn start(args: &[String]) -> Result<Self, BenchError> {
        let home = Layout::from_env().home().to_owned();
        let run = tempfile::Builder::new().prefix("mayfly-bench.").tempdir_in("/run");
        let run = run.map_err(io("make a folder in", "/run"))?;
        let layout = Layout::new(&home, run.path());
        let program =
            mayfly_program().map_err(|e| BenchError::Daemon(format!("cannot be started: {e}")))?;
        let log = run.path().join("daemon.log");
        let output = File::create(&log).map_err(io("create", &log))?;
        let child = Command::new(&program)
            .arg("serve")
            .args(args)
            .env("MAYFLY_HOME", &home)
            .env("MAYFLY_RUN", run.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(io("use", &log))?)
            .stderr(output)
            .spawn()
            .map_err(io("start", &program))?;
        let pid = child.id();
        let pager = PagerClient::new(layout.pager_socket());
        let client = Client::unix(layout.api_socket());
        let mut this =
            Self { client, pid, pager: pager.clone(), own: Some(Own { child, pager, run }) };
        this.wait_up(&log).await?;
        Ok(this)
    }

    /// Connects to the daemon at `socket`, or starts `mayfly serve ARGS...` where none is named.
    ///
    /// # Errors
    /// As [`Daemon::connect`] and [`Daemon::start`].
    pub async fn at(socket: Option<&Path>, args: &[String]) -> Result<Self, BenchError> {
        match socket {
            Some(socket) => Self::connect(socket).await,
            None => Self::start(args).await,
        }
    }

    /// Connects to the daemon at `socket`. Its pager is looked for where `MAYFLY_RUN` says.
    ///
    /// # Errors
    /// [`BenchError`] when nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, BenchError> {
        let stream = UnixStream::connect(socket).await.map_err(io("connect to", socket))?;
        // SO_PEERCRED names the process that listens (unix(7)).
        let credentials = stream.peer_cred().map_err(io("look at", socket))?;
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let unknown =
            || BenchError::Daemon(format!("at {} is no process of this host", socket.display()));
        let pid = pid.ok_or_else(unknown)?;
        let pager = PagerClient::new(Layout::from_env().pager_socket());
        Ok(Self { client: Client::unix(socket), pid, pager, own: None })
    }

    /// Returns a client of the daemon.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns a client of the daemon's pager.
    pub fn pager(&self) -> &PagerClient {
        &self.pager
    }

    /// Returns the log of the daemon, when it is ours.
    pub fn log(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.run.path().join("daemon.log"))
    }

    async fn wait_up(&mut self, log: &Path) -> Result<(), BenchError> {
        let begun = Instant::now();
        while !self.client.is_up().await {
            let ended = self.own.as_mut().and_then(|own| own.child.try_wait().ok().flatten());
            let why = match ended {
                Some(status) => format!("ended at once ({status})"),
                None if begun.elapsed() > START_LIMIT => {
                    format!("did not answer within {} s", START_LIMIT.as_secs())
                }
                None => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            return Err(BenchError::Daemon(format!("{why}; it said last: {last}")));
        }
        Ok(())
    }
}

impl Drop for Own {
    /// A daemon that is asked to end discards its sessions; one that does not is killed, and its
    /// VMMs die with it.
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        let begun = Instant::now();
        // The process is ours and not waited for, so that the id is still its own.
        if matches!(self.child.try_wait(), Ok(None)) && kill(pid, Signal::SIGTERM).is_ok() {
            while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < STOP_LIMIT {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.pager.shutdown(true);
    }
}
