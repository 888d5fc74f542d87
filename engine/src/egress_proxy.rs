//! The egress proxy of an engine: the process that reads what guests and servers say to each other.
//! It is started when a session has egress for the first time, and again after it has died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use mayfly_guest::egress::{Limits, Link, NoProxy, Proxies, ProxyProcess};
use mayfly_host::cgroup::{self, SessionCgroup, Subject};
use mayfly_host::instance::Instance;
use mayfly_host::layout::{Layout, mayfly_program};
use mayfly_host::time_scale::scaled;
use mayfly_host::uid::{Uid, UidPool};
use mayfly_vmm::{Confinement, Helper, VmmProcess};
use tokio::sync::{Mutex, OnceCell};

/// Name of its cgroup, among those of the engine's sessions.
const NAME: &str = "egress";
/// Most memory in bytes. A connection takes 150 KiB when all its buffers are full.
const MEMORY: u64 = 1 << 30;
/// Most threads: those of the runtime, with room.
const THREADS: u32 = 32;
/// Most open descriptors. A connection has two.
const DESCRIPTORS: u64 = 16_384;
/// Its last words are the only thing that it writes.
const FILE_BYTES: u64 = 1 << 20;
/// Number of the descriptor that it inherits: its link to the engine.
pub const LINK: std::os::fd::RawFd = 3;
/// How long a process may take to be ready; it needs tens of milliseconds.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Least time from one start to the next.
const START_PAUSE: Duration = Duration::from_millis(200);

/// The egress proxy process of an engine.
#[derive(Debug)]
pub struct EgressProxy {
    layout: Layout,
    instance: Arc<Instance>,
    uids: Arc<UidPool>,
    helper: OnceCell<Helper>,
    running: Mutex<Option<Running>>,
}

/// A process that was started. What it has on the host goes in the order of the fields.
#[derive(Debug)]
struct Running {
    link: ProxyProcess,
    process: VmmProcess,
    _cgroup: SessionCgroup,
    _uid: Uid,
    began: Instant,
}

impl EgressProxy {
    pub(crate) fn new(layout: Layout, instance: Arc<Instance>, uids: Arc<UidPool>) -> Self {
        Self { layout, instance, uids, helper: OnceCell::new(), running: Mutex::default() }
    }

    /// Returns the id of the process, if there is one.
    pub async fn pid(&self) -> Option<u32> {
        self.running.lock().await.as_ref().map(|running| running.process.pid())
    }

    async fn link(&self, limits: Limits) -> Result<Link, NoProxy> {
        let mut running = self.running.lock().await;
        if let Some(now) = running.as_mut() {
            match now.link.begin(limits).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    let said = now.process.last_words();
                    tracing::warn!(%error, said, "the egress proxy has ended; another one is started");
                }
            }
            tokio::time::sleep_until((now.began + START_PAUSE).into()).await;
            *running = None;
        }
        let started = running.insert(self.start().await?);
        started.link.begin(limits).await.map_err(|error| NoProxy { reason: error.to_string() })
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
                return Err(failed(format_args!("it was not ready within {READY_LIMIT:?}")));
            }
        }
        tracing::debug!(pid = process.pid(), "the egress proxy was started");
        Ok(Running { link, process, _cgroup: cgroup, _uid: uid, began: Instant::now() })
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
    fn connect(&self, limits: Limits) -> BoxFuture<'_, Result<Link, NoProxy>> {
        Box::pin(self.link(limits))
    }
}

fn failed(error: impl std::fmt::Display) -> NoProxy {
    NoProxy { reason: error.to_string() }
}
