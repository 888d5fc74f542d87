//! Refilling in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::SessionOptions;
use mayfly_engine::golden::{Extent, LoadedGolden};
use mayfly_engine::session::{SessionError, Standby, Zygote};
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Pools;
use super::budget::cpu_time_of;
use super::shelf::{Cost, Item, Kind, Making, Shelf};
use super::zygote_slot::Forkable;
use crate::service::error::CreateError;

/// How often to look without being woken: dead standbys, surplus, pools nobody uses.
const TICK: Duration = Duration::from_millis(500);
/// Bound on the making of a zygote. Generous: one that takes all first steps does so on idle time.
const ZYGOTE_LIMIT: Duration = Duration::from_secs(900);
/// Bound on the making of anything: a guest that never answers must not keep its place.
const MAKE_LIMIT: Duration = Duration::from_secs(1000);

impl Pools {
    /// Keeps the pools filled, for ever.
    pub async fn refill(self: Arc<Self>) {
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if next_look <= now {
                self.look(now);
                next_look = now + TICK;
            }
            let wait = match self.next() {
                Some((shelf, kind)) => self.start(&shelf, kind).await,
                None => None,
            };
            self.report();
            if wait.is_some_and(|wait| wait.is_zero()) {
                continue;
            }
            let until_look = next_look.saturating_duration_since(Instant::now());
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or(TICK).min(until_look)) => {}
            }
        }
    }

    /// Removes what is dead, too much or of no use any more.
    fn look(&self, now: Instant) {
        let pressure = self.pressure().is_some();
        for shelf in self.all() {
            if shelf.is_forgotten(now, self.config.forget_after) {
                self.shelves().remove(&shelf.name);
                self.dispose(shelf.close());
                self.metrics.pool_gone(&shelf.name);
                tracing::info!(golden = %shelf.name, "nobody asks for the golden image any more, its pool is given up");
            } else {
                let busy = self.gate.is_saturated();
                self.dispose(shelf.trim(now, self.room_beside(&shelf), pressure, busy));
            }
        }
    }

    fn report(&self) {
        let now = Instant::now();
        for shelf in self.all().into_iter().filter(|shelf| shelf.is_wanted()) {
            let [standbys, shells, filling, target] = shelf.counts(now, self.room_beside(&shelf));
            self.metrics.pool(&shelf.name, standbys, shells, filling, target);
        }
    }

    /// The pool that is emptiest for what it should be, of those for which there is a place.
    fn next(&self) -> Option<(Arc<Shelf>, Kind)> {
        let now = Instant::now();
        // Of a golden that there is not, or not any more, nothing can be made.
        let shelves = self.all().into_iter().filter(|shelf| self.catalog.has(&shelf.name));
        let wanted = shelves.filter_map(|shelf| {
            let (urgency, kind) = shelf.wanted(now, self.room_beside(&shelf))?;
            let has_place = self.places_for(kind).available_permits() > 0;
            has_place.then_some((urgency, kind, shelf))
        });
        wanted.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, kind, shelf)| (shelf, kind))
    }

    /// Begins to make one; returns how long to wait before the next look, `None` until something
    /// happens.
    async fn start(self: &Arc<Self>, shelf: &Arc<Shelf>, kind: Kind) -> Option<Duration> {
        if let Some(reason) = self.pressure() {
            shelf.hold(&reason);
            return None;
        }
        // A zygote is what makes starts cheap: nothing holds up the first.
        let is_urgent = kind == Kind::Zygote;
        if !is_urgent && self.gate.is_saturated() {
            // A standby costs more than the start that it saves. It is made when there is time.
            shelf.hold("requests wait for their turn");
            return Some(self.config.max_yield);
        }
        let place = self.places_for(kind).clone().try_acquire_owned().ok()?;
        let expected = match kind {
            // It takes what others leave over.
            Kind::FullZygote => Duration::ZERO,
            _ => shelf.expected_cpu(kind),
        };
        if is_urgent {
            self.cpu.lock().charge(Instant::now(), expected);
        } else if let Err(wait) = self.reserve(expected) {
            shelf.hold("the processor budget is used up for the moment");
            return Some(wait.max(Duration::from_millis(1)));
        }
        if !is_urgent {
            // A moment in which nobody waits for a start is best, but it need not come.
            let _ = tokio::time::timeout(self.config.max_yield, self.gate.starts_done()).await;
        }
        let making = shelf.begin(kind);
        let (pools, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = pools.make(making, expected, place) => {}
            }
        });
        Some(Duration::ZERO)
    }

    fn places_for(&self, kind: Kind) -> &Arc<Semaphore> {
        match kind {
            Kind::Standby | Kind::Shell => &self.places,
            Kind::Zygote => &self.zygote_places,
            Kind::FullZygote => &self.full_zygote_places,
        }
    }

    fn reserve(&self, expected: Duration) -> Result<(), Duration> {
        self.cpu.lock().reserve(Instant::now(), expected)
    }

    async fn make(
        self: &Arc<Self>,
        making: Making,
        expected: Duration,
        _place: OwnedSemaphorePermit,
    ) {
        let begun = Instant::now();
        let shelf = making.shelf.clone();
        let generation = shelf.golden().1;
        let making_it = self.make_item(&shelf, making.kind);
        let made = tokio::time::timeout(scaled(MAKE_LIMIT), making_it).await;
        let late = |_| {
            Err(CreateError::Session(SessionError::NoAnswer {
                limit: MAKE_LIMIT,
                console: String::new(),
            }))
        };
        match made.unwrap_or_else(late) {
            Ok(None) => self.cpu.lock().settle(Instant::now(), expected, Duration::ZERO),
            Ok(Some((item, pid, generation))) => {
                let took = begun.elapsed();
                // The memory map of a VMM is long; reading it must not hold up other tasks.
                let measured = tokio::task::spawn_blocking(move || {
                    (cpu_time_of(pid), mayfly_host::memory::private_bytes(pid).unwrap_or(0))
                });
                let (cpu, memory) = measured.await.unwrap_or_default();
                let cpu = cpu.unwrap_or(expected);
                if making.kind != Kind::FullZygote {
                    self.cpu.lock().settle(Instant::now(), expected, cpu);
                }
                if making.kind == Kind::Standby {
                    self.metrics.standby_made(&shelf.name, took);
                }
                tracing::debug!(golden = %shelf.name, kind = ?making.kind, ?took, ?cpu, memory, "made for the pool");
                self.dispose(
                    shelf.put(item, generation, Cost { took, cpu, memory }).into_iter().collect(),
                );
            }
            Err(error) if self.is_outdated(&shelf, generation).await => {
                tracing::debug!(golden = %shelf.name, %error, "a standby of a golden that is no more");
            }
            Err(error) => {
                tracing::warn!(golden = %shelf.name, %error, "cannot make a standby");
                shelf.failed(&error.to_string(), Instant::now());
            }
        }
        drop(making);
        self.wake.notify_one();
    }

    /// What was wanted, its VMM, and the generation it belongs to; `None` for a zygote that there
    /// cannot be, now or for ever, and for a fork that was lost with its zygote.
    async fn make_item(
        self: &Arc<Self>,
        shelf: &Arc<Shelf>,
        kind: Kind,
    ) -> Result<Option<(Item, u32, u64)>, CreateError> {
        let (golden, generation) = self.load(shelf).await?;
        let options = SessionOptions {
            limits: Limits { background: true, ..Limits::default() },
            record: false,
        };
        let extent = if kind == Kind::FullZygote { Extent::All } else { Extent::Quick };
        Ok(Some(match kind {
            Kind::Zygote | Kind::FullZygote => {
                let zygote = self.zygote(shelf, &golden, extent, generation).await?;
                let Some(zygote) = zygote else { return Ok(None) };
                let pid = zygote.vmm_pid();
                (Item::Zygote(zygote), pid, generation)
            }
            Kind::Standby => match shelf.zygote() {
                (Some(zygote), generation) => {
                    let Some(standby) = self.fork(shelf, &zygote, &options.limits).await? else {
                        return Ok(None);
                    };
                    let pid = standby.vmm_pid();
                    (Item::Standby(Box::new(standby)), pid, generation)
                }
                (None, _) => self.restore(&golden, &options, generation).await?,
            },
            Kind::Shell => {
                let shell = self.engine.spawn_shell(&golden, &options).await?;
                let pid = shell.vmm_pid();
                (Item::Shell(Box::new(shell)), pid, generation)
            }
        }))
    }

    /// Makes a zygote; `None` where there can be none, now or for ever.
    async fn zygote(
        &self,
        shelf: &Shelf,
        golden: &Arc<LoadedGolden>,
        extent: Extent,
        generation: u64,
    ) -> Result<Option<Arc<Zygote>>, CreateError> {
        let limits = Limits { background: extent == Extent::All, ..Limits::default() };
        let prepared = self.engine.prepare_zygote(golden, &limits, extent);
        let Ok(prepared) = tokio::time::timeout(scaled(ZYGOTE_LIMIT), prepared).await else {
            tracing::warn!(golden = %shelf.name, limit = ?ZYGOTE_LIMIT, "a VMM to fork does not get warm");
            shelf.zygote_failed(extent, Instant::now(), false);
            return Ok(None);
        };
        match prepared {
            Ok(Some(zygote)) => Ok(Some(Arc::new(zygote))),
            Ok(None) => {
                shelf.zygote_failed(extent, Instant::now(), true);
                Ok(None)
            }
            Err(error) if self.is_outdated(shelf, generation).await => {
                tracing::debug!(golden = %shelf.name, %error, "a VMM to fork of a golden that is no more");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(golden = %shelf.name, %error, "cannot warm up a VMM to fork");
                shelf.zygote_failed(extent, Instant::now(), false);
                Ok(None)
            }
        }
    }

    async fn restore(
        &self,
        golden: &Arc<LoadedGolden>,
        options: &SessionOptions,
        generation: u64,
    ) -> Result<(Item, u32, u64), CreateError> {
        let standby = self.engine.prepare_standby(golden, options).await?;
        let pid = standby.vmm_pid();
        Ok((Item::Standby(Box::new(standby)), pid, generation))
    }

    /// A standby forked from `zygote`. `spare` bounds a fork that rehearses, which is longer work
    /// and not urgent.
    async fn fork(
        &self,
        shelf: &Shelf,
        zygote: &Arc<Zygote>,
        spare: &Limits,
    ) -> Result<Option<Standby>, SessionError> {
        let made = match self.config.rehearse {
            true => zygote.prepare_standby(spare).await,
            false => zygote.fork(&Limits::default()).await,
        };
        match made {
            Ok(standby) => Ok(Some(standby)),
            Err(error) => {
                self.look_at_zygote(shelf);
                // Another zygote is made, which is all that can be done.
                if zygote.is_dead() { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Has a zygote replaced at once that is dead, after a fork of it has failed.
    pub(super) fn look_at_zygote(&self, shelf: &Shelf) {
        let dead = shelf.take_dead_zygote(Instant::now());
        if dead.is_some() {
            tracing::warn!(golden = %shelf.name, "the warmed-up VMM is lost, another is made");
        }
        self.dispose(dead.into_iter().collect());
        self.wake.notify_one();
    }
}
