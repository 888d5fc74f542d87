//! Systems that the demo starts, and the measurement of one start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_crun::Containers;
use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::session::{Session, SessionError, Standby, Zygote, identity};
use mayfly_engine::{Engine, SessionOptions};
use mayfly_guest::channel::{Channel, ChannelError, ExecEvent, ExecRequest};
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use serde::Serialize;

use crate::failure::Failure;

/// What the first command prints.
const WORD: &str = "ready";
/// Bound on the answers of a session that has started; it catches what hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Rest before a start, so that what the last one left to the kernel is done.
const REST: Duration = Duration::from_millis(50);

/// A way to something that runs commands, in the order of every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// A standby is handed over; making it is not measured.
    Standby,
    /// A zygote is forked, and the fork handed over. Only where VMMs can be forked.
    Fork,
    /// A VMM is spawned and restores the golden.
    Cold,
    /// A VMM boots the golden's kernel and disk.
    ColdBoot,
    /// A container of crun, where that is installed.
    Crun,
}

impl System {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Standby, Self::Fork, Self::Cold, Self::ColdBoot, Self::Crun];

    /// Returns the name for the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Fork => "fork",
            Self::Cold => "cold",
            Self::ColdBoot => "cold boot",
            Self::Crun => "crun",
        }
    }

    /// Describes the system in one sentence of at most 37 characters.
    pub fn what(self) -> &'static str {
        match self {
            Self::Standby => "Prepared ahead, wakes for a request.",
            Self::Fork => "A warm VMM is forked on request.",
            Self::Cold => "A new VMM restores the snapshot.",
            Self::ColdBoot => "The same kernel and disk boot.",
            Self::Crun => "A container without a VM or Docker.",
        }
    }
}

/// Times of one start, from the request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Time until the agent has taken its identity and answered; `None` where there is no agent.
    pub agent: Option<Duration>,
    /// Time until the last byte of what the first command prints.
    pub command: Duration,
    /// Time until Docker has answered; `None` where there is no Docker.
    pub docker: Option<Duration>,
}

/// Resources that all starts begin with.
pub struct Sources<'a> {
    engine: &'a Engine,
    golden: &'a Arc<LoadedGolden>,
    zygote: Option<Zygote>,
    containers: Option<Containers>,
}

impl<'a> Sources<'a> {
    /// Makes a zygote where there can be one, as a daemon's pool does.
    pub async fn prepare(engine: &'a Engine, golden: &'a Arc<LoadedGolden>) -> Self {
        let zygote = engine
            .prepare_zygote(golden, &Limits::default(), Extent::Quick)
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot warm up a VMM to fork");
                None
            });
        Self { engine, golden, zygote, containers: None }
    }

    /// Adds containers, once one has run.
    ///
    /// # Errors
    /// Why there are none, in one sentence.
    pub async fn add_containers(&mut self) -> Result<(), String> {
        let containers = Containers::new().await.map_err(|error| error.to_string())?;
        let id = identity::new_id().map_err(|error| error.to_string())?;
        containers.start(&id).await.map_err(|error| error.to_string())?;
        self.containers = Some(containers);
        Ok(())
    }

    /// Returns whether `system` can be started here.
    pub fn has(&self, system: System) -> bool {
        match system {
            System::Standby | System::Cold | System::ColdBoot => true,
            System::Fork => self.zygote.is_some(),
            System::Crun => self.containers.is_some(),
        }
    }

    /// Makes a standby as a daemon's pool has it.
    pub async fn standby(&self) -> Result<Standby, SessionError> {
        let limits = Limits { background: true, ..Limits::default() };
        match &self.zygote {
            Some(zygote) => zygote.prepare_standby(&limits).await,
            None => {
                self.engine
                    .prepare_standby(self.golden, &SessionOptions { limits, record: false })
                    .await
            }
        }
    }

    /// Starts `system` once and discards it; `None` where it cannot be started.
    pub async fn start(&self, system: System) -> Result<Option<Sample>, Failure> {
        let limits = Limits::default();
        let standby = if system == System::Standby { Some(self.standby().await?) } else { None };
        tokio::time::sleep(REST).await;
        let begun = Instant::now();
        let session = match (system, standby, &self.zygote) {
            (System::Standby, Some(standby), _) => standby.hand_over(&limits).await?,
            (System::Fork, _, Some(zygote)) => {
                zygote.fork(&limits).await?.hand_over(&limits).await?
            }
            (System::Cold, ..) => {
                self.engine.start_session(self.golden, &SessionOptions::default()).await?
            }
            (System::ColdBoot, ..) => return self.boot(begun).await.map(Some),
            (System::Crun, ..) => return self.container().await,
            (System::Standby | System::Fork, ..) => return Ok(None),
        };
        let sample = tokio::time::timeout(scaled(LIMIT), self.answers(begun, &session)).await;
        session.discard().await?;
        let silent = |_| {
            Failure::new(format!(
                "a session ({}) did not answer within {:?}",
                system.name(),
                scaled(LIMIT)
            ))
        };
        Ok(Some(sample.map_err(silent)??))
    }

    async fn answers(&self, begun: Instant, session: &Session) -> Result<Sample, SessionError> {
        let agent = Some(begun.elapsed());
        let command = session.guarded(first_output(session.guest(), begun)).await?;
        let docker = match self.golden.has_docker() {
            true => {
                session.docker_ping().await?;
                Some(begun.elapsed())
            }
            false => None,
        };
        Ok(Sample { agent, command, docker })
    }

    async fn boot(&self, begun: Instant) -> Result<Sample, Failure> {
        let mut guest = self.engine.cold_boot(self.golden).await?;
        let agent = Some(begun.elapsed());
        let command = guest.with_guest(async |channel| first_output(channel, begun).await).await?;
        let docker = match self.golden.has_docker() {
            true => {
                guest.docker_ping().await?;
                Some(begun.elapsed())
            }
            false => None,
        };
        guest.discard().await?;
        Ok(Sample { agent, command, docker })
    }

    async fn container(&self) -> Result<Option<Sample>, Failure> {
        match &self.containers {
            Some(containers) => {
                let command = containers.start(&identity::new_id()?).await?;
                Ok(Some(Sample { agent: None, command, docker: None }))
            }
            None => Ok(None),
        }
    }

    /// Discards what was prepared.
    pub async fn discard(self) -> Result<(), SessionError> {
        match self.zygote {
            Some(zygote) => zygote.discard().await,
            None => Ok(()),
        }
    }
}

/// Runs `echo`; returns when the last byte of its output came, counted from `begun`, after it has
/// ended.
async fn first_output(guest: &Channel, begun: Instant) -> Result<Duration, ChannelError> {
    let mut command = guest.exec(ExecRequest::new(["echo", WORD])).await?;
    let (mut output, mut complete) = (Vec::new(), None);
    while let Some(event) = command.recv().await? {
        match event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) if output.len() <= WORD.len() => {
                output.extend_from_slice(&bytes);
                complete = (output == format!("{WORD}\n").as_bytes()).then(|| begun.elapsed());
            }
            ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => complete = None,
            ExecEvent::Exit(_) => {}
        }
    }
    complete.ok_or_else(|| ChannelError::Closed {
        reason: "`echo` did not print what it was told to".to_owned(),
    })
}
