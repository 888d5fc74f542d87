//! A session in use: its owner, its bounds in time, and its end.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use mayfly_api::{EgressStatus, SessionInfo, StartBreakdown, TenantName, Tier, VmmFigures};
use mayfly_engine::session::{Session, SessionState};
use mayfly_guest::channel::{ByteString, ExecRequest};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::activity::{Activity, ActivityGuard};
use super::admission::SessionSlot;
use super::docker::DockerForward;
use super::egress::Granted;
use super::error::{EgressChangeError, LookupError};
use super::execs::ExecTable;
use super::held::Full;
use super::measure::Measured;
use super::publish::{Place, Publisher};
use super::registry::{Keeper, Registered};
use super::session_egress::{Over, SessionEgress};
use super::shares::{Account, Share};

/// Lines of a guest's console that [`LiveSession::console`] returns at most; the engine keeps 16
/// KiB.
const CONSOLE_LINES: usize = 1000;

/// Why a session ends, as a word for the metrics; the reason for people is a text of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndKind {
    Killed,
    Expired,
    Idle,
    Failed,
    Withdrawn,
    Shutdown,
}

impl EndKind {
    fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Expired => "expired",
            Self::Idle => "idle",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What a session is made of when it is handed out.
pub(super) struct Parts {
    pub session: Session,
    pub egress: SessionEgress,
    pub golden: String,
    pub tenant: TenantName,
    pub tier: Tier,
    pub env: BTreeMap<String, String>,
    /// User of commands that name none.
    pub user: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub ttl: Duration,
    pub idle_timeout: Duration,
    pub docker_path: PathBuf,
    /// The bytes that may be held for its tenant.
    pub account: Account,
    /// Those of its environment and metadata.
    pub kept: Share,
    pub slot: SessionSlot,
    pub keeper: Arc<Keeper>,
    pub span: tracing::Span,
}

/// A session in use. It ends by [`LiveSession::end`], at its time, when nobody has used it for its
/// idle timeout, or when its VMM or the pager fails; whatever comes first, and once.
pub struct LiveSession {
    me: Weak<Self>,
    session: Session,
    golden: String,
    tenant: TenantName,
    tier: Tier,
    env: BTreeMap<String, String>,
    user: Option<String>,
    metadata: BTreeMap<String, String>,
    created_at: SystemTime,
    idle_timeout: Duration,
    start: OnceLock<StartBreakdown>,
    expires: watch::Sender<Expiry>,
    activity: Arc<Activity>,
    execs: ExecTable,
    docker: Mutex<Option<DockerForward>>,
    publisher: Mutex<Option<Publisher>>,
    egress: SessionEgress,
    docker_path: PathBuf,
    measured: Measured,
    account: Account,
    _kept: Share,
    /// Held while its entry of the journal is written.
    entry: Arc<tokio::sync::Mutex<()>>,
    /// Why it is over, from the first moment on.
    ending: OnceLock<Arc<str>>,
    over: watch::Sender<Option<Arc<str>>>,
    discarded: watch::Sender<bool>,
    slot: Mutex<Option<SessionSlot>>,
    keeper: Arc<Keeper>,
    span: tracing::Span,
}

impl std::fmt::Debug for LiveSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSession")
            .field("id", &self.id())
            .field("golden", &self.golden)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Expiry {
    at: Instant,
    wall: SystemTime,
}

impl Expiry {
    fn after(ttl: Duration) -> Self {
        Self { at: Instant::now() + ttl, wall: SystemTime::now() + ttl }
    }
}

impl LiveSession {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let measured = Measured::new(&parts.tenant);
        let activity = Arc::new(Activity::new());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            session: parts.session,
            golden: parts.golden,
            tenant: parts.tenant,
            tier: parts.tier,
            env: parts.env,
            user: parts.user,
            metadata: parts.metadata,
            created_at: SystemTime::now(),
            idle_timeout: parts.idle_timeout,
            start: OnceLock::new(),
            expires: watch::Sender::new(Expiry::after(parts.ttl)),
            execs: ExecTable::new(parts.account.clone(), activity.clone()),
            activity,
            docker: Mutex::new(None),
            publisher: Mutex::new(None),
            egress: parts.egress,
            docker_path: parts.docker_path,
            measured,
            account: parts.account,
            _kept: parts.kept,
            entry: Arc::default(),
            ending: OnceLock::new(),
            over: watch::Sender::new(None),
            discarded: watch::Sender::new(false),
            slot: Mutex::new(Some(parts.slot)),
            keeper: parts.keeper,
            span: parts.span,
        })
    }

    /// Returns the id of the session.
    pub fn id(&self) -> &str {
        self.session.id()
    }

    /// Returns the session of the engine.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the name of its golden image.
    pub fn golden(&self) -> &str {
        &self.golden
    }

    /// Returns the tenant that the session belongs to.
    pub fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// Returns the environment of every command that runs in it.
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Returns the user of commands that name none: the session's, or else the golden's; root when
    /// `None`.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref().or_else(|| self.session.default_user())
    }

    /// Returns the labels of its owner.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Adds the session's environment to a command, and its user or else the golden's to one that
    /// names none; the command's own variables win. What it adds counts until the share is dropped,
    /// which is to be when the command was sent.
    ///
    /// # Errors
    /// [`Full`].
    pub fn with_defaults(&self, mut request: ExecRequest) -> Result<(ExecRequest, Share), Full> {
        // Once here, and once in the frame that waits to be sent.
        let bytes =
            |(name, value): (&String, &String)| 2 * (name.len() + value.len()) + PER_VARIABLE;
        let share = self.account.take(self.env.iter().map(bytes).sum()).ok_or(Full)?;
        request.env = merged(&self.env, request.env);
        request.user = request.user.or_else(|| self.user().map(str::to_owned));
        Ok((request, share))
    }

    /// Returns the tracing span of its life; its start's steps are children of it.
    pub fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// Returns when it was handed out.
    pub fn created_at(&self) -> SystemTime {
        self.created_at
    }

    /// Returns when it will be discarded at the latest.
    pub fn expires_at(&self) -> SystemTime {
        self.expires.borrow().wall
    }

    /// Orders sessions by their age.
    pub(super) fn age(&self) -> (SystemTime, &str) {
        (self.created_at, self.id())
    }

    /// Describes the session as clients see it.
    pub fn info(&self) -> SessionInfo {
        let state = self.session.state().get();
        let over = self.over.borrow().clone();
        let reason = match (&state, over) {
            (_, Some(reason)) => Some(reason.to_string()),
            (SessionState::Failed(reason), None) => Some(reason.to_string()),
            _ => None,
        };
        let published = self.publisher.lock();
        let published =
            published.as_ref().map(|publisher| (publisher.address(), publisher.ports()));
        let (published_address, published_ports) = published.unzip();
        SessionInfo {
            id: self.id().to_owned(),
            golden: self.golden.clone(),
            state: state.to_string(),
            reason,
            tenant: self.tenant.to_string(),
            tier: self.tier,
            created_at: rfc3339(self.created_at),
            expires_at: rfc3339(self.expires.borrow().wall),
            idle_expires_at: rfc3339(SystemTime::now() + self.activity.left(self.idle_timeout)),
            idle_timeout_seconds: self.idle_timeout.as_secs(),
            user: self.user.clone(),
            metadata: self.metadata.clone(),
            docker_socket: self.docker_path.clone(),
            published_address,
            published_ports: published_ports.unwrap_or_default(),
            start: self.start.get().copied().unwrap_or_default(),
        }
    }

    /// Holds off the idle timeout while the guard lives. Every request, every connection and every
    /// background command that runs takes one.
    pub fn active(&self) -> ActivityGuard {
        self.activity.open()
    }

    /// Returns the figures of its VMM, at most a second old.
    ///
    /// # Errors
    /// When the VMM is gone.
    pub async fn vmm_figures(&self) -> std::io::Result<VmmFigures> {
        self.measured.figures(self.session.vmm_pid()).await
    }

    /// Returns the account of the bytes that may be held for its tenant.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// From now on what its guest may send unasked counts for its tenant.
    pub(super) fn bound_guest(&self) {
        self.session.guest().bound_by(Arc::new(self.account.clone()));
    }

    /// Waits until its entry of the journal is not being written; while the guard lives, it is not.
    pub(super) async fn entry(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.entry.clone().lock_owned().await
    }

    /// Returns the background commands of the session.
    pub fn execs(&self) -> &ExecTable {
        &self.execs
    }

    /// Returns the end of the guest's console, printable characters only.
    pub fn console(&self) -> String {
        self.session.console().last_lines(CONSOLE_LINES)
    }

    /// Returns the Docker socket of the session on this host.
    pub fn docker_socket(&self) -> &Path {
        &self.docker_path
    }

    /// Returns what the session may reach outside, and what it has used.
    pub fn egress(&self) -> EgressStatus {
        self.egress.status()
    }

    /// Gives it what was granted in place of the egress that it has.
    pub(super) async fn set_egress(
        &self,
        granted: Option<Granted>,
    ) -> Result<EgressStatus, EgressChangeError> {
        let bytes = granted.as_ref().map_or(0, Granted::kept_bytes);
        let kept = self.account.take(bytes).ok_or(Full)?;
        let set = tokio::select! {
            set = self.egress.set(&self.session, granted, kept) => set?,
            _ = self.ended() => Err(Over),
        };
        let gone = |Over| LookupError::Gone {
            id: self.id().to_owned(),
            reason: self.ending.get().map_or_else(String::new, ToString::to_string),
        };
        set.map_err(gone)?;
        Ok(self.egress())
    }

    /// Resolves with the reason as soon as the session is over; its discard may still be under way.
    /// Cancel-safe.
    pub async fn ended(&self) -> String {
        let mut over = self.over.subscribe();
        match over.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason.to_string(),
            // The sender lives in self, so the wait cannot end otherwise.
            _ => std::future::pending().await,
        }
    }

    /// Ends the session and waits until nothing of it is left. Only the first end gives the reason.
    /// Goes on when the caller gives up.
    pub async fn end(&self, reason: &str) {
        self.end_as(EndKind::Killed, reason).await;
    }

    pub(super) async fn end_as(&self, kind: EndKind, reason: &str) {
        self.begin_end(kind, reason);
        let mut discarded = self.discarded.subscribe();
        // The sender lives in self, so the wait cannot fail.
        let _ = discarded.wait_for(|done| *done).await;
    }

    /// Makes the session unreachable at once, and discards it in the background.
    pub(super) fn begin_end(&self, kind: EndKind, reason: &str) {
        // Upgrading fails only while the last handle is being dropped, and then the engine's
        // session goes with it.
        let Some(me) = self.me.upgrade() else { return };
        let reason: Arc<str> = reason.into();
        if self.ending.set(reason.clone()).is_err() {
            return;
        }
        self.keeper.registry.retire(self.id(), &self.tenant, reason.clone());
        self.over.send_replace(Some(reason));
        let span = self.span.clone();
        tokio::spawn(async move { me.take_down(kind).await }.instrument(span));
    }

    async fn take_down(&self, kind: EndKind) {
        let begun = std::time::Instant::now();
        self.execs.clear();
        drop(self.docker.lock().take());
        drop(self.publisher.lock().take());
        self.egress.end();
        let keeper = &self.keeper;
        if kind != EndKind::Failed
            && let Ok(stats) = self.session.pager_stats().await
        {
            let counters = stats.counters;
            keeper.metrics.faults(
                &self.golden,
                counters.faults,
                counters.fills,
                counters.bytes_filled,
            );
        }
        let reason = self.over.borrow().clone().unwrap_or_default();
        match self.session.discard().await {
            Ok(()) => {
                // Whoever was to write it down may have given up in the middle.
                let _entry = self.entry().await;
                keeper.forget(self.id()).await;
                tracing::info!(session = self.id(), took = ?begun.elapsed(), %reason, "session discarded");
            }
            // Its journal entry stays, so that the next start of the daemon removes what is left.
            Err(error) => {
                keeper.leaked();
                tracing::error!(session = self.id(), %error, "something of a session is left behind");
            }
        }
        keeper.metrics.discarded(&self.golden, begun.elapsed(), kind.word());
        drop(self.slot.lock().take());
        self.discarded.send_replace(true);
    }

    pub(super) fn set_start(&self, start: StartBreakdown) {
        let _ = self.start.set(start);
    }

    /// Serves its Docker daemon on its socket, and ends it at its time.
    ///
    /// What its containers publish is reached at `publish`, where there is such a place; that counts
    /// for `connections`.
    pub(super) fn settle(
        &self,
        publish: Option<Place>,
        connections: Account,
    ) -> std::io::Result<()> {
        let forward = DockerForward::serve(self.docker_path.clone(), self.me.clone())?;
        *self.docker.lock() = Some(forward);
        *self.publisher.lock() =
            publish.map(|place| Publisher::begin(place, connections, self.me.clone()));
        if let Some(me) = self.me.upgrade() {
            tokio::spawn(async move { me.watch_over().await });
        }
        Ok(())
    }

    /// Sets the end of its life to `ttl` from now.
    pub(super) fn extend(&self, ttl: Duration) {
        self.expires.send_replace(Expiry::after(ttl));
        self.activity.touch();
    }

    async fn watch_over(&self) {
        let mut expires = self.expires.subscribe();
        let mut over = self.over.subscribe();
        loop {
            let expiry = expires.borrow_and_update().at;
            let idle = self.activity.idle_since().map(|since| since + self.idle_timeout);
            let now = Instant::now();
            if expiry <= now {
                return self.begin_end(EndKind::Expired, "its time to live is over");
            }
            if idle.is_some_and(|idle| idle <= now) {
                let reason = format!("nobody used it for {:?}", self.idle_timeout);
                return self.begin_end(EndKind::Idle, &reason);
            }
            // While something is open, the earliest idle end is a whole timeout away.
            let next = expiry.min(idle.unwrap_or(now + self.idle_timeout));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                _ = expires.changed() => {}
                _ = over.wait_for(Option::is_some) => return,
                reason = self.session.state().failed() => return self.begin_end(EndKind::Failed, &reason),
            }
        }
    }
}

impl Registered for LiveSession {
    fn id(&self) -> &str {
        self.session.id()
    }

    fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    fn is_over(&self) -> Option<Arc<str>> {
        self.ending.get().cloned()
    }
}

/// Bytes that a variable takes in memory beside its text.
const PER_VARIABLE: usize = 2 * size_of::<ByteString>() + 64;

/// The variables of a session and those of a command, which win.
fn merged(
    of_session: &BTreeMap<String, String>,
    own: Vec<(ByteString, ByteString)>,
) -> Vec<(ByteString, ByteString)> {
    let mut all = Vec::with_capacity(of_session.len() + own.len());
    {
        let names: HashSet<&[u8]> = own.iter().map(|(name, _)| name.as_bytes()).collect();
        let absent = of_session.iter().filter(|(name, _)| !names.contains(name.as_bytes()));
        all.extend(absent.map(|(name, value)| (name.as_str().into(), value.as_str().into())));
    }
    all.extend(own);
    all
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_variables_win_and_come_last() {
        let of_session: BTreeMap<String, String> =
            [("A", "1"), ("B", "2")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        let own = vec![("B".into(), "3".into()), (ByteString::from(vec![0xff]), "4".into())];
        let all = merged(&of_session, own.clone());
        assert_eq!(all[0], ("A".into(), "1".into()));
        assert_eq!(all[1..], own[..]);
    }

    #[test]
    fn many_variables_of_a_command_are_compared_with_those_of_the_session_once() {
        let now = || {
            let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
            Duration::from(time.unwrap())
        };
        let of_session: BTreeMap<String, String> =
            (0..256).map(|n| (format!("S{n}"), String::new())).collect();
        let own: Vec<_> = (0..460_000).map(|n| (format!("{n}").into(), "".into())).collect();
        let begun = now();
        assert_eq!(merged(&of_session, own).len(), 460_256);
        // One by one they took several seconds.
        let took = now() - begun;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}
