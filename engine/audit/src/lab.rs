//! The sessions of an audit: one that is attacked, one beside it that must not notice, and what
//! both must not know.

use std::sync::Arc;
use std::time::Duration;

use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::session::{DockerSocket, Session, Zygote};
use mayfly_engine::{Engine, SessionOptions};
use mayfly_guest::channel::{ExecHandle, ExecRequest};
use mayfly_guest::egress::{self, Proxies};
use mayfly_host::cgroup::{self, Limits};
use mayfly_host::time_scale::scaled;

use super::options::{AuditError, AuditOptions, Planted};
use super::unconfined::Unconfined;

/// Begins each mark. What looks for marks knows this part only, so that it does not find itself.
const PREFIX: &str = "mayfly-mark-";
/// How long a session may take to notice that its VMM has ended.
const NOTICE: Duration = Duration::from_secs(1);

/// Secrets of this audit: `prefix` followed by one of the tags, 32 hexadecimal digits each.
#[derive(Debug)]
pub(super) struct Marks {
    pub prefix: String,
    pub host: String,
    pub neighbour: String,
    pub own: String,
    /// The host's mark as a whole, in the memory of this process.
    _in_memory: Vec<u8>,
}

impl Marks {
    fn new() -> Self {
        let tag = || format!("{:032x}", rand::random::<u128>());
        // Of this audit alone: what an earlier one left in free memory is another's.
        let prefix = format!("{PREFIX}{:08x}-", rand::random::<u32>());
        let host = tag();
        let in_memory = format!("{prefix}{host}").into_bytes();
        Self { prefix, host, neighbour: tag(), own: tag(), _in_memory: in_memory }
    }

    /// Returns the owner of a tag.
    pub fn owner(&self, tag: &str) -> Option<&'static str> {
        [(&self.host, "the host"), (&self.neighbour, "a neighbour"), (&self.own, "itself")]
            .into_iter()
            .find_map(|(known, owner)| (known == tag).then_some(owner))
    }
}

/// A session with a mark in its memory, on its disk, among its processes and containers.
#[derive(Debug)]
pub(super) struct Marked {
    pub session: Session,
    _holder: ExecHandle,
}

/// Keeps a mark in memory, as its own name, and as an abstract socket (unix(7)), and writes it to
/// two files.
const HOLD: &str = include_str!("guest/hold.pl");

impl Marked {
    async fn start(session: Session, marks: &Marks, tags: &[&str]) -> Result<Self, AuditError> {
        let mut argv = vec!["perl", "-e", HOLD, marks.prefix.as_str()];
        argv.extend(tags);
        let mut holder = session.guest().exec(ExecRequest::new(argv)).await?;
        let said = match holder.recv().await? {
            Some(mayfly_guest::channel::ExecEvent::Stdout(bytes)) if bytes.starts_with(b"held") => {
                None
            }
            other => Some(format!("{other:?}")),
        };
        if let Some(said) = said {
            return Err(AuditError::Guest {
                what: "perl (package perl-base) to plant a mark".into(),
                said,
            });
        }
        Ok(Self { session, _holder: holder })
    }
}

/// Where an attack on a VMM goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Restored from the golden.
    Restored,
    /// Forked from a zygote.
    Forked,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Forked => "forked",
        }
    }
}

/// A process under attack.
#[derive(Debug)]
pub(super) enum Victim {
    Vmm(Box<Session>),
    /// A planted breach.
    Unconfined(Unconfined),
}

impl Victim {
    pub fn pid(&self) -> u32 {
        match self {
            Self::Vmm(session) => session.vmm_pid(),
            Self::Unconfined(process) => process.pid(),
        }
    }

    /// Returns why the process of a session ended, if it has ended.
    pub async fn last_words(&self) -> String {
        match self {
            Self::Vmm(session) => {
                match tokio::time::timeout(scaled(NOTICE), session.state().failed()).await {
                    Ok(reason) => reason.to_string(),
                    // seccomp(2), SECCOMP_RET_KILL_THREAD.
                    Err(_) => "only the thread that made the call, and the session hangs".into(),
                }
            }
            Self::Unconfined(_) => String::new(),
        }
    }
}

/// Everything the checks share.
pub(super) struct Lab {
    pub engine: Engine,
    pub golden: Arc<LoadedGolden>,
    pub options: AuditOptions,
    pub marks: Marks,
    subject: Option<Arc<Marked>>,
    neighbour: Option<(Arc<Marked>, Arc<DockerSocket>)>,
    zygote: Option<Option<Arc<Zygote>>>,
}

impl Lab {
    pub fn new(engine: Engine, golden: Arc<LoadedGolden>, options: AuditOptions) -> Self {
        Self {
            engine,
            golden,
            options,
            marks: Marks::new(),
            subject: None,
            neighbour: None,
            zygote: None,
        }
    }

    /// Starts a fresh session.
    pub async fn session(&self, limits: Limits) -> Result<Session, AuditError> {
        Ok(self
            .engine
            .start_session(&self.golden, &SessionOptions { limits, record: false })
            .await?)
    }

    /// Returns the session that attacks from within, another one when the last has ended.
    pub async fn subject(&mut self) -> Result<Arc<Marked>, AuditError> {
        if let Some(subject) = &self.subject
            && matches!(
                subject.session.state().get(),
                mayfly_engine::session::SessionState::Running
            )
        {
            return Ok(subject.clone());
        }
        let session = self.session(Limits::default()).await?;
        let mut tags = vec![self.marks.own.as_str()];
        if self.options.plants(Planted::LeakedSecrets) {
            tags.extend([self.marks.neighbour.as_str(), self.marks.host.as_str()]);
        }
        let subject = Arc::new(Marked::start(session, &self.marks, &tags).await?);
        self.subject = Some(subject.clone());
        Ok(subject)
    }

    /// Returns the session that must not notice.
    pub async fn neighbour(&mut self) -> Result<Arc<Marked>, AuditError> {
        Ok(self.neighbour_with_socket().await?.0)
    }

    /// Returns a session as [`Lab::neighbour`] does, with its Docker socket on this host.
    pub async fn neighbour_with_socket(
        &mut self,
    ) -> Result<(Arc<Marked>, Arc<DockerSocket>), AuditError> {
        if let Some((neighbour, socket)) = &self.neighbour {
            return Ok((neighbour.clone(), socket.clone()));
        }
        let session = self.session(Limits::default()).await?;
        let socket = Arc::new(session.forward_docker()?);
        let marked = Arc::new(Marked::start(session, &self.marks, &[&self.marks.neighbour]).await?);
        Ok(self.neighbour.insert((marked, socket)).clone())
    }

    /// Returns the zygote, where VMMs can be forked.
    pub async fn zygote(&mut self) -> Result<Option<Arc<Zygote>>, AuditError> {
        if let Some(zygote) = &self.zygote {
            return Ok(zygote.clone());
        }
        let zygote = self
            .engine
            .prepare_zygote(&self.golden, &Limits::default(), Extent::Quick)
            .await?
            .map(Arc::new);
        Ok(self.zygote.insert(zygote).clone())
    }

    /// Returns the process id of the egress proxy, which is started if it is not yet.
    pub async fn egress_proxy(&self) -> Result<u32, AuditError> {
        let failed = |error: &dyn std::fmt::Display| AuditError::Guest {
            what: "the egress proxy".into(),
            said: error.to_string(),
        };
        let proxy = self.engine.egress_proxy();
        drop(proxy.connect(egress::Limits::default()).await.map_err(|error| failed(&error))?);
        proxy.pid().await.ok_or_else(|| failed(&"it has ended"))
    }

    /// Returns the kinds of VMMs there are on this host.
    pub async fn kinds(&mut self) -> Result<Vec<Kind>, AuditError> {
        let forks = self.zygote().await?.is_some();
        Ok([Kind::Restored, Kind::Forked]
            .into_iter()
            .filter(|kind| *kind == Kind::Restored || forks)
            .collect())
    }

    /// Starts a fresh session of that kind, or returns what is planted in its place.
    pub async fn victim(&mut self, kind: Kind) -> Result<Victim, AuditError> {
        if self.options.plants(Planted::UnconfinedVmm) {
            return Unconfined::start().map(Victim::Unconfined);
        }
        let session = match (kind, self.zygote().await?) {
            (Kind::Forked, Some(zygote)) => {
                zygote.fork(&Limits::default()).await?.hand_over(&Limits::default()).await?
            }
            _ => self.session(Limits::default()).await?,
        };
        Ok(Victim::Vmm(Box::new(session)))
    }

    /// Returns the folders of a session's cgroup, one for each hierarchy on v1.
    pub fn cgroup(&self, session: &Session) -> Vec<std::path::PathBuf> {
        cgroup::directories(&self.engine.instance().cgroup_name(session.id()))
    }

    /// Takes all sessions down, and waits for it.
    pub async fn close(self) -> Result<(), AuditError> {
        if let Some(subject) = self.subject {
            subject.session.discard().await?;
        }
        if let Some((neighbour, _)) = self.neighbour {
            neighbour.session.discard().await?;
        }
        if let Some(Some(zygote)) = self.zygote {
            zygote.discard().await?;
        }
        Ok(())
    }
}
