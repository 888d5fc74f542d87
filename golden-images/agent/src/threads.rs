//! Threads for what can block: a frozen or hung file system must hold up nothing but the requests
//! that wait for it.

use mayfly_protocol::{GuestError, Reply};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Threads that wait for file systems at one time, for each kind of work.
const PLACES: usize = 32;

/// How long a thread without work stays.
const KEEP: Duration = Duration::from_secs(5);

/// How long the end of an open phase waits for threads that are at work. What is stuck stays.
const REST: Duration = Duration::from_secs(1);

/// Bytes of stack of a thread, of which it takes what it uses: a directory tree is removed by a
/// function that calls itself for each level.
const STACK: usize = 8 << 20;

/// How long a request waits for a thread while all of them are stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kind of work. A frozen file system (fsfreeze(8)) holds up those who change it, and lets others
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Work that changes nothing.
    Read,
    /// Work that changes a file system.
    Change,
}

/// The threads of one agent. They are started as they are needed.
///
/// A runtime's own threads for blocking work could not be ended before a snapshot is taken.
#[derive(Clone, Debug)]
pub struct Threads {
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    pool: Arc<Pool>,
    left: Arc<Mutex<Left>>,
    patience: Duration,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug, Default)]
struct Pool {
    state: Mutex<State>,
    /// Told when there is a job, when the threads are to end, and when one has.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    /// Those that run, and those that are about to be gone.
    threads: HashMap<ThreadId, JoinHandle<()>>,
    ended: Vec<ThreadId>,
    resting: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

/// Work that found no thread, of which nothing is left to do but to drop it, which may block, too.
#[derive(Default)]
struct Left {
    work: VecDeque<Job>,
    /// Whether a thread is dropping it.
    clearing: bool,
}

impl std::fmt::Debug for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Left").field("work", &self.work.len()).finish_non_exhaustive()
    }
}

impl Threads {
    /// Starts none yet.
    pub fn new() -> Self {
        let places = || Arc::new(Semaphore::new(PLACES));
        Self {
            reads: places(),
            changes: places(),
            pool: Arc::default(),
            left: Arc::default(),
            patience: PATIENCE,
        }
    }

    /// Does `job` in a thread. It is done to its end, whether or not anybody waits for it.
    ///
    /// # Errors
    /// That of the job; EBUSY when all threads of its kind are stuck.
    pub async fn run<T: Send + 'static>(
        &self,
        work: Work,
        job: impl FnOnce() -> Reply<T> + Send + 'static,
    ) -> Reply<T> {
        let places = match work {
            Work::Read => &self.reads,
            Work::Change => &self.changes,
        };
        let place = tokio::time::timeout(self.patience, Arc::clone(places).acquire_owned());
        let Ok(Ok(place)) = place.await else {
            self.leave(Box::new(move || drop(job)));
            return Err(stuck(work));
        };
        let (answer, done) = oneshot::channel();
        let started = Pool::start(
            &self.pool,
            Box::new(move || {
                let result = job();
                drop(place);
                let _ = answer.send(result);
            }),
        );
        started.map_err(|error| GuestError::io("start a thread", &error))?;
        // A job that panics drops its end.
        done.await.unwrap_or_else(|_| Err(GuestError::new("the agent failed in a file request")))
    }

    /// Ends the threads, and waits for it: none but those that are stuck is left in the parked
    /// phase.
    pub fn rest(&self) {
        let deadline = Instant::now() + REST;
        let mut state = self.pool.lock();
        state.resting = true;
        self.pool.changed.notify_all();
        loop {
            let ended = std::mem::take(&mut state.ended);
            let ended: Vec<_> = ended.iter().filter_map(|id| state.threads.remove(id)).collect();
            if !ended.is_empty() {
                drop(state);
                for thread in ended {
                    // What it ran does not panic through it.
                    let _ = thread.join();
                }
                state = self.pool.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.threads.is_empty() || left.is_zero() {
                break;
            }
            let waited = self.pool.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.resting = false;
    }

    /// Does what may block and has no result, one after another in a thread of its own.
    fn leave(&self, work: Job) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.work.push_back(work);
        if !std::mem::replace(&mut left.clearing, true) {
            let shared = Arc::clone(&self.left);
            left.clearing = Pool::start(&self.pool, Box::new(move || clear(&shared))).is_ok();
        }
    }
}

/// A value that may block when it is dropped, as one does that removes a file: that is done in a
/// thread.
pub struct Elsewhere<T: Send + 'static> {
    value: Option<T>,
    threads: Threads,
}

impl<T: Send + 'static> Elsewhere<T> {
    /// Guards `value`.
    pub fn new(value: T, threads: &Threads) -> Self {
        Self { value: Some(value), threads: threads.clone() }
    }

    /// Takes the value out.
    pub fn into_inner(mut self) -> T {
        self.value.take().expect("taken when it is dropped")
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.threads.leave(Box::new(move || drop(value)));
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `job` to a thread, a new one when none is idle.
    fn start(self: &Arc<Self>, job: Job) -> std::io::Result<()> {
        let mut state = self.lock();
        for id in std::mem::take(&mut state.ended) {
            // Dropped: it ends by itself.
            state.threads.remove(&id);
        }
        if state.idle <= state.jobs.len() {
            let pool = Arc::clone(self);
            let thread = std::thread::Builder::new()
                .name("files".into())
                .stack_size(STACK)
                .spawn(move || pool.work())?;
            state.threads.insert(thread.thread().id(), thread);
        }
        state.jobs.push_back(job);
        // To one who waits for a job, not to one who waits for the end of all.
        self.changed.notify_all();
        Ok(())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
                continue;
            }
            if state.resting {
                break;
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, KEEP);
            let timed_out;
            (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            if timed_out.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.ended.push(std::thread::current().id());
        self.changed.notify_all();
    }
}

fn clear(left: &Mutex<Left>) {
    loop {
        let work = {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            let work = left.work.pop_front();
            left.clearing = work.is_some();
            work
        };
        let Some(work) = work else { return };
        work();
    }
}

fn stuck(work: Work) -> GuestError {
    let what = match work {
        Work::Read => "read from",
        Work::Change => "write to",
    };
    GuestError {
        errno: libc::EBUSY,
        message: format!(
            "{PLACES} file requests wait to {what} file systems of the guest that do not answer: \
             thaw or unmount them, or end the session"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Slow(mpsc::Sender<ThreadId>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }

    #[test]
    fn stuck_work_leaves_the_other_kind_alone_and_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let threads = Threads { patience: Duration::from_millis(1), ..Threads::new() };
        runtime.block_on(async {
            let mut thaw = Vec::new();
            for _ in 0..PLACES {
                let (let_go, wait) = mpsc::channel::<()>();
                let threads = threads.clone();
                thaw.push((
                    let_go,
                    tokio::spawn(async move {
                        threads.run(Work::Change, move || Ok(wait.recv().is_err())).await
                    }),
                ));
            }
            while threads.changes.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            // What could not be done is dropped elsewhere, one after another.
            let (dropped, seen) = mpsc::channel();
            for _ in 0..3 {
                let slow = Slow(dropped.clone());
                let job = move || {
                    drop(slow);
                    Ok(())
                };
                assert_eq!(threads.run(Work::Change, job).await.unwrap_err().errno, libc::EBUSY);
            }
            let here = std::thread::current().id();
            assert!(seen.iter().take(3).all(|thread| thread != here));
            assert_eq!(threads.run(Work::Read, || Ok(7)).await, Ok(7));
            for (let_go, task) in thaw {
                drop(let_go);
                assert_eq!(task.await.unwrap(), Ok(true));
            }
            assert_eq!(threads.run(Work::Change, || Ok(8)).await, Ok(8));
            let failed = threads.run::<()>(Work::Read, || panic!("on purpose")).await;
            assert_eq!(failed.unwrap_err().errno, 0);
            threads.rest();
            assert!(threads.pool.lock().threads.is_empty());
            assert_eq!(threads.run(Work::Read, || Ok(9)).await, Ok(9));
            assert_eq!(threads.pool.lock().threads.len(), 1);
        });
    }

    #[test]
    fn one_thread_does_one_request_after_another() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let threads = Threads::new();
            for _ in 0..100 {
                threads.run(Work::Change, || Ok(())).await.unwrap();
                // It is idle a moment after its answer.
                while threads.pool.lock().idle == 0 {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(threads.pool.lock().threads.len(), 1);
        });
    }
}
