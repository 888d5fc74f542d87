//! A session to run in: of the daemon when one answers, of an engine in this process when none
//! does.

use std::convert::Infallible;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mayfly_api::{CreateSession, Exec, SessionInfo};
use mayfly_client::{Attached, Client, ClientError};
use mayfly_daemon::http::error::ApiError;
use mayfly_daemon::service::{check_limits, vmm_limits, without_daemon};
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::session::{DockerSocket, Session, SessionError};
use mayfly_engine::{Engine, SessionOptions};
use mayfly_guest::egress::Egress;
use mayfly_host::layout::Layout;
use mayfly_vmm::{Accel, EMULATION_WARNING};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::command::{Command, not_started};
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::options;

/// Tells a person; what a script reads of standard error is the command's own.
pub fn warn_of_emulation(golden: &LoadedGolden) {
    if golden.shape().accel == Accel::Tcg && std::io::stderr().is_terminal() {
        eprintln!("mayfly: warning: {EMULATION_WARNING}");
    }
}

/// A session to run in.
pub enum Target {
    /// Session of an engine in this process.
    Embedded {
        /// Egress of the session, kept while it runs.
        _egress: Option<Egress>,
        /// The session.
        session: Session,
        /// Engine that the session needs.
        _engine: Engine,
    },
    /// Session of the daemon.
    Daemon(Tied),
}

/// Starts a session, does `work` in it, and discards it whatever comes.
pub async fn in_session(
    wanted: &CreateSession,
    no_daemon: bool,
    work: impl AsyncFnOnce(&Target, &mut Interrupts) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::install().map_err(Failure::ours)?;
    let target = tokio::select! {
        target = Target::open(wanted, no_daemon) => target?,
        _ = interrupts.next() => return Err(Failure::interrupted("the session was discarded before it started")),
    };
    let outcome = work(&target, &mut interrupts).await;
    let discarded = target.discard().await;
    outcome.and_then(|code| discarded.map(|()| code))
}

impl Target {
    async fn open(wanted: &CreateSession, no_daemon: bool) -> Result<Self, Failure> {
        let layout = Layout::from_env();
        if !no_daemon {
            match Tied::create(Client::unix(layout.api_socket()), wanted).await {
                Ok(tied) => return Ok(Self::Daemon(tied)),
                Err(ClientError::Connect { cause, .. }) if is_nobody(cause.kind()) => {}
                Err(error) => return Err(Failure::ours(options::named(&error.to_string()))),
            }
        }
        Self::embedded(layout, wanted).await
    }

    async fn embedded(layout: Layout, wanted: &CreateSession) -> Result<Self, Failure> {
        check_limits(&wanted.limits).map_err(|error| Failure::ours(options::named(&error)))?;
        let limits = vmm_limits(wanted.limits);
        let egress = without_daemon(&wanted.egress).map_err(Failure::ours)?;
        let engine = Engine::open(layout).await.map_err(Failure::ours)?;
        let golden = engine.golden(&wanted.golden).await.map_err(Failure::ours)?;
        warn_of_emulation(&golden);
        let options = SessionOptions { limits, ..SessionOptions::default() };
        let session = engine.start_session(&golden, &options).await.map_err(Failure::ours)?;
        let egress = match egress {
            Some(policy) => Some(session.allow_egress(policy).await.map_err(Failure::ours)?),
            None => None,
        };
        Ok(Self::Embedded { _egress: egress, session, _engine: engine })
    }

    /// Starts a command.
    pub async fn exec(&self, command: Exec) -> Result<Command<'_>, Failure> {
        match self {
            Self::Embedded { session, .. } => {
                let (mut request, _) = command.into_request().map_err(Failure::ours)?;
                request.user = request.user.or_else(|| session.default_user().map(str::to_owned));
                let started = session.guarded(session.guest().exec(request)).await;
                let handle = started.map_err(|error: SessionError| {
                    let message = error.to_string();
                    not_started(ApiError::from(error).code(), message)
                })?;
                Ok(Command::Guest { handle: Box::new(handle), session })
            }
            Self::Daemon(tied) => Command::remote(&tied.client, &tied.info.id, &command).await,
        }
    }

    /// Returns the session's Docker daemon on this host.
    pub fn docker(&self) -> Result<DockerEnd, Failure> {
        match self {
            Self::Embedded { session, .. } => {
                session.forward_docker().map(DockerEnd::Own).map_err(Failure::ours)
            }
            Self::Daemon(tied) => Ok(DockerEnd::Served(tied.info.docker_socket.clone())),
        }
    }

    /// Resolves with the reason when the session ends before we discard it. Cancel-safe.
    pub async fn over(&self) -> String {
        match self {
            Self::Embedded { session, .. } => session.state().failed().await.to_string(),
            Self::Daemon(tied) => tied.over().await,
        }
    }

    async fn discard(self) -> Result<(), Failure> {
        match self {
            Self::Embedded { session, .. } => session.discard().await.map_err(Failure::ours),
            Self::Daemon(tied) => tied.discard().await,
        }
    }
}

/// Whether a failed connect(2) means that there is no daemon for us. Who may not open its socket
/// gets the engine's own words about privileges.
fn is_nobody(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied)
}

/// A Docker socket on this host.
pub enum DockerEnd {
    /// Socket that this process serves as long as the handle lives.
    Own(DockerSocket),
    /// Socket that the daemon serves.
    Served(PathBuf),
}

impl DockerEnd {
    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(socket) => socket.path(),
            Self::Served(path) => path,
        }
    }
}

/// A session of the daemon that is discarded when this process ends, however that comes.
pub struct Tied {
    client: Client,
    info: SessionInfo,
    over: watch::Receiver<Option<String>>,
    _held: AbortOnDropHandle<()>,
}

impl Tied {
    async fn create(client: Client, wanted: &CreateSession) -> Result<Self, ClientError> {
        let attached = client.create_attached(wanted).await?;
        let info = attached.info().clone();
        let (sender, over) = watch::channel(None);
        let held = AbortOnDropHandle::new(tokio::spawn(hold(client.clone(), attached, sender)));
        Ok(Self { client, info, over, _held: held })
    }

    async fn over(&self) -> String {
        let mut over = self.over.clone();
        match over.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The task that holds the session says why before it ends.
            _ => std::future::pending().await,
        }
    }

    /// Waits until nothing of the session is left, which a mere end of the connection would not.
    async fn discard(self) -> Result<(), Failure> {
        match self.client.kill(&self.info.id).await {
            Err(error) if error.code() != Some("session_gone") => Err(Failure::ours(error)),
            _ => Ok(()),
        }
    }
}

async fn hold(client: Client, mut attached: Attached, over: watch::Sender<Option<String>>) {
    let info = attached.info().clone();
    let reason = tokio::select! {
        ended = attached.ended() => ended.unwrap_or_else(|error| error.to_string()),
        never = prolong(&client, &info) => match never {},
    };
    over.send_replace(Some(reason));
}

/// Extends the session's life while we live: a session of our own has no bound either.
async fn prolong(client: &Client, info: &SessionInfo) -> Infallible {
    let Some(life) = life(info) else { return std::future::pending().await };
    loop {
        tokio::time::sleep(life / 2).await;
        if let Err(error) = client.extend(&info.id, life.as_secs().max(1)).await {
            tracing::debug!(%error, "the session's life is not extended");
        }
    }
}

/// How long the daemon lets the session live.
fn life(info: &SessionInfo) -> Option<Duration> {
    let time = |text| humantime::parse_rfc3339(text).ok();
    time(&info.expires_at)?.duration_since(time(&info.created_at)?).ok()
}
