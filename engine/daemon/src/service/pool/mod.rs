//! Warm starts kept ready for each golden image: hot standbys, a zygote to fork them from where the
//! VMM can be forked, and shells where it cannot.
//!
//! A request takes the warmest there is (standby, fork of the zygote, shell, nothing: a cold
//! start); an empty pool is never an error. One task refills in the background, within bounds on
//! processor time and memory, and towards a target that follows the demand.

mod budget;
mod policy;
mod refill;
mod shelf;
mod take;
mod zygote_slot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::budget::CpuBudget;
use self::shelf::Shelf;
pub(super) use self::take::Taken;
use mayfly_api::PoolStatus;
use mayfly_engine::Engine;

use super::admission::{Gate, host_memory};
use super::catalog::Catalog;
use super::config::{PoolBudget, ServiceConfig};
use crate::observe::Metrics;

/// Share of the host's memory that waiting standbys and shells may take, unless configured
/// otherwise: one part in this many.
const MEMORY_PART: u64 = 8;

/// The pools of all goldens.
pub(super) struct Pools {
    engine: Arc<Engine>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    catalog: Arc<Catalog>,
    config: PoolBudget,
    goldens: BTreeMap<String, super::config::PoolConfig>,
    memory_budget: u64,
    shelves: Mutex<BTreeMap<String, Arc<Shelf>>>,
    cpu: Mutex<CpuBudget>,
    /// Places in which standbys and shells are made, zygotes that take the quick steps, and those
    /// that take all.
    places: Arc<Semaphore>,
    zygote_places: Arc<Semaphore>,
    full_zygote_places: Arc<Semaphore>,
    pressure: Mutex<Option<String>>,
    /// Something changed that the refill task should look at.
    wake: Notify,
    /// Ends what is being made.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Pools {
    pub fn new(
        engine: Arc<Engine>,
        config: &ServiceConfig,
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
        catalog: Arc<Catalog>,
    ) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shelves = config
            .goldens
            .iter()
            .map(|(name, pool)| (name.clone(), Shelf::new(name, pool.clone(), true)));
        let budget = &config.pool;
        Arc::new(Self {
            engine,
            gate,
            metrics,
            catalog,
            config: budget.clone(),
            goldens: config.goldens.clone(),
            memory_budget: budget
                .memory_mib
                .map_or_else(|| host_memory() / MEMORY_PART, |mib| mib << 20),
            shelves: Mutex::new(shelves.collect()),
            cpu: Mutex::new(CpuBudget::new(
                budget.cpu * processors as f64,
                budget.cpu_burst,
                Instant::now(),
            )),
            places: Arc::new(Semaphore::new(budget.concurrency.unwrap_or((processors / 2).max(1)))),
            zygote_places: Arc::new(Semaphore::new(processors)),
            full_zygote_places: Arc::new(Semaphore::new(1)),
            pressure: Mutex::default(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Returns the pool of a golden; `None` when it keeps none.
    pub fn status(&self, golden: &str) -> Option<PoolStatus> {
        let shelf = self.shelves().get(golden).filter(|shelf| shelf.is_wanted()).cloned()?;
        Some(shelf.status(Instant::now(), self.room_beside(&shelf)))
    }

    /// Stops refilling while there is a reason, and gives back what is above the floors.
    pub fn set_pressure(&self, reason: Option<String>) {
        *self.pressure.lock() = reason;
        self.wake.notify_one();
    }

    fn pressure(&self) -> Option<String> {
        self.pressure.lock().clone()
    }

    /// Gives up what was made of goldens that were built again or removed.
    pub fn check_goldens(&self) {
        for shelf in self.all() {
            self.expect(&shelf);
        }
        self.wake.notify_one();
    }

    /// Gives up everything, and makes nothing any more; returns when nothing is left.
    pub async fn drain(&self) {
        self.stop.cancel();
        for shelf in self.all() {
            self.dispose(shelf.close());
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Memory that the other pools leave for this one's standbys and shells, in bytes.
    fn room_beside(&self, shelf: &Shelf) -> u64 {
        let others = self
            .all()
            .iter()
            .filter(|s| s.name != shelf.name)
            .map(|s| s.memory())
            .fold(0, u64::saturating_add);
        self.memory_budget.saturating_sub(others)
    }

    fn all(&self) -> Vec<Arc<Shelf>> {
        self.shelves().values().cloned().collect()
    }

    fn shelves(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Shelf>>> {
        self.shelves.lock()
    }

    /// Discards in the background.
    fn dispose(&self, items: Vec<shelf::Item>) {
        for item in items {
            self.tasks.spawn(async move {
                let outcome = match item {
                    shelf::Item::Standby(standby) => standby.discard().await,
                    shelf::Item::Shell(shell) => shell.discard().await,
                    // The last one who still forks from it drops it, and thereby discards it.
                    shelf::Item::Zygote(zygote) => match Arc::try_unwrap(zygote) {
                        Ok(zygote) => zygote.discard().await,
                        Err(_) => Ok(()),
                    },
                };
                if let Err(error) = outcome {
                    tracing::warn!(%error, "something of a standby is left behind");
                }
            });
        }
    }
}
