//! The engine: what a host's sessions share, and the way to start one.

use std::path::PathBuf;
use std::sync::Arc;

use mayfly_host::cgroup::{Limits, Place};
use mayfly_host::instance::Instance;
use mayfly_host::layout::{self, Layout, LayoutError};
use mayfly_host::project_quota::NoProjectQuota;
use mayfly_host::uid::{BadRange, UidPool, UidRange};
use mayfly_vmm::{Accel, Driver, Purpose, VmmError, qemu};
use tokio::sync::OnceCell;

use crate::disk_space::{DiskSpace, DiskUsage};
use crate::egress_proxy::EgressProxy;
use crate::golden::{ColdBoot, Extent, GoldenError, LoadedGolden};
use crate::pager_host::{self, PagerHostError};
use crate::session::{Resources, Session, SessionError, Shell, Standby, Zygote};

/// Reason why an engine could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Sessions and goldens need privileges that only root has.
    #[error("mayfly needs root (userfaultfd, cgroups, one user id per VMM): run it with sudo")]
    NotRoot,
    /// Our own files.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The VMM program.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The pager process.
    #[error(transparent)]
    Pager(#[from] PagerHostError),
    /// `/dev/userfaultfd` cannot be used.
    #[error(transparent)]
    Userfaultfd(#[from] mayfly_host::userfaultfd::UffdError),
    /// Cgroups cannot be used.
    #[error(transparent)]
    Cgroup(#[from] mayfly_host::cgroup::CgroupError),
    /// `MAYFLY_UIDS` cannot be used.
    #[error("MAYFLY_UIDS: {0}")]
    Uids(BadRange),
    /// `MAYFLY_TIME_SCALE` cannot be used.
    #[error(transparent)]
    TimeScale(#[from] mayfly_host::time_scale::BadTimeScale),
}

impl From<BadRange> for EngineError {
    fn from(cause: BadRange) -> Self {
        Self::Uids(cause)
    }
}

/// Options for the start of one session.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Bounds on its VMM.
    pub limits: Limits,
    /// Record which memory it touches first, see [`Session::recording`].
    pub record: bool,
}

/// Engine that starts sessions on this host.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use mayfly_engine::{Engine, SessionOptions};
/// use mayfly_guest::channel::ExecRequest;
/// use mayfly_host::layout::Layout;
///
/// let engine = Engine::open(Layout::from_env()).await?;
/// let golden = engine.golden("default").await?;
/// let session = engine.start_session(&golden, &SessionOptions::default()).await?;
/// let output = session.guest().exec(ExecRequest::new(["uname", "-r"])).await?.output().await?;
/// println!("{}", String::from_utf8_lossy(&output.stdout));
/// session.discard().await?;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    layout: Layout,
    driver: Arc<dyn Driver>,
    uids: Arc<UidPool>,
    disks: Arc<DiskSpace>,
    instance: Arc<Instance>,
    egress: Arc<EgressProxy>,
    preload: PathBuf,
    /// Whether user namespaces can be made, once that was tried.
    namespaces: OnceCell<bool>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine with the files of `layout`: finds the VMM, checks privileges, removes what
    /// dead engines left. VMMs get user ids of the range in `MAYFLY_UIDS`, or of the default one.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn open(layout: Layout) -> Result<Self, EngineError> {
        let uids = UidRange::from_env()?;
        Self::open_with(layout, uids).await
    }

    /// Opens an engine as [`Engine::open`] does, with user ids of `uids` for VMMs.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn open_with(layout: Layout, uids: UidRange) -> Result<Self, EngineError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(EngineError::NotRoot);
        }
        mayfly_host::time_scale::from_env()?;
        drop(mayfly_host::userfaultfd::open()?);
        let place = Place::of_this_process()?;
        let preload = layout::preload_library()?;
        let (library, paths) = (preload.clone(), layout.clone());
        let driver = tokio::task::spawn_blocking(move || qemu::QemuDriver::find(&library, &paths))
            .await
            .map_err(|e| VmmError::Io { action: "look at QEMU", cause: e.into() })??;
        Layout::create(layout.home())?;
        Layout::create(&layout.disks())?;
        let disks = Arc::new(DiskSpace::of(&layout.disks()));
        let instance = Arc::new(Instance::enter(&layout)?);
        place.prepare_for(instance.name())?;
        if let Some(limited) = place.limitation() {
            tracing::warn!("{limited}");
        }
        let uids = Arc::new(UidPool::new(uids));
        let egress = EgressProxy::new(layout.clone(), instance.clone(), uids.clone());
        Ok(Self {
            layout,
            driver: Arc::new(driver),
            uids,
            disks,
            instance,
            egress: Arc::new(egress),
            preload,
            namespaces: OnceCell::new(),
        })
    }

    /// Returns the layout of the engine's files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the VMM driver.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Returns the preload library in use.
    pub fn preload(&self) -> &std::path::Path {
        &self.preload
    }

    /// Returns what this engine removed of dead ones when it was opened, one line for each.
    pub fn reaped(&self) -> &[String] {
        self.instance.reaped()
    }

    /// Returns the engine process on this host: its folder, and its name in cgroups.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Returns the process through which sessions reach the outside.
    pub fn egress_proxy(&self) -> &Arc<EgressProxy> {
        &self.egress
    }

    /// The space for the disks of VMMs, and what of it is promised to those that there are. Blocks
    /// for one system call for each of them.
    ///
    /// # Errors
    /// The file system cannot be looked at.
    pub fn disk_usage(&self) -> std::io::Result<DiskUsage> {
        self.disks.usage()
    }

    /// Why disks are bounded by the size of their files alone and not by project quotas, where they
    /// are.
    pub fn no_project_quotas(&self) -> Option<&NoProjectQuota> {
        self.disks.no_quotas()
    }

    pub(crate) fn disks(&self) -> &Arc<DiskSpace> {
        &self.disks
    }

    /// Returns the user ids that VMMs get.
    pub fn uid_range(&self) -> UidRange {
        self.uids.range()
    }

    pub(crate) fn uids(&self) -> &Arc<UidPool> {
        &self.uids
    }

    pub(crate) fn guest_agent(&self) -> Result<PathBuf, GoldenError> {
        layout::guest_agent().map_err(GoldenError::Layout)
    }

    /// Loads golden `name` for sessions.
    ///
    /// # Errors
    /// [`GoldenError`]: unknown, damaged, or made on a host that does not match.
    pub async fn golden(&self, name: &str) -> Result<Arc<LoadedGolden>, GoldenError> {
        let (layout, driver, name) = (self.layout.clone(), self.driver.clone(), name.to_owned());
        let load =
            tokio::task::spawn_blocking(move || LoadedGolden::open(&layout, &*driver, &name));
        match load.await {
            Ok(golden) => golden.map(Arc::new),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Spawns a VMM that waits for the golden's snapshot; see [`Shell::start`].
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn spawn_shell(
        &self,
        golden: &Arc<LoadedGolden>,
        options: &SessionOptions,
    ) -> Result<Shell, SessionError> {
        let resources = self.resources().await?;
        Shell::spawn(&resources, golden.clone(), &options.limits, options.record, Purpose::Restore)
            .await
    }

    async fn resources(&self) -> Result<Resources, SessionError> {
        let layout = self.layout.clone();
        let pager = tokio::task::spawn_blocking(move || pager_host::connect_or_start(&layout))
            .await
            .map_err(|e| SessionError::Io { action: "reach the pager", cause: e.into() })??;
        Ok(Resources {
            driver: self.driver.clone(),
            pager,
            instance: self.instance.clone(),
            uids: self.uids.clone(),
            overlay_dir: self.layout.disks(),
            disks: self.disks.clone(),
            egress: self.egress.clone(),
        })
    }

    /// Makes a hot standby from nothing: shell, restore, an answer of the agent and of Docker,
    /// freeze.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn prepare_standby(
        &self,
        golden: &Arc<LoadedGolden>,
        options: &SessionOptions,
    ) -> Result<Standby, SessionError> {
        self.spawn_shell(golden, options).await?.prepare().await
    }

    /// Returns whether VMMs can be forked: not under KVM, where a standby costs little without, and
    /// not where this host refuses user namespaces to unprivileged processes, which is tried once
    /// and told in the log.
    pub async fn can_fork(&self, accel: Accel) -> bool {
        if !self.driver.can_fork(accel) {
            return false;
        }
        let tried = self.namespaces.get_or_init(|| async {
            match tokio::task::spawn_blocking(mayfly_host::namespaces::check).await {
                Ok(Err(refusal)) => {
                    tracing::warn!("{refusal}");
                    false
                }
                // Without an answer a fork itself will tell.
                Ok(Ok(())) | Err(_) => true,
            }
        });
        *tried.await
    }

    /// Makes a zygote of a golden, from which standbys are forked, and has it take the first steps
    /// of its sessions as far as `extent`; `None` where its VMM cannot be
    /// forked, see [`Engine::can_fork`].
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn prepare_zygote(
        &self,
        golden: &Arc<LoadedGolden>,
        limits: &Limits,
        extent: Extent,
    ) -> Result<Option<Zygote>, SessionError> {
        if !self.can_fork(golden.shape().accel).await {
            return Ok(None);
        }
        let resources = self.resources().await?;
        Zygote::prepare(resources, golden.clone(), limits, extent).await.map(Some)
    }

    /// Boots the golden's kernel and disk instead of restoring its snapshot, with the same driver:
    /// what a start would be without snapshots. It returns when the agent has answered; Docker
    /// starts after it.
    ///
    /// # Errors
    /// [`GoldenError`]; nothing is left behind then.
    pub async fn cold_boot(&self, golden: &Arc<LoadedGolden>) -> Result<ColdBoot, GoldenError> {
        ColdBoot::start(self, golden.clone()).await
    }

    /// Starts a session from nothing: shell, restore, identity.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is left behind then.
    pub async fn start_session(
        &self,
        golden: &Arc<LoadedGolden>,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        self.spawn_shell(golden, options).await?.start().await
    }
}
