//! The egress proxy of an engine: the process that reads what guests and servers say to each other.
//! It is started when a session has egress for the first time, and again after it has died.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use mayfly_guest::egress::{Limits, Link, NoProxy, Proxies, ProxyProcess, SessionLink};
use mayfly_host::cgroup::{self, SessionCgroup, Subject};
use mayfly_host::instance::Instance;
use mayfly_host::layout::{Layout, mayfly_program};
use mayfly_host::time_scale::scaled;
use mayfly_host::uid::{Uid, UidPool};
use mayfly_vmm::{Confinement, Helper, VmmProcess};
use tokio::sync::{Mutex, OnceCell};

/// Name of its cgroup, among those of the engine's sessions.
const NAME: &str = "egress";
/// Most memory in bytes. A connection takes 420 KiB when all its buffers are full, those of the kernel
/// among them, and there are 4000 at most.
const MEMORY: u64 = 2 << 30;
/// Most threads: those of the runtime, with room.
const THREADS: u32 = 32;
/// Most open descriptors: two for each of the most connections, and one for each session. From 16,000
/// in flight on, older kernels hold up whoever uses Unix sockets (`UNIX_INFLIGHT_TRIGGER_GC`).
const DESCRIPTORS: u64 = 15_500;
/// Its last words are the only thing that it writes.
const FILE_BYTES: u64 = 1 << 20;
/// Number of the descriptor that it inherits: its link to the engine.
pub const LINK: RawFd = 3;
/// How long a process may take to be ready, for its first session and for each; it needs tens of
/// milliseconds.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Least time from one start to the next; who asks meanwhile hears why the last one failed.
const START_PAUSE: Duration = Duration::from_millis(500);

/// The egress proxy process of an engine.
#[derive(Debug)]
pub struct EgressProxy {
    state: Mutex<State>,
    helper: OnceCell<Helper>,
    layout: Layout,
    uids: Arc<UidPool>,
    /// Dropped last: an engine that ends removes what is left of it on the host.
    instance: Arc<Instance>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    last: Option<(Instant, NoProxy)>,
}

/// A process that was started. What it has on the host goes in the order of the fields.
#[derive(Debug)]
struct Running {
    link: ProxyProcess,
    process: VmmProcess,
    cgroup: SessionCgroup,
    uid: Uid,
}

impl EgressProxy {
    pub(crate) fn new(layout: Layout, instance: Arc<Instance>, uids: Arc<UidPool>) -> Self {
        Self { state: Mutex::default(), helper: OnceCell::new(), layout, uids, instance }
    }

    /// Returns the id of the process, if there is one.
    pub async fn pid(&self) -> Option<u32> {
        self.state.lock().await.running.as_ref().map(|running| running.process.pid())
    }

    async fn link(&self, limits: Limits) -> Result<SessionLink, NoProxy> {
        let (link, end) = Link::pair().map_err(failed)?;
        let process = self.begin(limits, end).await?;
        // A process that hangs, or has no descriptor left, takes part in nothing.
        match tokio::time::timeout(scaled(READY_LIMIT), link.ready()).await {
            Ok(Ok(())) => Ok(SessionLink { link, process }),
            Ok(Err(error)) => Err(failed(format_args!("it does not serve the session: {error}"))),
            Err(_) => {
                self.end(process).await;
                Err(failed(format_args!("it was silent for {READY_LIMIT:?}")))
            }
        }
    }

    /// Gives a process the session, and returns the id of the process.
    async fn begin(&self, limits: Limits, end: OwnedFd) -> Result<u32, NoProxy> {
        let mut state = self.state.lock().await;
        if let Some(running) = state.running.as_mut() {
            match tokio::time::timeout(scaled(READY_LIMIT), running.link.begin(limits, end.as_fd()))
                .await
            {
                Ok(Ok(())) => return Ok(running.process.pid()),
                outcome => {
                    let said = running.process.last_words();
                    tracing::warn!(
                        ?outcome,
                        said,
                        "the egress proxy is ended, and another started"
                    );
                }
            }
        }
        if let Some(lost) = state.running.take() {
            lost.end().await;
        }
        if let Some((at, error)) = &state.last
            && at.elapsed() < START_PAUSE
        {
            return Err(error.clone());
        }
        let started = self.start().await;
        let last = started.as_ref().err().cloned();
        state.last = Some((Instant::now(), last.unwrap_or_else(|| failed("it ended at once"))));
        let running = state.running.insert(started?);
        running.link.begin(limits, end.as_fd()).await.map_err(failed)?;
        Ok(running.process.pid())
    }

    /// Ends the process if it is still this one.
    async fn end(&self, pid: u32) {
        let mut state = self.state.lock().await;
        if state.running.as_ref().is_some_and(|running| running.process.pid() == pid)
            && let Some(running) = state.running.take()
        {
            running.end().await;
        }
    }

    async fn start(&self) -> Result<Running, NoProxy> {
        let helper = self.helper.get_or_try_init(|| self.make_helper()).await?;
        let (link, end) = ProxyProcess::pair().map_err(failed)?;
        let uid = self.uids.take().map_err(failed)?;
        let (name, disk_dir) = (self.instance.cgroup_name(NAME), self.layout.disks());
        let made = tokio::task::spawn_blocking(move || {
            let subject = Subject { guest_memory: MEMORY, disk_dir };
            let limits = cgroup::Limits {
                memory_bytes: Some(MEMORY),
                threads: THREADS,
                ..cgroup::Limits::default()
            };
            SessionCgroup::create(&name, &limits, subject)
        });
        let cgroup = made.await.map_err(failed)?.map_err(failed)?;
        let confinement = Confinement {
            uid: Some(uid.get()),
            cgroup: cgroup.entrance().map_err(failed)?,
            file_bytes: FILE_BYTES,
            threads: THREADS,
            open_files: DESCRIPTORS.min(mayfly_host::descriptors::limit()),
        };
        let inherit = vec![(end, LINK)];
        let process = helper.start(vec!["egress-proxy".to_owned()], inherit, confinement).await;
        let mut process = process.map_err(failed)?;
        // Nobody's bytes before it is ready for them.
        match tokio::time::timeout(scaled(READY_LIMIT), link.ready()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                let exit = process.kill().await.map_err(failed)?;
                return Err(failed(format_args!("{exit}: {}", process.last_words())));
            }
            Err(_) => {
                let started = Running { link, process, cgroup, uid };
                started.end().await;
                return Err(failed(format_args!("it was not ready within {READY_LIMIT:?}")));
            }
        }
        tracing::debug!(pid = process.pid(), "the egress proxy was started");
        Ok(Running { link, process, cgroup, uid })
    }

    async fn make_helper(&self) -> Result<Helper, NoProxy> {
        let staging = self.layout.run().join("jail");
        let make = move || {
            let program = mayfly_program().map_err(failed)?;
            Layout::create(&staging).map_err(failed)?;
            Helper::new(&program, &staging).map_err(failed)
        };
        tokio::task::spawn_blocking(make).await.map_err(failed)?
    }
}

impl Proxies for EgressProxy {
    fn connect(&self, limits: Limits) -> BoxFuture<'_, Result<SessionLink, NoProxy>> {
        Box::pin(self.link(limits))
    }

    fn distrust(&self, process: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            tracing::error!(pid = process, "the egress proxy broke the protocol and is ended");
            self.end(process).await;
        })
    }
}

impl Running {
    /// Ends the process, and removes what it has on the host.
    async fn end(mut self) {
        if let Err(error) = self.process.kill().await {
            tracing::warn!(%error, "the egress proxy cannot be ended");
        }
        let Self { process, cgroup, uid, .. } = self;
        drop((process, uid));
        let removed = tokio::task::spawn_blocking(move || cgroup.remove()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "left behind");
        }
    }
}

fn failed(error: impl std::fmt::Display) -> NoProxy {
    NoProxy { reason: error.to_string() }
}
