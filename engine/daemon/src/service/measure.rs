//! Figures of a session's VMM. To read them, the kernel walks through all of its page tables, so
//! whoever asks often gets what was measured for others.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mayfly_api::VmmFigures;
use tokio::sync::{Mutex, Semaphore};

/// How long a measurement is good for.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Measurements at a time, of all sessions: each keeps a thread, and one of the processors.
static PLACES: Semaphore = Semaphore::const_new(4);

/// Last measurement of one VMM. One is made at a time, also when those who wanted it are gone.
#[derive(Debug, Default)]
pub(super) struct Measured(Arc<Mutex<Option<(Instant, VmmFigures)>>>);

impl Measured {
    /// Returns the figures of process `pid`, at most a second old.
    ///
    /// # Errors
    /// When the process is gone.
    pub async fn figures(&self, pid: u32) -> io::Result<VmmFigures> {
        let mut last = self.0.clone().lock_owned().await;
        if let Some((at, figures)) = *last
            && at.elapsed() < GOOD_FOR
        {
            return Ok(figures);
        }
        let place = PLACES.acquire().await.map_err(io::Error::other)?;
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
        let measured = Measured::default();
        let (own, gone) = (std::process::id(), u32::MAX >> 2);
        let first = measured.figures(own).await.unwrap();
        assert!(first.private_memory_bytes > 0 && first.threads > 0);
        // So it was not measured again.
        let again = futures::future::join_all((0..100).map(|_| measured.figures(gone))).await;
        assert!(again.into_iter().all(|figures| figures.unwrap() == first));
        Measured::default().figures(gone).await.unwrap_err();
    }
}
