//! Taking the warmest start there is.

use std::sync::Arc;
use std::time::Instant;

use super::Pools;
use super::shelf::{Item, Shelf};
use crate::cgroup::Limits;
use crate::golden::{GoldenError, LoadedGolden};
use crate::service::error::CreateError;
use crate::session::{Shell, Standby, Zygote};

/// From how far a session can be started, and what it takes.
pub(in crate::service) enum Taken {
    Standby(Box<Standby>),
    Zygote(Arc<Zygote>),
    Shell(Box<Shell>),
    Cold(Arc<LoadedGolden>),
}

impl Pools {
    /// Counts a request for a golden; makes a pool for one that has none.
    pub async fn arrived(&self, golden: &str) -> Result<(), CreateError> {
        self.shelf(golden).await?.arrived(Instant::now());
        self.wake.notify_one();
        Ok(())
    }

    /// The warmest start there is for a session with `limits`. An empty pool is no error.
    pub async fn take(&self, golden: &str, limits: &Limits, cold: bool) -> Result<Taken, CreateError> {
        let shelf = self.shelf(golden).await?;
        if !cold {
            // A process bounds its own files when it begins; another may do so later only with CAP_SYS_RESOURCE
            // (setrlimit(2)), which not every root has.
            let (item, dead) = shelf.pop(limits.disk_bytes.is_none());
            self.dispose(dead);
            self.wake.notify_one();
            match item {
                Some(Item::Standby(standby)) => return Ok(Taken::Standby(standby)),
                Some(Item::Zygote(zygote)) => return Ok(Taken::Zygote(zygote)),
                Some(Item::Shell(shell)) => return Ok(Taken::Shell(shell)),
                None => {}
            }
        }
        let (golden, _) = self.load(&shelf).await.map_err(|error| self.explain(&shelf.name, error))?;
        Ok(Taken::Cold(golden))
    }

    /// The golden was refused by the pager, or is gone: looks again which there are.
    pub async fn look_again(&self) {
        if let Err(error) = self.catalog.refresh().await {
            tracing::warn!(%error, "cannot read the golden images");
        }
        self.check_goldens();
    }

    /// The golden of a shelf, and the generation it belongs to.
    pub(super) async fn load(&self, shelf: &Shelf) -> Result<(Arc<LoadedGolden>, u64), GoldenError> {
        if let (Some(golden), generation) = shelf.golden() {
            return Ok((golden, generation));
        }
        let _one = shelf.loading.lock().await;
        if let (Some(golden), generation) = shelf.golden() {
            return Ok((golden, generation));
        }
        let golden = self.engine.golden(&shelf.name).await?;
        let generation = shelf.set_golden(golden.clone());
        Ok((golden, generation))
    }

    async fn shelf(&self, golden: &str) -> Result<Arc<Shelf>, CreateError> {
        if let Some(shelf) = self.shelves().get(golden) {
            return Ok(shelf.clone());
        }
        if self.catalog.get(golden).is_none() {
            self.look_again().await;
            if self.catalog.get(golden).is_none() {
                return Err(self.unknown(golden));
            }
        }
        let mut shelves = self.shelves();
        let make = || Shelf::new(golden, self.goldens.get(golden).cloned().unwrap_or_default(), false);
        Ok(shelves.entry(golden.to_owned()).or_insert_with(make).clone())
    }

    fn unknown(&self, golden: &str) -> CreateError {
        let names: Vec<String> = self.catalog.entries().into_iter().map(|entry| entry.name).collect();
        let known = if names.is_empty() { "none (mayfly golden build)".to_owned() } else { names.join(", ") };
        CreateError::UnknownGolden { name: golden.to_owned(), known }
    }

    fn explain(&self, golden: &str, error: GoldenError) -> CreateError {
        match error {
            GoldenError::Store(
                mayfly_snapshotter::Error::UnknownGolden { .. } | mayfly_snapshotter::Error::NoStore { .. },
            ) => self.unknown(golden),
            other => other.into(),
        }
    }
}
