//! Figures of a session's VMM. To read them, the kernel walks through all of its page tables, so
//! whoever asks often gets what was measured for others.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use mayfly_api::{TenantName, VmmFigures};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// How long a measurement is good for.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Measurements at a time, of all sessions: each keeps a thread, and one of the processors.
static PLACES: LazyLock<Places> = LazyLock::new(|| Places::new(4));

/// Places for measurements. A tenant has at most half of them, and stands in the queue for no more,
/// so that another's turn comes after two of each at most.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    of_each: usize,
    /// Those of each tenant that has sessions.
    of_tenants: parking_lot::Mutex<HashMap<TenantName, Weak<Semaphore>>>,
}

/// Place of a measurement under way: one of its tenant's, and one of all.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Places {
    fn new(all: usize) -> Self {
        let of_tenants = parking_lot::Mutex::default();
        Self { all: Arc::new(Semaphore::new(all)), of_each: (all / 2).max(1), of_tenants }
    }

    /// The places of one tenant.
    fn of(&self, tenant: &TenantName) -> Arc<Semaphore> {
        let mut of_tenants = self.of_tenants.lock();
        if let Some(places) = of_tenants.get(tenant).and_then(Weak::upgrade) {
            return places;
        }
        of_tenants.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.of_each));
        of_tenants.insert(tenant.clone(), Arc::downgrade(&places));
        places
    }

    /// Waits for a place of a tenant whose places are `own`. Cancel-safe.
    async fn take(&self, own: &Arc<Semaphore>) -> io::Result<Place> {
        let own = own.clone().acquire_owned().await.map_err(io::Error::other)?;
        let one = self.all.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((own, one))
    }
}

/// Last measurement of one VMM. One is made at a time, also when those who wanted it are gone.
#[derive(Debug)]
pub(super) struct Measured {
    last: Arc<Mutex<Option<(Instant, VmmFigures)>>>,
    /// Places of its tenant.
    places: Arc<Semaphore>,
}

impl Measured {
    /// Creates that of a VMM of `tenant`, which was not measured yet.
    pub fn new(tenant: &TenantName) -> Self {
        Self { last: Arc::default(), places: PLACES.of(tenant) }
    }

    /// Returns the figures of process `pid`, at most a second old.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn figures(&self, pid: u32) -> io::Result<VmmFigures> {
        let mut last = self.last.clone().lock_owned().await;
        if let Some((at, figures)) = *last
            && at.elapsed() < GOOD_FOR
        {
            return Ok(figures);
        }
        let place = PLACES.take(&self.places).await?;
        let measure = tokio::task::spawn_blocking(move || {
            let figures = figures_of(pid)?;
            *last = Some((Instant::now(), figures));
            drop(place);
            Ok(figures)
        });
        measure.await.map_err(io::Error::other)?
    }
}

fn figures_of(pid: u32) -> io::Result<VmmFigures> {
    let process = i32::try_from(pid).map_err(io::Error::other)?;
    let stat =
        procfs::process::Process::new(process).and_then(|p| p.stat()).map_err(io::Error::other)?;
    Ok(VmmFigures {
        private_memory_bytes: mayfly_host::memory::private_bytes(pid)?,
        cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        threads: stat.num_threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_again_gets_what_was_measured_and_a_process_that_is_gone_has_none() {
        let measured = Measured::new(&TenantName::local());
        let (own, gone) = (std::process::id(), u32::MAX >> 2);
        let first = measured.figures(own).await.unwrap();
        assert!(first.private_memory_bytes > 0 && first.threads > 0);
        // So it was not measured again.
        let again = futures::future::join_all((0..100).map(|_| measured.figures(gone))).await;
        assert!(again.into_iter().all(|figures| figures.unwrap() == first));
        Measured::new(&TenantName::local()).figures(gone).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_tenant_that_measures_much_leaves_places_to_others() {
        let places = Arc::new(Places::new(4));
        let [busy, other] = ["busy", "other"].map(|name| TenantName::new(name).unwrap());
        let (of_busy, of_other) = (places.of(&busy), places.of(&other));
        assert!(Arc::ptr_eq(&of_busy, &places.of(&busy)));
        let take = |own: &Arc<Semaphore>| {
            let (places, own) = (places.clone(), own.clone());
            tokio::spawn(async move { places.take(&own).await.unwrap() })
        };
        let asked: Vec<_> = (0..20).map(|_| take(&of_busy)).collect();
        tokio::task::yield_now().await;
        assert_eq!(asked.iter().filter(|asked| asked.is_finished()).count(), 2);
        let (first, second) = (take(&of_other).await.unwrap(), take(&of_other).await.unwrap());
        assert_eq!(places.all.available_permits(), 0);
        // A third one's turn comes with the next place, though eighteen have asked before.
        let third = take(&places.of(&TenantName::new("third").unwrap()));
        tokio::task::yield_now().await;
        drop(first);
        drop(third.await.unwrap());
        drop((second, of_other));
        // Nothing is left of tenants without sessions.
        places.of(&TenantName::local());
        assert_eq!(places.of_tenants.lock().len(), 2);
        asked.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
