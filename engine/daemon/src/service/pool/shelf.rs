//! Pool of one golden image: standbys, shells and zygote that are kept ready, and the observed
//! demand.

mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use mayfly_api::PoolStatus;
use mayfly_engine::golden::{Extent, GoldenError, LoadedGolden};
use mayfly_engine::session::{Shell, Standby, Zygote};
use mayfly_host::cgroup::Limits;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};

use self::state::{Failure, State};
use super::policy;
use super::zygote_slot::ZygoteSlot;
use crate::service::catalog::Identity;
use crate::service::config::PoolConfig;
use crate::service::rate::{DecayingRate, Smoothed};

/// How long more standbys than wanted are kept.
const SURPLUS_KEPT: Duration = Duration::from_secs(60);
/// After a standby could not be made, the next try waits this long, and twice as long after each
/// further failure.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// A pool without a zygote comes before all others.
const ZYGOTE_URGENCY: f64 = 2.0;

/// What a shelf gives away or gives up.
pub(super) enum Item {
    Standby(Box<Standby>),
    /// Others may be forking from it at this moment.
    Zygote(Arc<Zygote>),
    Shell(Box<Shell>),
}

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Standby,
    Shell,
    /// One that takes the quick steps.
    Zygote,
    /// One that takes all first steps.
    FullZygote,
}

/// How many kinds there are.
const KINDS: usize = 4;

/// The pool of one golden image.
pub(super) struct Shelf {
    pub name: String,
    pub config: PoolConfig,
    /// Whether the configuration names it: it is then never forgotten.
    pub configured: bool,
    state: Mutex<State>,
    /// The load under way, which all share who wait for the golden.
    load: Mutex<Option<Load>>,
    /// Something was put on the shelf, or will not be.
    changed: Notify,
    /// Places of cold starts while a zygote is in the making: many would keep it from the processor
    /// for which all wait.
    pub cold_places: Arc<Semaphore>,
}

/// A load of a golden; its generation.
pub(super) type Load = Shared<BoxFuture<'static, Result<(Arc<LoadedGolden>, u64), LoadError>>>;

/// Why a golden was not loaded.
#[derive(Debug, Clone)]
pub(super) enum LoadError {
    Golden(Arc<GoldenError>),
    /// The pools are given up.
    Closed,
}

/// Leave to make one item; gives its place back when dropped.
pub(super) struct Making {
    pub shelf: Arc<Shelf>,
    pub kind: Kind,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.shelf.state().making[self.kind as usize] -= 1;
    }
}

/// What making one item took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub took: Duration,
    pub cpu: Duration,
    pub memory: u64,
}

impl Shelf {
    pub fn new(name: &str, config: PoolConfig, configured: bool) -> Arc<Self> {
        let fork = config.fork;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            name: name.to_owned(),
            config,
            configured,
            state: Mutex::new(State {
                golden: None,
                made_of: None,
                generation: 0,
                standbys: VecDeque::new(),
                shells: VecDeque::new(),
                zygote: ZygoteSlot::new(fork),
                making: [0; KINDS],
                arrivals: DecayingRate::new(policy::RATE_CONSTANT),
                last_demand: Instant::now(),
                wanted: configured,
                seconds: Smoothed::default(),
                memory: Smoothed::default(),
                cpu: [Smoothed::default(); KINDS],
                failure: None,
                held: None,
                surplus_since: None,
                closed: false,
            }),
            load: Mutex::default(),
            changed: Notify::new(),
            cold_places: Arc::new(Semaphore::new((processors / 2).max(1))),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Takes note of a request.
    pub fn arrived(&self, now: Instant) {
        let mut state = self.state();
        state.arrivals.record(now);
        state.last_demand = now;
        state.wanted = true;
    }

    /// Takes the warmest item for a session with `limits`, if there is any, and the dead ones met on
    /// the way. A zygote is lent and stays.
    pub fn pop(&self, limits: &Limits) -> (Option<Item>, Vec<Item>) {
        let mut state = self.state();
        let mut dead: Vec<Item> = state.take_dead_zygote(Instant::now()).into_iter().collect();
        if limits.disk_bytes.is_some() {
            // A process bounds its own files when it begins; another may do so later only with
            // CAP_SYS_RESOURCE (setrlimit(2)), which not every root has.
            let zygote = state.zygote().filter(|zygote| zygote.fits(limits));
            return (zygote.map(Item::Zygote), dead);
        }
        while let Some((standby, ..)) = state.standbys.pop_front() {
            if standby.failed().now_or_never().is_none() {
                return (Some(Item::Standby(standby)), dead);
            }
            dead.push(Item::Standby(standby));
        }
        if let Some(zygote) = state.zygote() {
            return (Some(Item::Zygote(zygote)), dead);
        }
        (state.shells.pop_front().map(|(shell, _)| Item::Shell(shell)), dead)
    }

    /// Returns the VMM to fork standbys from, and the generation it belongs to.
    pub fn zygote(&self) -> (Option<Arc<Zygote>>, u64) {
        let state = self.state();
        (state.zygote(), state.generation)
    }

    /// Takes note that no zygote could be made, for ever or for now. Without one standbys are made
    /// one by one.
    pub fn zygote_failed(&self, extent: Extent, now: Instant, for_ever: bool) {
        let mut state = self.state();
        if for_ever {
            state.zygote.rule_out();
        } else {
            state.zygote.failed(extent, now);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes out the zygote, if it is dead.
    pub fn take_dead_zygote(&self, now: Instant) -> Option<Item> {
        self.state().take_dead_zygote(now)
    }

    /// Whether a session with `limits` could be started of what is there.
    pub fn has_one_for(&self, limits: &Limits) -> bool {
        let state = self.state();
        let forks = state.zygote().is_some_and(|zygote| zygote.fits(limits));
        forks
            || limits.disk_bytes.is_none()
                && !(state.standbys.is_empty() && state.shells.is_empty())
    }

    /// Whether nothing is kept any more.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Whether there is no zygote but is to be one soon, for which requests should wait.
    pub fn zygote_is_coming(&self, now: Instant, room: u64) -> bool {
        let state = self.state();
        let ceiling = policy::ceiling(self.config.max_standbys, room, state.memory_each());
        !state.closed
            && state.wanted
            && state.zygote.is_coming(now)
            && state.failure.as_ref().is_none_or(|failure| failure.until <= now)
            && self.target(&state, now, ceiling) > 0
    }

    /// Resolves when something was put on the shelf, or will not be, after this was called.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Returns the golden, when it is loaded, and the generation it belongs to.
    pub fn golden(&self) -> (Option<Arc<LoadedGolden>>, u64) {
        let state = self.state();
        (state.golden.clone(), state.generation)
    }

    /// Keeps a loaded golden; returns the generation it belongs to, and what was made of another.
    pub fn set_golden(&self, golden: Arc<LoadedGolden>) -> (u64, Vec<Item>) {
        let mut state = self.state();
        let identity = Identity::of(golden.manifest());
        let other = state.made_of.as_ref().is_some_and(|made_of| *made_of != identity);
        let items = if other { state.clear() } else { Vec::new() };
        state.golden = Some(golden);
        state.made_of = Some(identity);
        (state.generation, items)
    }

    /// Returns the load under way, or one that `begin` begins; whether it did. It must end with
    /// [`Shelf::loaded`].
    pub fn load(&self, begin: impl FnOnce() -> Load) -> (Load, bool) {
        let mut load = self.load.lock();
        match &*load {
            Some(load) => (load.clone(), false),
            None => (load.insert(begin()).clone(), true),
        }
    }

    /// Takes note that the load has ended.
    pub fn loaded(&self) {
        *self.load.lock() = None;
    }

    /// Returns whether a session can be started of what is there, without the golden.
    pub fn is_warm(&self) -> bool {
        let state = self.state();
        !state.standbys.is_empty() || !state.shells.is_empty() || state.zygote().is_some()
    }

    /// Returns whether anything is kept ready.
    pub fn is_wanted(&self) -> bool {
        self.state().wanted
    }

    /// Takes note of which golden there is under this name; returns what was made of another.
    pub fn expect(&self, current: Option<&Identity>) -> Vec<Item> {
        let mut state = self.state();
        match (&state.made_of, current) {
            (None, _) => Vec::new(),
            (Some(made_of), Some(current)) if made_of == current => Vec::new(),
            _ => {
                let what = if current.is_some() { "was built again" } else { "was removed" };
                tracing::info!(golden = %self.name, "the golden image {what}, its standbys are given up");
                state.golden = None;
                state.made_of = None;
                state.failure = None;
                state.clear()
            }
        }
    }

    /// Keeps nothing any more.
    pub fn close(&self) -> Vec<Item> {
        let items = {
            let mut state = self.state();
            state.closed = true;
            state.clear()
        };
        self.changed.notify_waiters();
        items
    }

    /// Returns whether nobody has asked for so long that the golden can be forgotten.
    pub fn is_forgotten(&self, now: Instant, after: Duration) -> bool {
        if self.load.lock().is_some() {
            return false;
        }
        let state = self.state();
        !self.configured
            && now.saturating_duration_since(state.last_demand) > after
            && state.making == [0; KINDS]
    }

    /// Returns the memory of all that waits and is being made, in bytes.
    pub fn memory(&self) -> u64 {
        self.state().memory_used()
    }

    pub fn status(&self, now: Instant, room: u64) -> PoolStatus {
        let state = self.state();
        let ceiling = policy::ceiling(self.config.max_standbys, room, state.memory_each());
        PoolStatus {
            standbys: state.standbys.len(),
            shells: state.shells.len(),
            zygote: state.zygote().is_some(),
            rehearsed: state.zygote.extent() == Some(Extent::All),
            filling: state.making[Kind::Standby as usize],
            target: self.target(&state, now, ceiling),
            floor: self.config.floor,
            ceiling,
            arrivals_per_second: state.arrivals.per_second(now),
            memory_bytes: state.waiting_memory(),
            held: state.held.clone(),
        }
    }

    fn target(&self, state: &State, now: Instant, ceiling: usize) -> usize {
        let making = state.seconds.get().and_then(|s| Duration::try_from_secs_f64(s).ok());
        let making = making.unwrap_or(policy::MAKING_UNKNOWN);
        policy::target(state.arrivals.per_second(now), making, self.config.floor, ceiling)
    }

    /// Returns what is missing most, with how urgent it is: above 1 for a pool without a zygote, 1
    /// for one without any standby, 0 for a full one.
    pub fn wanted(&self, now: Instant, room: u64) -> Option<(f64, Kind)> {
        let mut state = self.state();
        state.held = state.failure.as_ref().filter(|f| f.until > now).map(|f| f.error.clone());
        if state.closed || !state.wanted || state.held.is_some() {
            return None;
        }
        let ceiling = policy::ceiling(self.config.max_standbys, room, state.memory_each());
        let target = self.target(&state, now, ceiling);
        let have = state.standbys.len() + state.making[Kind::Standby as usize];
        let zygotes = [Kind::Zygote, Kind::FullZygote].map(|kind| state.making[kind as usize]);
        let zygote = state.zygote.wanted(now).filter(|_| target > 0);
        if zygote == Some(Extent::Quick) {
            if zygotes[0] == 0 {
                return Some((ZYGOTE_URGENCY, Kind::Zygote));
            }
            // All that follows is cheaper with a zygote.
            state.zygote()?;
        }
        if have < target {
            return Some((1.0 - have as f64 / target as f64, Kind::Standby));
        }
        if self.config.floor > ceiling {
            state.held = Some(format!("the memory budget has room for {ceiling} standbys only"));
        }
        let shells = state.shells.len() + state.making[Kind::Shell as usize];
        if state.zygote().is_some() {
            // Forking is faster than a shell is.
            // It stands beside the first, and has more of its own.
            let more = state.zygote.memory().max(state.memory_each());
            let fits = state.memory_used().saturating_add(more) <= room;
            return (zygote == Some(Extent::All) && zygotes == [0; 2] && fits)
                .then_some((0.0, Kind::FullZygote));
        }
        let fits = state.memory_used().saturating_add(state.memory_each()) <= room;
        (shells < self.config.shells && fits).then_some((0.0, Kind::Shell))
    }

    /// Says why nothing is made although something is wanted.
    pub fn hold(&self, reason: &str) {
        self.state().held = Some(reason.to_owned());
    }

    /// Returns the processor time that making one more is expected to take.
    pub fn expected_cpu(&self, kind: Kind) -> Duration {
        let known =
            self.state().cpu[kind as usize].get().and_then(|s| Duration::try_from_secs_f64(s).ok());
        known.unwrap_or(match kind {
            Kind::Zygote | Kind::FullZygote => Duration::from_secs(3),
            Kind::Standby => Duration::from_millis(250),
            Kind::Shell => Duration::from_millis(60),
        })
    }

    pub fn begin(self: &Arc<Self>, kind: Kind) -> Making {
        self.state().making[kind as usize] += 1;
        Making { shelf: self.clone(), kind }
    }

    /// Puts an item on the shelf; returns it when it is not wanted any more, or what it replaces.
    pub fn put(&self, item: Item, generation: u64, cost: Cost) -> Option<Item> {
        let left = self.put_in(item, generation, cost);
        self.changed.notify_waiters();
        left
    }

    fn put_in(&self, item: Item, generation: u64, cost: Cost) -> Option<Item> {
        let mut state = self.state();
        if !matches!(item, Item::Zygote(_)) {
            state.failure = None;
        }
        let kind = match &item {
            Item::Standby(_) => Kind::Standby,
            Item::Shell(_) => Kind::Shell,
            Item::Zygote(zygote) => match zygote.extent() {
                Extent::Start | Extent::Quick => Kind::Zygote,
                Extent::All => Kind::FullZygote,
            },
        };
        state.cpu[kind as usize].add(cost.cpu.as_secs_f64());
        if state.closed || state.generation != generation {
            return Some(item);
        }
        match item {
            Item::Standby(standby) => {
                state.seconds.add(cost.took.as_secs_f64());
                state.memory.add(cost.memory as f64);
                let extent = standby.extent();
                state.standbys.push_back((standby, cost.memory, extent));
            }
            Item::Shell(shell) => state.shells.push_back((shell, cost.memory)),
            Item::Zygote(zygote) => {
                let extent = zygote.extent();
                let old = state.zygote.put(zygote, extent, cost.memory, Instant::now());
                return old.map(Item::Zygote);
            }
        }
        None
    }

    /// Takes note that making one failed; the next try waits.
    pub fn failed(&self, error: &str, now: Instant) {
        let mut state = self.state();
        // Several that were under way at once have failed for one reason.
        if state.failure.as_ref().is_some_and(|failure| now < failure.until) {
            return;
        }
        let wait = state.failure.as_ref().map_or(RETRY_FIRST, |f| (f.wait * 2).min(RETRY_LONGEST));
        // It may have changed, or gone.
        state.golden = None;
        state.failure = Some(Failure {
            error: format!("cannot make a standby: {error}"),
            wait,
            until: now + wait,
        });
        drop(state);
        self.changed.notify_waiters();
    }

    /// Removes dead standbys, and one of those that are too many: under pressure above the floor,
    /// else above the target for a while. On a host that is not `busy` also one of a full pool that
    /// was forked from a zygote before the one that is there.
    pub fn trim(&self, now: Instant, room: u64, pressure: bool, busy: bool) -> Vec<Item> {
        let mut state = self.state();
        let (alive, mut items): (VecDeque<_>, Vec<_>) = {
            let all = std::mem::take(&mut state.standbys).into_iter();
            let (alive, dead): (Vec<_>, Vec<_>) =
                all.partition(|(standby, ..)| standby.failed().now_or_never().is_none());
            (alive.into(), dead.into_iter().map(|(standby, ..)| Item::Standby(standby)).collect())
        };
        state.standbys = alive;
        items.extend(state.take_dead_zygote(now));
        if !items.is_empty() {
            tracing::warn!(golden = %self.name, dead = items.len(), "standbys have died, others are made");
        }
        let ceiling = policy::ceiling(self.config.max_standbys, room, state.memory_each());
        let target = self.target(&state, now, ceiling);
        let is_full = state.standbys.len() >= target && state.failure.is_none();
        if is_full && !busy && !pressure {
            items.extend(state.take_outdated());
        }
        let keep = if pressure { self.config.floor } else { self.target(&state, now, ceiling) };
        if state.standbys.len() <= keep {
            state.surplus_since = None;
            return items;
        }
        let since = *state.surplus_since.get_or_insert(now);
        if pressure || now.saturating_duration_since(since) > SURPLUS_KEPT {
            items.extend(state.standbys.pop_front().map(|(standby, ..)| Item::Standby(standby)));
        }
        items
    }

    /// Returns the numbers of standbys, shells, standbys in the making and the target, for the
    /// metrics.
    pub fn counts(&self, now: Instant, room: u64) -> [usize; 4] {
        let status = self.status(now, room);
        [status.standbys, status.shells, status.filling, status.target]
    }
}
