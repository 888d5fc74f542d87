//! The service: what all requests share, its start, its state and its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use mayfly_api::{
    CreateSession, DiskStatus, EgressPolicy, EgressStatus, GoldenStatus, ServiceStatus,
    SessionInfo, TenantName,
};
use mayfly_engine::{Engine, kvm};
use mayfly_vmm::{Accel, EMULATION_WARNING};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Gate, Limiters, pressure};
use super::blocking;
use super::capacity::Capacity;
use super::catalog::Catalog;
use super::ceilings::HostSize;
use super::config::ServiceConfig;
use super::error::{CreateError, EgressChangeError, LookupError, ServiceError};
use super::idempotency::Idempotency;
use super::journal::{Journal, JournalError};
use super::live::{EndKind, LiveSession};
use super::pool::Pools;
use super::reap::{self, Reaped};
use super::registry::Keeper;
use super::shares::Account;
use super::state::ServiceState;
use super::withdrawn::withdrawable;
use crate::observe::Metrics;

/// The engine as a daemon. Cheap to clone; all clones are the same service.
#[derive(Clone)]
pub struct Service {
    pub(super) inner: Arc<ServiceState>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("sessions", &self.inner.keeper.registry.len())
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Starts the service on `engine`: takes the journal, removes what a dead daemon left, and
    /// begins to fill the pools.
    ///
    /// # Errors
    /// [`ServiceError`]: another daemon runs in the same home, the configuration cannot be used, the store cannot be read.
    pub async fn start(engine: Arc<Engine>, config: ServiceConfig) -> Result<Self, ServiceError> {
        config.check()?;
        let layout = engine.layout().clone();
        let (journal_dir, vmms) = (config.journal_dir(&layout), engine.uid_range());
        let (journal, left) = blocking(move || {
            let journal = Journal::open(&journal_dir)?;
            let left = reap::reap(&journal, |pid| reap::is_of(vmms, pid))?;
            Ok::<_, JournalError>((journal, left))
        })
        .await?;
        let of_engines = engine.reaped().iter().cloned().map(|line| Reaped { tenant: None, line });
        let reaped: Vec<Reaped> = of_engines.chain(left).collect();
        for Reaped { line, .. } in &reaped {
            tracing::warn!("removed what a dead daemon left: {line}");
        }
        let catalog = Arc::new(Catalog::new(&layout));
        catalog
            .refresh()
            .await
            .map_err(|cause| ServiceError::Store { store: layout.store(), cause })?;
        for name in config.goldens.keys().filter(|name| !catalog.has(name)) {
            tracing::warn!(golden = %name, "the configuration names a golden image that there is not; its pool begins when it is built");
        }
        warn_of_host(&engine, &catalog).await;
        let metrics = Arc::new(Metrics::new());
        metrics.leaks(0);
        let gate = Gate::new(&config.admission, config.known_tenants(), metrics.clone());
        let pools =
            Pools::new(engine.clone(), &config, gate.clone(), metrics.clone(), catalog.clone());
        let inner = ServiceState {
            limiters: Limiters::default(),
            idempotency: Arc::new(Idempotency::new(config.idempotency_ttl)),
            keeper: Arc::new(Keeper::new(journal, metrics.clone())),
            host: host(&engine, &catalog),
            host_size: HostSize::of_this_host(),
            capacity: Capacity::new(&config),
            started: Instant::now(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            pressure: Arc::default(),
            disk: Arc::default(),
            engine,
            config,
            metrics,
            gate,
            pools,
            catalog,
            reaped,
        };
        let service = Self { inner: Arc::new(inner) };
        service.spawn_tasks();
        Ok(service)
    }

    fn spawn_tasks(&self) {
        let inner = &self.inner;
        let stop = inner.stop.clone();
        let run = |task| {
            let stop = stop.clone();
            inner.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            });
        };
        let run: &dyn Fn(futures::future::BoxFuture<'static, ()>) = &run;
        let (gate, pools, shown) =
            (inner.gate.clone(), inner.pools.clone(), inner.pressure.clone());
        let changed = move |reason: Option<String>| {
            gate.set_pressure(reason.clone());
            pools.set_pressure(reason.clone());
            *shown.lock() = reason;
        };
        let (engine, metrics, seen) =
            (inner.engine.clone(), inner.metrics.clone(), inner.disk.clone());
        let disk = move || {
            let usage = engine.disk_usage();
            let usage =
                usage.inspect_err(|error| tracing::debug!(%error, "cannot look at the disk")).ok();
            usage.iter().for_each(|usage| metrics.disk(usage));
            *seen.lock() = usage;
            usage
        };
        let metrics = inner.metrics.clone();
        run(Box::pin(pressure::watch(inner.config.pressure.clone(), disk, metrics, changed)));
        run(Box::pin(inner.pools.clone().refill()));
        run(Box::pin(inner.pools.clone().load_all()));
        let (catalog, pools) = (inner.catalog.clone(), inner.pools.clone());
        run(Box::pin(async move { catalog.watch(move || pools.check_goldens()).await }));
    }

    /// Returns the configuration it runs with.
    pub fn config(&self) -> &ServiceConfig {
        &self.inner.config
    }

    /// Returns the account of the bytes that may be held for a tenant.
    pub fn bytes_of(&self, tenant: &TenantName) -> Account {
        self.inner.capacity.bytes(&self.inner.config, tenant)
    }

    /// Returns the account of the connections that a tenant may have over TCP.
    pub fn connections_of(&self, tenant: &TenantName) -> Account {
        self.inner.capacity.connections(&self.inner.config, tenant)
    }

    /// Returns the engine that runs the sessions.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.inner.engine
    }

    /// Returns the metrics of the service.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// Counts a request for a session towards the rate of `tenant`, whatever becomes of it.
    ///
    /// # Errors
    /// [`CreateError::RateLimited`] when it is one too many.
    pub fn count_request(&self, tenant: &TenantName) -> Result<(), CreateError> {
        super::create::count(&self.inner, tenant)
    }

    /// Makes a session for `tenant`, whose request was counted: waits for its turn, takes the warmest start there is, writes
    /// it down, hands it out. With an idempotency key, the same request again gets the same
    /// session, also while the first is under way.
    ///
    /// Cancel-safe: dropping the future withdraws the request, and soon nothing of it is left.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(
        &self,
        tenant: &TenantName,
        request: CreateSession,
        idempotency_key: Option<String>,
    ) -> Result<Arc<LiveSession>, CreateError> {
        let (inner, tenant) = (self.inner.clone(), tenant.clone());
        withdrawable(async move {
            Box::pin(super::create::create(&inner, &tenant, request, idempotency_key)).await
        })
        .await
    }

    /// Returns a live session of `tenant`.
    ///
    /// # Errors
    /// [`LookupError::Gone`] with the reason when it is over, [`LookupError::Unknown`] when there
    /// is no such session, when it is another tenant's, or over so long that it is forgotten.
    pub fn session(&self, tenant: &TenantName, id: &str) -> Result<Arc<LiveSession>, LookupError> {
        self.inner.keeper.registry.get(tenant, id)
    }

    /// Lists the live sessions of `tenant`, or of all, oldest first. They are not described yet: a
    /// tenant decides how long the descriptions are.
    pub fn sessions(&self, tenant: Option<&TenantName>) -> Vec<Arc<LiveSession>> {
        let mut sessions = self.inner.keeper.registry.all();
        sessions.retain(|session| tenant.is_none_or(|tenant| session.tenant() == tenant));
        sessions.sort_unstable_by(|a, b| a.age().cmp(&b.age()));
        sessions
    }

    /// Discards a session; nothing of it is left when this returns.
    ///
    /// # Errors
    /// As [`Service::session`].
    pub async fn kill(&self, tenant: &TenantName, id: &str) -> Result<(), LookupError> {
        self.session(tenant, id)?.end("it was discarded on request").await;
        Ok(())
    }

    /// Lets a session live for `ttl` from now.
    ///
    /// # Errors
    /// As [`Service::session`], and [`LookupError::BadRequest`] for 0 or more than the configured
    /// most.
    pub fn extend(
        &self,
        tenant: &TenantName,
        id: &str,
        ttl: Duration,
    ) -> Result<SessionInfo, LookupError> {
        let session = self.session(tenant, id)?;
        let most = self.inner.config.max_ttl;
        if ttl.is_zero() || ttl > most {
            let reason = format!(
                "a session can live for 1 to {} more seconds, not {}",
                most.as_secs(),
                ttl.as_secs()
            );
            return Err(LookupError::BadRequest { reason });
        }
        session.extend(ttl);
        Ok(session.info())
    }

    /// Replaces what a session may reach outside: it gets `asked`, within the bounds of a new
    /// session, or nothing. Connections that are not allowed any more are cut off when this returns;
    /// what the session has used counts for the new limits, also after it had no egress for a while.
    ///
    /// # Errors
    /// As [`Service::session`]; [`LookupError::BadRequest`] when the policy cannot be;
    /// [`EgressChangeError`] when the session cannot take it. It has what it had then, or nothing.
    pub async fn set_egress(
        &self,
        tenant: &TenantName,
        id: &str,
        asked: Option<&EgressPolicy>,
    ) -> Result<EgressStatus, EgressChangeError> {
        let session = self.session(tenant, id)?;
        let _active = session.active();
        let granted = match asked {
            Some(asked) => self
                .inner
                .config
                .egress
                .grant(asked)
                .map_err(|reason| LookupError::BadRequest { reason })?,
            None => None,
        };
        session.set_egress(granted).await
    }

    /// Returns the state of the service as a whole, as `tenant` may see it, or as the operator:
    /// sessions, requests and what a dead daemon left are those of the tenant alone.
    pub fn status(&self, tenant: Option<&TenantName>) -> ServiceStatus {
        let inner = &self.inner;
        let registry = &inner.keeper.registry;
        let mine = |of: &TenantName| tenant.is_none_or(|tenant| tenant == of);
        let sessions = match tenant {
            None => registry.len(),
            Some(_) => registry.all().iter().filter(|session| mine(session.tenant())).count(),
        };
        let reaped = inner.reaped.iter().filter(|entry| match &entry.tenant {
            Some(of) => mine(of),
            None => tenant.is_none(),
        });
        ServiceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: inner.host.clone(),
            uptime_seconds: inner.started.elapsed().as_secs_f64(),
            sessions,
            queued: tenant.map_or_else(|| inner.gate.queued(), |t| inner.gate.queued_of(t)),
            pressure: inner.pressure.lock().clone(),
            disk: inner.disk.lock().map(|usage| DiskStatus {
                total_bytes: usage.total_bytes,
                available_bytes: usage.available_bytes,
                written_bytes: usage.written_bytes,
                promised_bytes: usage.promised_bytes,
                quotas: inner.engine.no_project_quotas().is_none(),
            }),
            goldens: self.goldens(),
            reaped: reaped.map(|entry| entry.line.clone()).collect(),
            latency: inner.metrics.latency(),
        }
    }

    /// Returns the golden images, with their pools.
    pub fn goldens(&self) -> Vec<GoldenStatus> {
        let inner = &self.inner;
        let goldens = inner.catalog.entries().into_iter().map(|golden| GoldenStatus {
            pool: inner.pools.status(&golden.name),
            name: golden.name,
            stored_bytes: golden.stored_bytes,
            memory_bytes: golden.memory_bytes,
            accel: golden.accel,
        });
        goldens.collect()
    }

    /// Returns what sessions of a golden image have unless somebody says otherwise: processors,
    /// bytes of memory, bytes of disk. `None` when there is no such golden.
    pub fn machine_of(&self, golden: &str) -> Option<(u32, u64, u64)> {
        let entry = self.inner.catalog.get(golden)?;
        Some((entry.vcpus, entry.memory_bytes, entry.disk_bytes))
    }

    /// Refuses new requests and those that wait, discards all sessions and standbys, and returns
    /// when nothing is left.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.gate.close();
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.pools.drain().await;
        // A start that was past admission may still hand out; the gate tells when none is left.
        inner.gate.starts_done().await;
        let sessions = inner.keeper.registry.all();
        let mut ends: FuturesUnordered<_> = sessions
            .iter()
            .map(|session| session.end_as(EndKind::Shutdown, "the daemon ended"))
            .collect();
        while ends.next().await.is_some() {}
        inner.pools.drain().await;
    }
}

/// Tells what is to be known of this host before sessions run, going by the goldens there are.
async fn warn_of_host(engine: &Engine, catalog: &Catalog) {
    let wanted = |accel| catalog.entries().iter().any(|golden| golden.accel.parse() == Ok(accel));
    if wanted(Accel::Tcg) {
        tracing::warn!("{EMULATION_WARNING}");
        // Tells by itself when forks are impossible.
        engine.can_fork(Accel::Tcg).await;
    }
    if wanted(Accel::Kvm)
        && let Err(obstacle) = kvm::require_device()
    {
        tracing::warn!("goldens that were built under KVM cannot be restored: {obstacle}");
    }
}

/// `tcg, QEMU 7.2.19`: how guests run here, going by the goldens there are.
fn host(engine: &Engine, catalog: &Catalog) -> String {
    let mut accels: Vec<String> =
        catalog.entries().into_iter().map(|golden| golden.accel).collect();
    accels.sort();
    accels.dedup();
    let program = accels.first().and_then(|accel| accel.parse().ok()).unwrap_or(Accel::Tcg);
    let accel =
        if accels.is_empty() { "no golden images".to_owned() } else { accels.join(" and ") };
    format!("{accel}, {} {}", engine.driver().name(program), engine.driver().version(program))
}
