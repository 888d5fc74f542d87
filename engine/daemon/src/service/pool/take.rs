//! Taking the warmest start there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use mayfly_engine::golden::{GoldenError, LoadedGolden};
use mayfly_engine::session::{Shell, Standby, Zygote};
use mayfly_host::cgroup::Limits;
use tokio::sync::OwnedSemaphorePermit;

use super::Pools;
use super::shelf::{Item, Load, LoadError, Shelf};
use crate::service::deadline::Deadline;
use crate::service::error::CreateError;

/// What a client is told to wait for a zygote that is in the making.
const ZYGOTE_RETRY: Duration = Duration::from_secs(5);
/// Loads of a golden that may be of one which was replaced while it was loaded.
const RELOADS: usize = 3;
/// What a client is told to wait for a golden image that is being checked.
const CHECK_RETRY: Duration = Duration::from_secs(5);

/// From how far a session can be started, and what it takes.
pub(in crate::service) enum Taken {
    Standby(Box<Standby>),
    Zygote(Arc<Zygote>),
    Shell(Box<Shell>),
    Cold(Arc<LoadedGolden>),
}

impl Pools {
    /// Counts a request for a golden; makes a pool for one that has none. Returns whether it need
    /// not wait for the golden to be loaded.
    ///
    /// From here on the request gets no session of a golden that another had replaced before.
    pub async fn arrived(&self, golden: &str) -> Result<bool, CreateError> {
        self.follow().await;
        let shelf = self.shelf(golden).await?;
        shelf.arrived(Instant::now());
        self.wake.notify_one();
        Ok(shelf.golden().0.is_some() || shelf.is_warm())
    }

    /// Loads a golden; waits for that no longer than `deadline`. The first load after a boot of the
    /// host reads all of its disks, and goes on when nobody waits for it any more.
    ///
    /// # Errors
    /// [`CreateError::GoldenChecking`] when the deadline has passed; else as loading.
    pub async fn ready(
        self: &Arc<Self>,
        golden: &str,
        deadline: &Deadline,
    ) -> Result<(), CreateError> {
        self.load_within(&self.shelf(golden).await?, deadline).await.map(drop)
    }

    /// Loads all goldens, one after the other, so that requests need not wait for their disks to be
    /// read.
    pub async fn load_all(self: Arc<Self>) {
        for entry in self.catalog.entries() {
            let begun = Instant::now();
            let loaded = match self.shelf(&entry.name).await {
                Ok(shelf) => self.load(&shelf).await,
                Err(error) => Err(error),
            };
            match loaded {
                Ok(_) => {
                    tracing::info!(golden = %entry.name, took = ?begun.elapsed(), "golden image is ready");
                }
                Err(error) => {
                    tracing::warn!(golden = %entry.name, %error, "golden image cannot be used");
                }
            }
        }
    }

    /// Waits until a session with `limits` can be started of what is there, while a zygote is in the
    /// making; a few requests need not, and start cold meanwhile, at many times the cost. Returns
    /// the place that such a one takes. No place in the queue is to be held meanwhile.
    ///
    /// # Errors
    /// [`CreateError::DeadlinePassed`], or [`CreateError::ShuttingDown`].
    pub async fn warm(
        &self,
        golden: &str,
        limits: &Limits,
        deadline: &Deadline,
    ) -> Result<Option<OwnedSemaphorePermit>, CreateError> {
        let shelf = self.shelf(golden).await?;
        loop {
            // Before the look at the shelf, so that nothing is missed.
            let mut changed = std::pin::pin!(shelf.changed());
            changed.as_mut().enable();
            if shelf.is_closed() {
                return Err(CreateError::ShuttingDown);
            }
            if !self.is_worth_waiting(&shelf, limits) {
                return Ok(None);
            }
            tokio::select! {
                biased;
                place = shelf.cold_places.clone().acquire_owned() => return Ok(place.ok()),
                () = changed => {}
                () = tokio::time::sleep(deadline.left()) => {
                    let (waited, retry_after) = (deadline.waited(), ZYGOTE_RETRY);
                    return Err(CreateError::DeadlinePassed { waited, retry_after });
                }
            }
        }
    }

    /// Whether a request has to wait in [`Pools::warm`].
    pub async fn is_to_wait(&self, golden: &str, limits: &Limits) -> Result<bool, CreateError> {
        let shelf = self.shelf(golden).await?;
        Ok(self.is_worth_waiting(&shelf, limits))
    }

    /// No zygote fits a session that may have a larger disk than others of its golden.
    fn is_worth_waiting(&self, shelf: &Shelf, limits: &Limits) -> bool {
        let fits = limits.disk_bytes.is_none()
            || self.catalog.get(&shelf.name).is_some_and(|entry| {
                limits.file_bytes(entry.disk_bytes)
                    <= Limits::default().file_bytes(entry.disk_bytes)
            });
        fits && !shelf.has_one_for(limits)
            && shelf.zygote_is_coming(Instant::now(), self.room_beside(shelf))
    }

    /// Takes the warmest start there is for a session with `limits`; with `cold` a cold one. An empty
    /// pool is no error. `None` when it should wait in [`Pools::warm`], for a zygote that is in the
    /// making. `deadline` bounds the wait for a golden that is not loaded any more.
    ///
    /// # Errors
    /// As [`Pools::ready`].
    pub async fn take(
        self: &Arc<Self>,
        golden: &str,
        limits: &Limits,
        cold: bool,
        deadline: &Deadline,
    ) -> Result<Option<Taken>, CreateError> {
        let shelf = self.shelf(golden).await?;
        if !cold {
            let (item, dead) = shelf.pop(limits);
            self.dispose(dead);
            self.wake.notify_one();
            match item {
                Some(Item::Standby(standby)) => return Ok(Some(Taken::Standby(standby))),
                Some(Item::Zygote(zygote)) => return Ok(Some(Taken::Zygote(zygote))),
                Some(Item::Shell(shell)) => return Ok(Some(Taken::Shell(shell))),
                None if self.is_worth_waiting(&shelf, limits) => return Ok(None),
                None => {}
            }
        }
        Ok(Some(Taken::Cold(self.load_within(&shelf, deadline).await?)))
    }

    /// Takes note that a fork of the zygote of `golden` for a request failed.
    pub fn fork_failed(&self, golden: &str) {
        let shelf = self.shelves().get(golden).cloned();
        if let Some(shelf) = shelf {
            self.look_at_zygote(&shelf);
        }
    }

    /// Looks whether the goldens are still those that we know, and which there are if not.
    pub(super) async fn follow(&self) {
        if !self.catalog.is_current() {
            self.look_again().await;
        }
    }

    /// Whether what was begun of a golden in this generation is of no use any more: the golden was
    /// built again or removed meanwhile.
    pub(super) async fn is_outdated(&self, shelf: &Shelf, generation: u64) -> bool {
        self.follow().await;
        self.expect(shelf);
        !self.catalog.has(&shelf.name) || shelf.golden().1 != generation
    }

    /// Has a shelf give up what was made of another golden than there is now.
    pub(super) fn expect(&self, shelf: &Shelf) {
        self.dispose(shelf.expect(self.catalog.identity(&shelf.name).as_ref()));
    }

    /// Looks again which goldens there are, after the pager has refused one or it is gone.
    pub async fn look_again(&self) {
        if let Err(error) = self.catalog.refresh().await {
            tracing::warn!(%error, "cannot read the golden images");
        }
        self.check_goldens();
    }

    async fn load_within(
        self: &Arc<Self>,
        shelf: &Arc<Shelf>,
        deadline: &Deadline,
    ) -> Result<Arc<LoadedGolden>, CreateError> {
        let Ok(loaded) = tokio::time::timeout(deadline.left(), self.load(shelf)).await else {
            let (name, waited) = (shelf.name.clone(), deadline.waited());
            return Err(CreateError::GoldenChecking { name, waited, retry_after: CHECK_RETRY });
        };
        loaded.map(|(golden, _)| golden)
    }

    /// The golden of a shelf, and the generation it belongs to. Cancel-safe: the load goes on.
    pub(super) async fn load(
        self: &Arc<Self>,
        shelf: &Arc<Shelf>,
    ) -> Result<(Arc<LoadedGolden>, u64), CreateError> {
        let (mut joined, mut reloads) = (false, 0);
        loop {
            if let (Some(golden), generation) = shelf.golden() {
                return Ok((golden, generation));
            }
            let (load, own) = shelf.load(|| self.begin_load(shelf.clone()));
            match load.await {
                Ok(loaded) => {
                    // It may have begun before the golden was built again.
                    if !self.is_outdated(shelf, loaded.1).await || reloads == RELOADS {
                        return Ok(loaded);
                    }
                    reloads += 1;
                }
                Err(LoadError::Closed) => return Err(CreateError::ShuttingDown),
                // One that was begun before this request may have failed for what has been mended
                // since; the next was not.
                Err(LoadError::Golden(error)) if own || joined => {
                    return Err(self.explain(&shelf.name, error));
                }
                Err(LoadError::Golden(_)) => joined = true,
            }
        }
    }

    fn begin_load(self: &Arc<Self>, shelf: Arc<Shelf>) -> Load {
        tracing::info!(golden = %shelf.name, "golden image is being checked");
        let (pools, stop, waited_for) = (self.clone(), self.stop.clone(), shelf.clone());
        let load = self.tasks.spawn(async move {
            let outcome = tokio::select! {
                () = stop.cancelled() => Err(LoadError::Closed),
                loaded = pools.engine.golden(&shelf.name) => loaded.map_err(|error| LoadError::Golden(Arc::new(error))),
            };
            let outcome = outcome.map(|golden| {
                let (generation, other) = shelf.set_golden(golden.clone());
                pools.dispose(other);
                (golden, generation)
            });
            shelf.loaded();
            outcome
        });
        let outcome = async move {
            load.await.unwrap_or_else(|_| {
                // It has panicked.
                waited_for.loaded();
                Err(LoadError::Closed)
            })
        };
        outcome.boxed().shared()
    }

    async fn shelf(&self, golden: &str) -> Result<Arc<Shelf>, CreateError> {
        let known = self.shelves().get(golden).cloned();
        if let Some(shelf) = known {
            self.expect(&shelf);
            return Ok(shelf);
        }
        if self.catalog.get(golden).is_none() {
            self.look_again().await;
            if self.catalog.get(golden).is_none() {
                return Err(self.unknown(golden));
            }
        }
        let mut shelves = self.shelves();
        let make =
            || Shelf::new(golden, self.goldens.get(golden).cloned().unwrap_or_default(), false);
        Ok(shelves.entry(golden.to_owned()).or_insert_with(make).clone())
    }

    fn unknown(&self, golden: &str) -> CreateError {
        let names: Vec<String> =
            self.catalog.entries().into_iter().map(|entry| entry.name).collect();
        let known = if names.is_empty() {
            "none (mayfly golden build)".to_owned()
        } else {
            names.join(", ")
        };
        CreateError::UnknownGolden { name: golden.to_owned(), known }
    }

    fn explain(&self, golden: &str, error: Arc<GoldenError>) -> CreateError {
        match *error {
            GoldenError::Store(
                mayfly_snapshotter::Error::UnknownGolden { .. }
                | mayfly_snapshotter::Error::NoStore { .. },
            ) => self.unknown(golden),
            _ => error.into(),
        }
    }
}
