//! A session in use.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_guest::channel::Channel;
use mayfly_guest::egress::{Egress, EgressAccount, Policy};
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use mayfly_vmm::ConsoleTail;
use serde::Serialize;
use tokio::net::UnixStream;

use super::SessionError;
use super::clock::ClockKeeper;
use super::docker::DockerSocket;
use super::state::StateCell;
use super::supervisor::Supervisor;

/// Duration of a start, by step.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct StartTimes {
    /// Time from the request until the VMM process ran.
    pub spawn: Duration,
    /// Time from the request until it was a shell.
    pub shell: Duration,
    /// Time from a shell until the VMM had loaded the device state and the guest ran.
    pub restore: Duration,
    /// Time from a shell until the agent had taken its identity and answered.
    pub agent: Duration,
}

/// A running session. Dropping it discards it in the background; [`Session::discard`] also waits
/// and reports.
#[derive(Debug)]
pub struct Session {
    id: String,
    channel: Channel,
    times: StartTimes,
    socket_dir: PathBuf,
    supervisor: Supervisor,
    clock: ClockKeeper,
}

/// A session whose guest waits, frozen, for an identity.
#[derive(Debug)]
pub(super) struct Parked {
    pub id: String,
    pub stream: UnixStream,
    pub times: StartTimes,
    pub socket_dir: PathBuf,
    pub supervisor: Supervisor,
}

impl Session {
    pub(super) fn new(
        id: String,
        socket_dir: PathBuf,
        channel: Channel,
        times: StartTimes,
        supervisor: Supervisor,
    ) -> Self {
        let clock = ClockKeeper::start(channel.clock(), supervisor.state().clone());
        Self { id, channel, times, socket_dir, supervisor, clock }
    }

    /// Returns the session id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the process id of the VMM on this host.
    pub fn vmm_pid(&self) -> u32 {
        self.supervisor.pid()
    }

    /// Returns the end of the guest's serial console.
    pub fn console(&self) -> &ConsoleTail {
        self.supervisor.console()
    }

    /// Returns the channel to the guest: commands, files, sockets.
    pub fn guest(&self) -> &Channel {
        &self.channel
    }

    /// Returns the user of commands that name none, as the golden's recipe says; `None` for root.
    pub fn default_user(&self) -> Option<&str> {
        self.supervisor.golden().default_user()
    }

    /// Returns how long the start took.
    pub fn start_times(&self) -> StartTimes {
        self.times
    }

    /// Returns the session's state, to read or to wait on.
    pub fn state(&self) -> &StateCell {
        self.supervisor.state()
    }

    /// Runs `work` with the guest, but ends with the session's own failure when that comes first: a
    /// guest that dies should say why, not just fall silent.
    ///
    /// # Errors
    /// [`SessionError::Gone`] with the reason when the session fails meanwhile; otherwise the error
    /// of `work`.
    pub async fn guarded<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, SessionError>
    where
        SessionError: From<E>,
    {
        let failed = || SessionError::Gone { state: self.state().get() };
        tokio::select! {
            result = work => match result.map_err(SessionError::from) {
                // The channel often notices first; give the cause a moment to show.
                Err(error @ SessionError::Channel(_)) => {
                    match tokio::time::timeout(scaled(Duration::from_millis(300)), self.state().failed()).await {
                        Ok(_) => Err(failed()),
                        Err(_) => Err(error),
                    }
                }
                other => other,
            },
            _ = self.state().failed() => Err(failed()),
        }
    }

    /// Freezes the guest's CPUs.
    ///
    /// # Errors
    /// [`SessionError`] when it is not running.
    pub async fn pause(&self) -> Result<(), SessionError> {
        self.supervisor.pause().await
    }

    /// Continues a paused guest.
    ///
    /// # Errors
    /// [`SessionError`] when it is not paused.
    pub async fn resume(&self) -> Result<(), SessionError> {
        self.supervisor.resume().await
    }

    /// Replaces the bounds it was started with. Another bound on its disk takes CAP_SYS_RESOURCE.
    ///
    /// # Errors
    /// [`SessionError`] when the kernel refuses, or the session is gone.
    pub async fn limit(&self, limits: &Limits) -> Result<(), SessionError> {
        self.supervisor.limit(limits.clone()).await
    }

    /// Returns what the pager did for this session.
    ///
    /// # Errors
    /// [`SessionError`] when the session or the pager is gone.
    pub async fn pager_stats(&self) -> Result<mayfly_pager::SessionStats, SessionError> {
        self.supervisor.pager_stats().await
    }

    /// Returns the chunks of the golden's memory in the order this session touched them first. Only
    /// for a session that was started to record them.
    ///
    /// # Errors
    /// [`SessionError`] when it was not, or the session or the pager is gone.
    pub async fn recording(&self) -> Result<Vec<u32>, SessionError> {
        self.supervisor.recording().await
    }

    /// Returns the memory of the VMM process that no other process shares, in bytes.
    ///
    /// # Errors
    /// [`SessionError::Io`] when the process is gone.
    pub fn private_memory(&self) -> Result<u64, SessionError> {
        self.supervisor.private_memory()
    }

    /// Waits for one answer of the session's Docker daemon.
    ///
    /// # Errors
    /// [`SessionError`] when it does not answer, or the session ended.
    pub async fn docker_ping(&self) -> Result<(), SessionError> {
        self.guarded(mayfly_guest::docker::ping(&self.channel)).await
    }

    /// Serves the session's Docker daemon on a Unix socket of this host until the returned handle
    /// is dropped. Usable as `DOCKER_HOST=unix://...` by stock clients.
    ///
    /// # Errors
    /// [`SessionError::Io`] when the socket cannot be made.
    pub fn forward_docker(&self) -> Result<DockerSocket, SessionError> {
        DockerSocket::serve(&self.channel, self.socket_dir.join(format!("{}.docker.sock", self.id)))
    }

    /// Lets the guest reach what `policy` allows, through the HTTP proxy and DNS of the engine,
    /// until the returned handle is dropped or the session ends. Commands started meanwhile have
    /// the proxy in their environment, and the session's Docker daemon pulls through it.
    ///
    /// # Errors
    /// [`SessionError`] when there is egress already, the guest cannot listen for it, the proxy
    /// cannot be started, or the session ended.
    pub async fn allow_egress(&self, policy: Policy) -> Result<Egress, SessionError> {
        self.allow_egress_on(policy, EgressAccount::default()).await
    }

    /// As [`Session::allow_egress`], on an account that outlives the egress: what the session used
    /// before under it counts for the limits of `policy`. The session may have had egress a moment
    /// ago.
    ///
    /// # Errors
    /// As [`Session::allow_egress`].
    pub async fn allow_egress_on(
        &self,
        policy: Policy,
        account: EgressAccount,
    ) -> Result<Egress, SessionError> {
        let proxies = self.supervisor.egress();
        self.guarded(Egress::start(&self.channel, &self.id, policy, account, proxies)).await
    }

    /// Ends the session; nothing of it is left when this returns. What still talks to the guest
    /// gets an error.
    ///
    /// # Errors
    /// [`SessionError`] when something could not be removed, or the session was discarded before.
    pub async fn discard(&self) -> Result<(), SessionError> {
        self.supervisor.discard().await
    }

    /// Sends the guest back to where it waits for an identity, and freezes it.
    pub(super) async fn park(self) -> Result<Parked, SessionError> {
        drop(self.clock);
        let stream = self.channel.park().await?;
        self.supervisor.pause().await?;
        Ok(Parked {
            id: self.id,
            stream,
            times: self.times,
            socket_dir: self.socket_dir,
            supervisor: self.supervisor,
        })
    }
}
