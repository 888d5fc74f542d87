//! The gate every request for a session goes through: bounds on starts and sessions, and the queue
//! before them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::TenantName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};

use super::drain::Drain;
use super::queue::{FairQueue, Ticket};
use super::refusal::{RETRY_MAX, RETRY_MIN, Refusal};
use crate::observe::Metrics;
use crate::service::ceilings::{Demand, TotalLimits};
use crate::service::config::AdmissionConfig;
use crate::service::rate::DecayingRate;
use crate::service::shares::{Share, Shares};

/// Host memory for each session that may live, unless configured otherwise: what an idle one has of
/// its own, and some.
const MEMORY_PER_SESSION: u64 = 32 << 20;
/// Time constant of the observed rates.
const RATE_CONSTANT: Duration = Duration::from_secs(20);
/// How often to look for requests that wait in vain.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

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
    queue: FairQueue<Queued>,
    drain: Drain,
    /// When to look again for those who wait in vain.
    next_look: Option<Instant>,
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

/// A request in the queue.
struct Queued {
    demand: Demand,
    /// Its deadline, and the time that it had when it came.
    until: Instant,
    deadline: Duration,
    answer: oneshot::Sender<Result<Grant, Refusal>>,
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
    /// Its place among those who wait, until it takes that into the queue.
    place: Option<Share>,
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
                drain: Drain::default(),
                next_look: None,
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

    /// As [`Gate::admit_from`], for one that has not waited before.
    #[cfg(test)]
    pub async fn admit(
        self: &Arc<Self>,
        tenant: &TenantName,
        bounds: &Bounds,
        deadline: Duration,
    ) -> Result<Grant, Refusal> {
        self.admit_from(None, tenant, bounds, deadline).await
    }

    /// Waits for leave to start a session, at most `deadline`. Whoever has waited `early` keeps its
    /// place. Cancel-safe: a dropped request leaves the queue.
    pub async fn admit_from(
        self: &Arc<Self>,
        early: Option<Early<'_>>,
        tenant: &TenantName,
        bounds: &Bounds,
        deadline: Duration,
    ) -> Result<Grant, Refusal> {
        let demand = bounds.demand;
        let begun = Instant::now();
        let (waiting, granted) = {
            let mut state = self.state();
            let own_place = early.and_then(|early| early.leave(&mut state));
            self.check(&state, tenant, bounds)?;
            if state.queue.len() == 0 && self.has_room(&state) {
                state.enter(tenant, &demand);
                return Ok(self.grant(&mut state, tenant.clone(), demand));
            }
            let ahead = state.queue.ahead_of_next(tenant);
            if self.waits_for_starts(&state)
                && let Some(wait) = state.drain.in_vain(ahead, deadline, begun)
            {
                return Err(Refusal::Overloaded { ahead, wait, deadline });
            }
            let place = own_place.map_or_else(|| self.place(&state, tenant), Ok)?;
            state.enter(tenant, &demand);
            state.drain.waits(begun);
            let (answer, granted) = oneshot::channel();
            let until = begun + deadline;
            let ticket = state.queue.push(tenant, Queued { demand, until, deadline, answer });
            self.metrics.queued(state.waiting());
            (Waiting { gate: self, tenant, ticket, _place: place }, granted)
        };
        let outcome = tokio::time::timeout(deadline, granted).await;
        drop(waiting);
        match outcome {
            Ok(Ok(answer)) => answer,
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
        Ok(Early { gate: self, tenant, place: Some(place) })
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
        for (tenant, Queued { demand, answer, .. }) in waiting {
            self.change(|state| state.leave(&tenant, &demand));
            drop(answer);
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

    /// Whether all places for starts are taken and requests wait for one.
    pub fn is_saturated(&self) -> bool {
        let state = self.state();
        state.starting >= self.max_starts && state.queue.len() > 0
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

    /// Whether it is other starts that those in the queue wait for. How long they wait for sessions to
    /// end, or for the host not to be short any more, the past does not tell.
    fn waits_for_starts(&self, state: &State) -> bool {
        state.queue.len() > 0 && state.pressure.is_none() && state.live < self.max_sessions
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
                && let Some((tenant, Queued { demand, answer, .. })) = state.queue.pop()
            {
                state.drain.turn(Instant::now());
                let grant = self.grant(&mut state, tenant, demand);
                // Whoever waited may have gone at this moment.
                unwanted.extend(answer.send(Ok(grant)).err());
            }
            if self.waits_for_starts(&state) {
                state.shed(Instant::now());
            } else {
                state.drain.reset();
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

    /// Refuses those who wait in vain, the sooner the better for them: the queue moves slower than
    /// it was to be expected when they came.
    fn shed(&mut self, now: Instant) {
        self.drain.waits(now);
        if self.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.next_look = Some(now + LOOK_INTERVAL);
        let drain = &self.drain;
        let in_vain = |ahead, queued: &Queued| {
            drain.in_vain(ahead, queued.until.saturating_duration_since(now), now)
        };
        for (tenant, ahead, wait, queued) in self.queue.take_out(in_vain) {
            self.leave(&tenant, &queued.demand);
            let refusal = Refusal::Overloaded { ahead, wait, deadline: queued.deadline };
            // Whoever waited may have gone at this moment.
            let _ = queued.answer.send(Err(refusal));
        }
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
        // grant, or was refused.
        if let Some(Queued { demand, .. }) = state.queue.remove(self.tenant, self.ticket) {
            state.leave(self.tenant, &demand);
            if state.queue.len() == 0 {
                state.drain.reset();
            }
            self.gate.metrics.queued(state.waiting());
        }
    }
}

impl Early<'_> {
    /// Leaves, and takes the place along.
    fn leave(mut self, state: &mut State) -> Option<Share> {
        let place = self.place.take();
        self.left(state);
        place
    }

    fn left(&self, state: &mut State) {
        state.early -= 1;
        if let Some(used) = state.tenants.get_mut(self.tenant) {
            used.early -= 1;
        }
        state.leave(self.tenant, &Demand::default());
        self.gate.metrics.queued(state.waiting());
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        // With its place it has left.
        if self.place.is_some() {
            self.left(&mut self.gate.state());
        }
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
mod tests;
