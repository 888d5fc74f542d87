//! The gate every request for a session goes through: bounds on starts and sessions, and the queue
//! before them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::TenantName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};

use super::queue::{FairQueue, Ticket};
use crate::observe::Metrics;
use crate::service::ceilings::{Demand, Excess, TotalLimits};
use crate::service::config::AdmissionConfig;
use crate::service::error::CreateError;
use crate::service::rate::DecayingRate;
use crate::service::shares::{Share, Shares};

/// Host memory for each session that may live, unless configured otherwise: what an idle one has of
/// its own, and some.
const MEMORY_PER_SESSION: u64 = 32 << 20;
/// Time constant of the observed rates.
const RATE_CONSTANT: Duration = Duration::from_secs(20);
/// What a client is told to wait, at the least and at the most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a request does not get through.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::service) enum Refusal {
    QueueFull { queued: usize, retry_after: Duration },
    DeadlinePassed { waited: Duration, retry_after: Duration },
    TenantBusy { limit: usize, retry_after: Duration },
    TenantTotal { excess: Excess, retry_after: Duration },
    Pressure { reason: String, retry_after: Duration },
    Closed,
}

/// The bounds of one tenant, and what a request of its counts for.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::service) struct Bounds {
    /// Most sessions and requests.
    pub max_sessions: usize,
    /// What they may have together.
    pub totals: TotalLimits,
    /// What this one has.
    pub demand: Demand,
}

impl From<Refusal> for CreateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull { queued, retry_after } => Self::QueueFull { queued, retry_after },
            Refusal::DeadlinePassed { waited, retry_after } => {
                Self::DeadlinePassed { waited, retry_after }
            }
            Refusal::TenantBusy { limit, retry_after } => Self::TenantBusy { limit, retry_after },
            Refusal::TenantTotal { excess, .. } if excess.by_itself() => Self::AboveCeiling {
                what: format!("limits.{}", excess.what),
                asked: excess.said(excess.more),
                most: excess.said(excess.most),
                whose: "which all sessions of this tenant may have together",
            },
            Refusal::TenantTotal { excess, retry_after } => Self::TenantTotal {
                what: excess.what,
                most: excess.said(excess.most),
                used: excess.said(excess.used),
                more: excess.said(excess.more),
                retry_after,
            },
            Refusal::Pressure { reason, retry_after } => Self::Pressure { reason, retry_after },
            Refusal::Closed => Self::ShuttingDown,
        }
    }
}

/// The gate: bounds on starts and sessions, and the queue before them.
pub(in crate::service) struct Gate {
    /// Places of those who wait: a part is set aside for each known tenant.
    places: Arc<Shares>,
    max_starts: usize,
    max_sessions: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Starts under way.
    starting: watch::Sender<usize>,
}

struct State {
    queue: FairQueue<(Demand, oneshot::Sender<Grant>)>,
    starting: usize,
    live: usize,
    /// Requests that wait for something before it can be their turn.
    early: usize,
    /// Sessions and requests of each tenant that has any.
    tenants: HashMap<TenantName, Use>,
    pressure: Option<String>,
    closed: bool,
    grants: DecayingRate,
    ends: DecayingRate,
}

/// What a tenant has.
#[derive(Debug, Default)]
struct Use {
    /// Sessions, and requests for one.
    requests: usize,
    /// Those of them that wait before they are in the queue.
    early: usize,
    demand: Demand,
}

/// Leave to start one session.
#[derive(Debug)]
pub(in crate::service) struct Grant {
    /// Permit for the start, to be dropped when that is done.
    pub start: StartSlot,
    /// Slot of the session, to be kept until that is discarded.
    pub slot: SessionSlot,
}

/// One of the starts under way.
pub(in crate::service) struct StartSlot(Arc<Gate>);

/// One of the sessions that live, or are about to.
pub(in crate::service) struct SessionSlot {
    gate: Arc<Gate>,
    tenant: TenantName,
    demand: Demand,
}

impl std::fmt::Debug for StartSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StartSlot")
    }
}

impl std::fmt::Debug for SessionSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SessionSlot").field(&self.tenant).finish()
    }
}

/// A request that waits before it is in the queue; see [`Gate::wait_early`].
#[must_use]
pub(in crate::service) struct Early<'a> {
    gate: &'a Gate,
    tenant: &'a TenantName,
    _place: Share,
}

/// A request in the queue; leaves it when dropped.
struct Waiting<'a> {
    gate: &'a Gate,
    tenant: &'a TenantName,
    ticket: Ticket,
    _place: Share,
}

impl Gate {
    /// A gate with `config`; `known` are the tenants that may always wait.
    pub fn new(
        config: &AdmissionConfig,
        known: impl IntoIterator<Item = TenantName>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let gate = Self {
            places: Shares::new(config.max_queued, known),
            max_starts: config.max_starts.unwrap_or(2 * processors),
            max_sessions: config.max_sessions.unwrap_or_else(|| sessions_for(host_memory())),
            metrics,
            state: Mutex::new(State {
                queue: FairQueue::default(),
                starting: 0,
                live: 0,
                early: 0,
                tenants: HashMap::new(),
                pressure: None,
                closed: false,
                grants: DecayingRate::new(RATE_CONSTANT),
                ends: DecayingRate::new(RATE_CONSTANT),
            }),
            starting: watch::Sender::new(0),
        };
        Arc::new(gate)
    }

    /// Waits for leave to start a session, at most `deadline`. Cancel-safe: a dropped request
    /// leaves the queue.
    pub async fn admit(
        self: &Arc<Self>,
        tenant: &TenantName,
        bounds: &Bounds,
        deadline: Duration,
    ) -> Result<Grant, Refusal> {
        let demand = bounds.demand;
        let begun = Instant::now();
        let (waiting, granted) = {
            let mut state = self.state();
            self.check(&state, tenant, bounds)?;
            if state.queue.len() == 0 && self.has_room(&state) {
                state.enter(tenant, &demand);
                return Ok(self.grant(&mut state, tenant.clone(), demand));
            }
            let place = self.place(&state, tenant)?;
            state.enter(tenant, &demand);
            let (sender, granted) = oneshot::channel();
            let ticket = state.queue.push(tenant, (demand, sender));
            self.metrics.queued(state.waiting());
            (Waiting { gate: self, tenant, ticket, _place: place }, granted)
        };
        let outcome = tokio::time::timeout(deadline, granted).await;
        drop(waiting);
        match outcome {
            Ok(Ok(grant)) => Ok(grant),
            Ok(Err(_)) => Err(Refusal::Closed),
            Err(_) => {
                let state = self.state();
                let retry_after = retry_after(state.queue.len(), &state.grants);
                Err(match &state.pressure {
                    Some(reason) => Refusal::Pressure { reason: reason.clone(), retry_after },
                    None => Refusal::DeadlinePassed { waited: begun.elapsed(), retry_after },
                })
            }
        }
    }

    /// Counts a request that waits for its golden image as one in the queue, until the guard is
    /// dropped.
    pub fn wait_early<'a>(
        self: &'a Arc<Self>,
        tenant: &'a TenantName,
        max_sessions: usize,
    ) -> Result<Early<'a>, Refusal> {
        let mut state = self.state();
        self.check(&state, tenant, &Bounds { max_sessions, ..Bounds::default() })?;
        let place = self.place(&state, tenant)?;
        state.enter(tenant, &Demand::default()).early += 1;
        state.early += 1;
        self.metrics.queued(state.waiting());
        Ok(Early { gate: self, tenant, _place: place })
    }

    /// Holds back all starts while there is a reason.
    pub fn set_pressure(self: &Arc<Self>, reason: Option<String>) {
        self.change(|state| state.pressure = reason);
    }

    /// Refuses all requests from now on, those that wait included.
    pub fn close(self: &Arc<Self>) {
        let waiting = {
            let mut state = self.state();
            state.closed = true;
            std::iter::from_fn(|| state.queue.pop()).collect::<Vec<_>>()
        };
        for (tenant, (demand, sender)) in waiting {
            self.change(|state| state.leave(&tenant, &demand));
            drop(sender);
        }
        self.metrics.queued(self.queued());
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.state().waiting()
    }

    /// Requests of one tenant that wait.
    pub fn queued_of(&self, tenant: &TenantName) -> usize {
        let state = self.state();
        state.queue.len_of(tenant) + state.tenants.get(tenant).map_or(0, |used| used.early)
    }

    /// Returns when no start is under way.
    pub async fn starts_done(&self) {
        // The sender lives in self, so the wait cannot fail.
        let _ = self.starting.subscribe().wait_for(|starting| *starting == 0).await;
    }

    fn check(&self, state: &State, tenant: &TenantName, bounds: &Bounds) -> Result<(), Refusal> {
        if state.closed {
            return Err(Refusal::Closed);
        }
        if let Some(reason) = &state.pressure {
            let retry_after = retry_after(state.queue.len(), &state.ends);
            return Err(Refusal::Pressure { reason: reason.clone(), retry_after });
        }
        let (requests, used) =
            state.tenants.get(tenant).map_or_else(Default::default, |u| (u.requests, u.demand));
        let retry_after = || retry_after(0, &state.ends);
        if requests >= bounds.max_sessions {
            let limit = bounds.max_sessions;
            return Err(Refusal::TenantBusy { limit, retry_after: retry_after() });
        }
        match bounds.totals.excess(&used, &bounds.demand) {
            Some(excess) => Err(Refusal::TenantTotal { excess, retry_after: retry_after() }),
            None => Ok(()),
        }
    }

    fn place(self: &Arc<Self>, state: &State, tenant: &TenantName) -> Result<Share, Refusal> {
        let queued = state.waiting();
        let full =
            || Refusal::QueueFull { queued, retry_after: retry_after(queued, &state.grants) };
        self.places.account(tenant, None).take(1).ok_or_else(full)
    }

    fn has_room(&self, state: &State) -> bool {
        state.starting < self.max_starts
            && state.live < self.max_sessions
            && state.pressure.is_none()
            && !state.closed
    }

    /// The tenant's own count has been raised before.
    fn grant(self: &Arc<Self>, state: &mut State, tenant: TenantName, demand: Demand) -> Grant {
        state.starting += 1;
        state.live += 1;
        state.grants.record(Instant::now());
        self.starting.send_replace(state.starting);
        self.metrics.live(state.live);
        let slot = SessionSlot { gate: self.clone(), tenant, demand };
        Grant { start: StartSlot(self.clone()), slot }
    }

    /// Changes the state and lets in whom it now has room for.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut unwanted = Vec::new();
        {
            let mut state = self.state();
            change(&mut state);
            while self.has_room(&state)
                && let Some((tenant, (demand, sender))) = state.queue.pop()
            {
                let grant = self.grant(&mut state, tenant, demand);
                // Whoever waited may have gone at this moment.
                unwanted.extend(sender.send(grant).err());
            }
            self.starting.send_replace(state.starting);
            self.metrics.queued(state.waiting());
            self.metrics.live(state.live);
        }
        // Dropping a grant changes the state again.
        drop(unwanted);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn waiting(&self) -> usize {
        self.queue.len() + self.early
    }

    fn enter(&mut self, tenant: &TenantName, demand: &Demand) -> &mut Use {
        let used = self.tenants.entry(tenant.clone()).or_default();
        used.requests += 1;
        used.demand.add(demand);
        used
    }

    fn leave(&mut self, tenant: &TenantName, demand: &Demand) {
        if let Some(used) = self.tenants.get_mut(tenant) {
            used.requests -= 1;
            used.demand.take_back(demand);
            if used.requests == 0 {
                self.tenants.remove(tenant);
            }
        }
    }
}

impl Drop for StartSlot {
    fn drop(&mut self) {
        self.0.change(|state| state.starting -= 1);
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        let Self { gate, tenant, demand } = self;
        gate.change(|state| {
            state.live -= 1;
            state.leave(tenant, demand);
            state.ends.record(Instant::now());
        });
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        // A request that is not in the queue any more was granted, and its count went with the
        // grant, or closed.
        if let Some((demand, _)) = state.queue.remove(self.tenant, self.ticket) {
            state.leave(self.tenant, &demand);
            self.gate.metrics.queued(state.waiting());
        }
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.early -= 1;
        if let Some(used) = state.tenants.get_mut(self.tenant) {
            used.early -= 1;
        }
        state.leave(self.tenant, &Demand::default());
        self.gate.metrics.queued(state.waiting());
    }
}

/// How long until `ahead` others and one more have had their turn, going by the observed rate.
fn retry_after(ahead: usize, rate: &DecayingRate) -> Duration {
    let per_second = rate.per_second(Instant::now());
    let seconds = (ahead + 1) as f64 / per_second;
    Duration::try_from_secs_f64(seconds).map_or(RETRY_MAX, |wait| wait.clamp(RETRY_MIN, RETRY_MAX))
}

/// How many sessions a host with this much memory has room for.
fn sessions_for(memory: u64) -> usize {
    usize::try_from((memory - memory / 8) / MEMORY_PER_SESSION).unwrap_or(usize::MAX).max(1)
}

/// Memory of the host in bytes; 4 GiB where it cannot be told.
pub(in crate::service) fn host_memory() -> u64 {
    use procfs::Current;
    procfs::Meminfo::current().map_or(4 << 30, |info| info.mem_total)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    fn gate(max_starts: usize, max_sessions: usize, max_queued: usize) -> Arc<Gate> {
        let config = AdmissionConfig {
            max_queued,
            max_starts: Some(max_starts),
            max_sessions: Some(max_sessions),
            ..AdmissionConfig::default()
        };
        Gate::new(&config, [], Arc::new(Metrics::new()))
    }

    fn tenant(name: &str) -> TenantName {
        TenantName::new(name).unwrap()
    }

    fn sessions(max_sessions: usize) -> Bounds {
        Bounds { max_sessions, ..Bounds::default() }
    }

    /// Starts under way, live sessions, tenants that have any.
    fn counts(gate: &Gate) -> (usize, usize, usize) {
        let state = gate.state();
        (state.starting, state.live, state.tenants.len())
    }

    const LONG: Duration = Duration::from_secs(3600);

    /// Lets all other tasks run until they wait.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// A request that waits for its turn.
    async fn line_up(
        gate: &Arc<Gate>,
        tenant: &TenantName,
        most: usize,
    ) -> JoinHandle<Result<Grant, Refusal>> {
        let (gate, tenant) = (gate.clone(), tenant.clone());
        let waiter = tokio::spawn(async move { gate.admit(&tenant, &sessions(most), LONG).await });
        settle().await;
        waiter
    }

    #[tokio::test]
    async fn starts_and_sessions_are_bounded_and_the_queue_moves_when_room_appears() {
        let (gate, t) = (gate(1, 2, 10), tenant("t"));
        let first = gate.admit(&t, &sessions(100), LONG).await.unwrap();
        let waiter = line_up(&gate, &t, 100).await;
        assert_eq!(gate.queued(), 1);
        drop(first.start);
        let second = waiter.await.unwrap().unwrap();
        drop(second.start);
        // Two live: the third waits for an end, and its deadline passes first.
        let refused = gate.admit(&t, &sessions(100), Duration::from_millis(5)).await.unwrap_err();
        assert!(matches!(refused, Refusal::DeadlinePassed { .. }), "{refused:?}");
        assert_eq!(gate.queued(), 0);
        drop(first.slot);
        gate.admit(&t, &sessions(100), Duration::ZERO).await.unwrap();
        drop(second.slot);
        assert_eq!(counts(&gate), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_a_busy_tenant_and_pressure_refuse_at_once() {
        let (gate, a, b) = (gate(1, 10, 1), tenant("a"), tenant("b"));
        let held = gate.admit(&a, &sessions(2), LONG).await.unwrap();
        let waiter = line_up(&gate, &a, 2).await;
        assert!(matches!(
            gate.admit(&a, &sessions(2), LONG).await,
            Err(Refusal::TenantBusy { limit: 2, .. })
        ));
        assert!(matches!(
            gate.admit(&b, &sessions(2), LONG).await,
            Err(Refusal::QueueFull { queued: 1, .. })
        ));
        gate.set_pressure(Some("memory".into()));
        assert!(matches!(gate.admit(&b, &sessions(2), LONG).await, Err(Refusal::Pressure { .. })));
        // What waits stays waiting, and goes on when the pressure is over.
        drop(held.start);
        settle().await;
        assert_eq!(gate.queued(), 1);
        gate.set_pressure(None);
        drop(waiter.await.unwrap().unwrap());
        gate.close();
        assert_eq!(gate.admit(&b, &sessions(2), LONG).await.unwrap_err(), Refusal::Closed);
    }

    #[tokio::test]
    async fn those_who_wait_early_count_like_those_in_the_queue() {
        let (gate, a, b) = (gate(1, 10, 2), tenant("a"), tenant("b"));
        let early = gate.wait_early(&a, 1).ok().unwrap();
        assert_eq!(gate.queued(), 1);
        assert!(matches!(gate.wait_early(&a, 1).err(), Some(Refusal::TenantBusy { limit: 1, .. })));
        let other = gate.wait_early(&b, 2).ok().unwrap();
        assert!(matches!(gate.wait_early(&b, 2).err(), Some(Refusal::QueueFull { queued: 2, .. })));
        gate.set_pressure(Some("memory".into()));
        assert!(matches!(gate.wait_early(&b, 2).err(), Some(Refusal::Pressure { .. })));
        gate.close();
        assert_eq!(gate.wait_early(&b, 2).err(), Some(Refusal::Closed));
        drop((early, other));
        assert_eq!((gate.queued(), counts(&gate)), (0, (0, 0, 0)));
    }

    #[tokio::test]
    async fn a_tenant_that_fills_the_queue_leaves_the_others_their_places() {
        let config =
            AdmissionConfig { max_queued: 8, max_starts: Some(1), ..AdmissionConfig::default() };
        let (a, b) = (tenant("a"), tenant("b"));
        let gate = Gate::new(&config, [a.clone(), b.clone()], Arc::new(Metrics::new()));
        let held = gate.admit(&a, &sessions(100), LONG).await.unwrap();
        let mut waiters = Vec::new();
        // One place of its own, and half of the six that are common.
        for _ in 0..4 {
            waiters.push(line_up(&gate, &a, 100).await);
        }
        let full = gate.admit(&a, &sessions(100), LONG).await;
        assert!(matches!(full, Err(Refusal::QueueFull { queued: 4, .. })), "{full:?}");
        waiters.push(line_up(&gate, &b, 100).await);
        assert_eq!(gate.queued_of(&b), 1);
        gate.close();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap_err(), Refusal::Closed);
        }
        drop(held);
        assert_eq!(gate.places.held(&a) + gate.places.held(&b), 0);
    }

    #[tokio::test]
    async fn a_dropped_request_leaves_nothing() {
        let (gate, t) = (gate(1, 1, 10), tenant("t"));
        let held = gate.admit(&t, &sessions(100), LONG).await.unwrap();
        let waiter = line_up(&gate, &t, 100).await;
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
        assert_eq!((gate.queued(), counts(&gate)), (0, (1, 1, 1)));
        // Granted at the very moment of leaving: the grant comes back.
        let bounds = sessions(100);
        let mut leaving = Box::pin(gate.admit(&t, &bounds, LONG));
        assert!(futures::poll!(leaving.as_mut()).is_pending());
        drop(held);
        assert_eq!(counts(&gate).1, 1);
        drop(leaving);
        assert_eq!(counts(&gate), (0, 0, 0));
    }

    #[tokio::test]
    async fn closing_ends_those_who_wait() {
        let (gate, t) = (gate(1, 1, 10), tenant("t"));
        let held = gate.admit(&t, &sessions(100), LONG).await.unwrap();
        let waiter = line_up(&gate, &t, 100).await;
        gate.close();
        assert_eq!(waiter.await.unwrap().unwrap_err(), Refusal::Closed);
        drop(held);
        gate.starts_done().await;
        assert_eq!(counts(&gate), (0, 0, 0));
    }

    #[tokio::test]
    async fn what_a_tenants_sessions_have_together_is_bounded_and_comes_back() {
        let (gate, a, b) = (gate(1, 10, 10), tenant("a"), tenant("b"));
        let needs = |memory_mib| Bounds {
            max_sessions: 10,
            totals: TotalLimits { memory_mib: Some(100), ..TotalLimits::default() },
            demand: Demand { memory_mib, ..Demand::default() },
        };
        let excess = |refusal: Refusal| match refusal {
            Refusal::TenantTotal { excess, .. } => (excess.used, excess.more),
            other => panic!("{other:?}"),
        };
        let first = gate.admit(&a, &needs(60), LONG).await.unwrap();
        assert_eq!(excess(gate.admit(&a, &needs(41), LONG).await.unwrap_err()), (60, 41));
        // Those that wait count, until they go; other tenants have totals of their own.
        let waiter = {
            let (gate, a) = (gate.clone(), a.clone());
            tokio::spawn(async move { gate.admit(&a, &needs(40), LONG).await })
        };
        settle().await;
        assert_eq!((gate.queued_of(&a), gate.queued_of(&b)), (1, 0));
        assert_eq!(excess(gate.admit(&a, &needs(1), LONG).await.unwrap_err()), (100, 1));
        drop(first.start);
        let second = waiter.await.unwrap().unwrap();
        drop(second.start);
        drop(gate.admit(&b, &needs(100), LONG).await.unwrap());
        drop(first.slot);
        assert_eq!(excess(gate.admit(&a, &needs(61), LONG).await.unwrap_err()), (40, 61));
        drop(gate.admit(&a, &needs(60), LONG).await.unwrap());
        drop(second.slot);
        assert_eq!(counts(&gate), (0, 0, 0));
        // What can never be is told as such.
        let never = CreateError::from(gate.admit(&a, &needs(101), LONG).await.unwrap_err());
        assert_eq!((never.code(), never.retry_after()), ("above_ceiling", None));
    }

    #[test]
    fn a_retry_is_told_from_the_rate_within_bounds() {
        let mut rate = DecayingRate::new(RATE_CONSTANT);
        assert_eq!(retry_after(3, &rate), RETRY_MAX);
        let now = Instant::now();
        // 40 events at once count as 2 per second over the time constant.
        (0..40).for_each(|_| rate.record(now));
        let wait = retry_after(19, &rate).as_secs_f64();
        assert!((9.9..=11.0).contains(&wait), "{wait}");
        assert_eq!(retry_after(0, &rate), RETRY_MIN);
        assert_eq!(sessions_for(24 << 30), 672);
    }
}
