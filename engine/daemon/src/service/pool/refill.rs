//! Refilling in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_engine::SessionOptions;
use mayfly_engine::golden::LoadedGolden;
use mayfly_engine::session::Standby;
use mayfly_host::cgroup::Limits;
use tokio::sync::OwnedSemaphorePermit;

use super::Pools;
use super::budget::cpu_time_of;
use super::shelf::{Cost, Item, Kind, Making, Shelf};
use crate::service::error::CreateError;

/// How often to look without being woken: dead standbys, surplus, pools nobody uses.
const TICK: Duration = Duration::from_millis(500);

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
                self.dispose(shelf.trim(now, self.room_beside(&shelf), pressure));
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

    /// The pool that is emptiest for what it should be.
    fn next(&self) -> Option<(Arc<Shelf>, Kind)> {
        let now = Instant::now();
        let wanted = self.all().into_iter().filter_map(|shelf| {
            let (urgency, kind) = shelf.wanted(now, self.room_beside(&shelf))?;
            Some((urgency, kind, shelf))
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
        let place = self.places.clone().try_acquire_owned().ok()?;
        let expected = shelf.expected_cpu(kind);
        let reserved = self.cpu.lock().reserve(Instant::now(), expected);
        if let Err(wait) = reserved {
            shelf.hold("the processor budget is used up for the moment");
            return Some(wait.max(Duration::from_millis(1)));
        }
        // A moment in which nobody waits for a start is best, but it need not come.
        let _ = tokio::time::timeout(self.config.max_yield, self.gate.starts_done()).await;
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

    async fn make(
        self: &Arc<Self>,
        making: Making,
        expected: Duration,
        _place: OwnedSemaphorePermit,
    ) {
        let begun = Instant::now();
        let shelf = making.shelf.clone();
        match self.make_item(&shelf, making.kind).await {
            Ok((item, pid, generation)) => {
                let took = begun.elapsed();
                // The memory map of a VMM is long; reading it must not hold up other tasks.
                let measured = tokio::task::spawn_blocking(move || {
                    (cpu_time_of(pid), mayfly_host::memory::private_bytes(pid).unwrap_or(0))
                });
                let (cpu, memory) = measured.await.unwrap_or_default();
                let cpu = cpu.unwrap_or(expected);
                self.cpu.lock().settle(Instant::now(), expected, cpu);
                if making.kind == Kind::Standby {
                    self.metrics.standby_made(&shelf.name, took);
                }
                tracing::debug!(golden = %shelf.name, kind = ?making.kind, ?took, ?cpu, memory, "made for the pool");
                self.dispose(
                    shelf.put(item, generation, Cost { took, cpu, memory }).into_iter().collect(),
                );
            }
            Err(error) => {
                tracing::warn!(golden = %shelf.name, %error, "cannot make a standby");
                shelf.failed(&error.to_string(), Instant::now());
            }
        }
        drop(making);
        self.wake.notify_one();
    }

    /// What was wanted, or a standby where there can be no zygote; its VMM, and the generation it
    /// belongs to.
    async fn make_item(
        self: &Arc<Self>,
        shelf: &Arc<Shelf>,
        kind: Kind,
    ) -> Result<(Item, u32, u64), CreateError> {
        let (golden, generation) = self.load(shelf).await?;
        let options = SessionOptions {
            limits: Limits { background: true, ..Limits::default() },
            record: false,
        };
        // A zygote serves one fork after another, for waiting requests too: it may not be kept from
        // the processor by those who have work of their own.
        let prompt = Limits::default();
        Ok(match kind {
            Kind::Zygote => match self.engine.prepare_zygote(&golden, &prompt).await {
                Ok(Some(zygote)) => {
                    let pid = zygote.vmm_pid();
                    (Item::Zygote(Arc::new(zygote)), pid, generation)
                }
                Ok(None) => {
                    return self.without_zygote(shelf, true, &golden, &options, generation).await;
                }
                Err(error) => {
                    tracing::warn!(golden = %shelf.name, %error, "cannot warm up a VMM to fork");
                    return self.without_zygote(shelf, false, &golden, &options, generation).await;
                }
            },
            Kind::Standby => match self.fork(shelf, &options.limits, &prompt).await {
                Some((standby, generation)) => {
                    let pid = standby.vmm_pid();
                    (Item::Standby(Box::new(standby)), pid, generation)
                }
                None => self.restore(&golden, &options, generation).await?,
            },
            Kind::Shell => {
                let shell = self.engine.spawn_shell(&golden, &options).await?;
                let pid = shell.vmm_pid();
                (Item::Shell(Box::new(shell)), pid, generation)
            }
        })
    }

    /// Makes a standby by itself, as all that follow.
    async fn without_zygote(
        &self,
        shelf: &Shelf,
        for_ever: bool,
        golden: &Arc<LoadedGolden>,
        options: &SessionOptions,
        generation: u64,
    ) -> Result<(Item, u32, u64), CreateError> {
        self.dispose(shelf.give_up_zygote(Instant::now(), for_ever).into_iter().collect());
        self.restore(golden, options, generation).await
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

    /// A standby forked from the zygote, if there is one that can be forked.
    /// `spare` bounds a fork that rehearses, which is longer work and not urgent.
    async fn fork(&self, shelf: &Shelf, spare: &Limits, prompt: &Limits) -> Option<(Standby, u64)> {
        let (zygote, generation) = shelf.zygote();
        let zygote = zygote?;
        let made = match self.config.rehearse {
            true => zygote.prepare_standby(spare).await,
            false => zygote.fork(prompt).await,
        };
        match made {
            Ok(standby) => Some((standby, generation)),
            Err(error) => {
                tracing::warn!(golden = %shelf.name, %error, "cannot fork the warmed-up VMM");
                self.dispose(shelf.give_up_zygote(Instant::now(), false).into_iter().collect());
                None
            }
        }
    }
}
