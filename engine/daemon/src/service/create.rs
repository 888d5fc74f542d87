//! Creation of a session: from a request to a session in use.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mayfly_api::{CreateSession, StartBreakdown, TenantName, Tier};
use mayfly_engine::SessionOptions;
use mayfly_engine::session::{Session, SessionError};
use mayfly_host::cgroup::Limits;
use mayfly_host::instance;
use mayfly_host::time_scale::scaled;
use tracing::Instrument;

use super::admission::{Bounds, Early, Grant, Refusal};
use super::blocking;
use super::ceilings::{self, Machine};
use super::deadline::Deadline;
use super::egress::Granted;
use super::error::{CreateError, LookupError};
use super::idempotency::{Begin, Claim};
use super::journal::JournalEntry;
use super::live::{EndKind, LiveSession, Parts};
use super::pool::Taken;
use super::publish::Place;
use super::request::{self, Checked};
use super::session_egress::SessionEgress;
use super::state::ServiceState;
use crate::observe::tenant_lines::{self, Cause, Leave};

/// Most characters of the name of a golden that are logged and counted.
const GOLDEN_SHOWN: usize = 64;
/// Warm starts that may fail by themselves before a cold one is made: what waited may have died
/// unnoticed.
const WARM_TRIES: usize = 2;
/// Zygotes that may be lost to a request before each counts as a warm start that failed.
const LOST_ZYGOTES: usize = 3;
/// Cold starts that may fail because the golden image was built again meanwhile.
const COLD_TRIES: usize = 2;
/// Bound on the first answer of a session's Docker daemon.
const DOCKER_LIMIT: Duration = Duration::from_secs(30);
/// What a client is told to wait when too many bytes are held for it.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// What a client is told to wait when too many idempotency keys are in use.
const KEYS_RETRY: Duration = Duration::from_secs(5);

/// Counts a request of `tenant`, before anything of it is read: a bad one costs work, too.
pub(super) fn count(inner: &ServiceState, tenant: &TenantName) -> Result<(), CreateError> {
    let limits = inner.config.limits_of(tenant);
    inner.limiters.check(tenant, &limits).map_err(|retry_after| {
        let error = CreateError::RateLimited { retry_after };
        log_refusal(tenant, None, &error);
        inner.metrics.rejected(error.code());
        error
    })
}

pub(super) async fn create(
    inner: &Arc<ServiceState>,
    tenant: &TenantName,
    request: CreateSession,
    idempotency_key: Option<String>,
) -> Result<Arc<LiveSession>, CreateError> {
    // As much of it as a name may have: a client may send anything.
    let golden: String = request.golden.chars().take(GOLDEN_SHOWN).collect();
    let outcome = match idempotency_key {
        None => create_new(inner, tenant, &request, None).await,
        Some(key) => create_once(inner, tenant, &request, &key).await,
    };
    if let Err(error) = &outcome {
        log_refusal(tenant, Some(&golden), error);
        match error {
            CreateError::Session(_)
            | CreateError::Golden(_)
            | CreateError::Journal(_)
            | CreateError::Ended { .. } => {
                inner.metrics.start_failed(&golden, error.code());
            }
            _ => inner.metrics.rejected(error.code()),
        }
    }
    outcome
}

/// Says why a tenant got no session, unless it has asked for much of that a moment ago.
fn log_refusal(tenant: &TenantName, golden: Option<&str>, error: &CreateError) {
    if let Some(Leave { left_out }) = tenant_lines::admit(Cause::Refusal, Some(tenant)) {
        let error = tenant_lines::cut(error.to_string());
        tracing::info!(%tenant, golden, error, left_out, "no session");
    }
}

async fn create_once(
    inner: &Arc<ServiceState>,
    tenant: &TenantName,
    request: &CreateSession,
    key: &str,
) -> Result<Arc<LiveSession>, CreateError> {
    request::check_key(key)?;
    loop {
        match inner.idempotency.begin(tenant, key, request) {
            Begin::Make(claim) => return create_new(inner, tenant, request, Some(claim)).await,
            // Closed, never sent: what counts is that it ends.
            Begin::Wait(mut done) => drop(done.changed().await),
            Begin::Made(id) => {
                let gone = |reason| CreateError::IdempotencyGone { id: id.clone(), reason };
                return inner.keeper.registry.get(tenant, &id).map_err(|error| match error {
                    LookupError::Gone { reason, .. } => gone(reason),
                    _ => gone("it ended long ago".to_owned()),
                });
            }
            Begin::Conflict => return Err(CreateError::IdempotencyConflict),
            Begin::Full => return Err(CreateError::TooManyKeys { retry_after: KEYS_RETRY }),
        }
    }
}

/// Ends a session whose client went away before it had it.
struct Handout(Option<Arc<LiveSession>>);

impl Handout {
    fn done(mut self) -> Option<Arc<LiveSession>> {
        self.0.take()
    }
}

impl Drop for Handout {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.begin_end(EndKind::Withdrawn, "its client went away before it was handed out");
        }
    }
}

async fn create_new(
    inner: &Arc<ServiceState>,
    tenant: &TenantName,
    request: &CreateSession,
    claim: Option<Claim>,
) -> Result<Arc<LiveSession>, CreateError> {
    let asked = Instant::now();
    let checked = request::check(&inner.config, tenant, inner.host_size, request)?;
    let deadline = Deadline::new(asked, checked.deadline);
    let tenant_limits = inner.config.limits_of(tenant);
    let account = inner.capacity.bytes(&inner.config, tenant);
    let full = CreateError::BuffersFull { retry_after: FULL_RETRY };
    let egress_bytes = checked.egress.as_ref().map_or(0, Granted::kept_bytes);
    let kept = account.take(checked.kept_bytes()).zip(account.take(egress_bytes));
    let (kept, kept_egress) = kept.ok_or(full)?;
    let golden = checked.golden.clone();
    let span = tracing::info_span!(
        "session",
        %tenant,
        golden,
        session = tracing::field::Empty,
        tier = tracing::field::Empty
    );
    let start = tracing::info_span!(parent: &span, "start");
    let work = async {
        if !inner.pools.arrived(&golden).await? {
            let _early = inner.gate.wait_early(tenant, tenant_limits.max_sessions)?;
            let ready = inner.pools.ready(&golden, &deadline);
            ready.instrument(tracing::info_span!("load")).await?;
        }
        let totals = tenant_limits.total_limits;
        let (limits, demand) = ceilings::bounds(
            checked.limits,
            &inner.config.ceiling_of(tenant),
            &totals,
            machine_of(inner, &golden),
        );
        let limits = request::vmm_limits(limits);
        let bounds = Bounds { max_sessions: tenant_limits.max_sessions, totals, demand };
        // Who asks for little of a processor or a disk would keep its place among the starts for
        // long. Only the golden's own programs run until the session is handed out.
        let starting = Limits { cpus: None, io_bytes_per_second: None, ..limits.clone() };
        let mut tries = Tries::default();
        let (grant, admitted, session, tier) = loop {
            // Before its turn: a zygote that is in the making holds up nobody else.
            let (mut early, mut cold_place) = (None, None);
            if inner.pools.is_to_wait(&golden, &starting).await? {
                early = Some(inner.gate.wait_early(tenant, tenant_limits.max_sessions)?);
                let warm = inner.pools.warm(&golden, &starting, &deadline);
                cold_place = warm.instrument(tracing::info_span!("warm")).await?;
            }
            let grant = admit(inner, tenant, &bounds, &deadline, early).await?;
            let admitted = Instant::now();
            // There may be a zygote now.
            tries.cold = cold_place.is_some() && inner.pools.is_to_wait(&golden, &starting).await?;
            let started =
                start_session(inner, tenant, &checked, &starting, &deadline, &mut tries).await?;
            if let Some((session, tier)) = started {
                break (grant, admitted, session, tier);
            }
        };
        let queued = admitted.duration_since(asked);
        let agent = admitted.elapsed();
        let egress = SessionEgress::new(tenant, inner.metrics.clone());
        if let Some(granted) = checked.egress {
            let set = egress.set(&session, Some(granted), kept_egress);
            // Nobody can have ended it yet.
            let _ = set.instrument(tracing::info_span!("egress")).await?;
        }
        span.record("session", session.id());
        span.record("tier", tier.word());

        let publish = checked
            .publish
            .map(Place::take)
            .transpose()
            .map_err(|cause| SessionError::Io { action: "take a loopback address", cause })?;
        let socket = format!("{}.docker.sock", session.id());
        let wait_docker = checked.wait_docker;
        let live = LiveSession::new(Parts {
            session,
            egress,
            golden: golden.clone(),
            tenant: tenant.clone(),
            tier,
            env: checked.env,
            user: checked.user,
            metadata: checked.metadata,
            ttl: checked.ttl,
            idle_timeout: checked.idle_timeout,
            docker_path: inner.engine.instance().dir().join(socket),
            account,
            kept,
            slot: grant.slot,
            keeper: inner.keeper.clone(),
            span: span.clone(),
        });
        let handout = Handout(Some(live.clone()));
        write_down(inner, &live).await?;
        let connections = inner.capacity.connections(&inner.config, tenant);
        live.settle(publish, connections)
            .map_err(|cause| SessionError::Io { action: "make the docker socket", cause })?;
        let docker = match wait_docker {
            true => {
                ping_docker(&live).instrument(tracing::info_span!("docker")).await?;
                Some(admitted.elapsed())
            }
            false => None,
        };
        live.set_start(StartBreakdown {
            queued_ms: milliseconds(queued),
            agent_ms: milliseconds(agent),
            docker_ms: docker.map(milliseconds),
        });
        if limits.cpus.is_some() || limits.io_bytes_per_second.is_some() {
            live.session().limit(&limits).await?;
        }
        live.bound_guest();
        let ended = |reason: Arc<str>| CreateError::Ended {
            id: live.id().to_owned(),
            reason: reason.to_string(),
        };
        inner.keeper.registry.add(live.clone(), grant.start).map_err(ended)?;
        inner.metrics.started(&golden, tier, agent, docker);
        tracing::info!(session = live.id(), %tenant, golden, tier = tier.word(), ?queued, ?agent, "session handed out");
        Ok::<_, CreateError>(handout)
    };
    let handout = work.instrument(start).await?;
    let live = handout.done().ok_or(CreateError::ShuttingDown)?;
    if let Some(claim) = claim {
        claim.made(live.id());
    }
    Ok(live)
}

/// Waits for its turn to start.
async fn admit(
    inner: &ServiceState,
    tenant: &TenantName,
    bounds: &Bounds,
    deadline: &Deadline,
    early: Option<Early<'_>>,
) -> Result<Grant, CreateError> {
    let admitted = inner.gate.admit_from(early, tenant, bounds, deadline.left());
    admitted.instrument(tracing::info_span!("queue")).await.map_err(|refusal| match refusal {
        Refusal::DeadlinePassed { retry_after, .. } => {
            CreateError::DeadlinePassed { waited: deadline.waited(), retry_after }
        }
        other => other.into(),
    })
}

/// What a request has tried.
#[derive(Debug, Default)]
struct Tries {
    /// Whether it is to start cold.
    cold: bool,
    /// Warm starts that failed by themselves, and zygotes that were lost to it.
    warm_failures: usize,
    lost_zygotes: usize,
    /// Cold starts that failed because the golden image was built again.
    cold_failures: usize,
}

/// The warmest start that works; `None` when it has to wait for a zygote first.
async fn start_session(
    inner: &ServiceState,
    tenant: &TenantName,
    Checked { golden, .. }: &Checked,
    limits: &Limits,
    deadline: &Deadline,
    tries: &mut Tries,
) -> Result<Option<(Session, Tier)>, CreateError> {
    loop {
        let cold = tries.cold || tries.warm_failures >= WARM_TRIES;
        let taken = inner
            .pools
            .take(golden, limits, cold, deadline)
            .instrument(tracing::info_span!("take"))
            .await?;
        let Some(taken) = taken else { return Ok(None) };
        let mut is_zygote_lost = false;
        let (outcome, tier) = match taken {
            Taken::Standby(standby) => {
                let span = tracing::info_span!("hand_over");
                (standby.hand_over(limits).instrument(span).await, Tier::Standby)
            }
            Taken::Zygote(zygote) => {
                let fork = async {
                    let forked = zygote.fork(limits).await.inspect_err(|error| {
                        is_zygote_lost = error.is_zygote_lost();
                        inner.pools.fork_failed(golden);
                    });
                    forked?.hand_over(limits).await
                };
                (fork.instrument(tracing::info_span!("fork")).await, Tier::Fork)
            }
            Taken::Shell(shell) => {
                let restore = async {
                    shell.limit(limits)?;
                    shell.start().await
                };
                (restore.instrument(tracing::info_span!("restore")).await, Tier::Shell)
            }
            Taken::Cold(loaded) => {
                let options = SessionOptions { limits: limits.clone(), record: false };
                let span = tracing::info_span!("restore");
                (inner.engine.start_session(&loaded, &options).instrument(span).await, Tier::Cold)
            }
        };
        match outcome {
            Ok(session) => return Ok(Some((session, tier))),
            Err(error) if tier != Tier::Cold && !deadline.left().is_zero() => {
                // Without its zygote a request waits for the next: that it goes on at a higher
                // price when the host is busy would keep the host busy.
                if is_zygote_lost && tries.lost_zygotes < LOST_ZYGOTES {
                    tries.lost_zygotes += 1;
                } else {
                    tries.warm_failures += 1;
                }
                if let Some(Leave { left_out }) = tenant_lines::admit(Cause::Daemon, Some(tenant)) {
                    let error = tenant_lines::cut(error.to_string());
                    tracing::warn!(%tenant, golden, tier = tier.word(), error, left_out, "a warm start failed, trying the next");
                }
            }
            // Built again under the same name a moment ago: the pager does not take the old one any
            // more.
            Err(error @ SessionError::Pager(_)) if tries.cold_failures < COLD_TRIES => {
                tries.cold_failures += 1;
                if let Some(Leave { left_out }) = tenant_lines::admit(Cause::Daemon, Some(tenant)) {
                    let error = tenant_lines::cut(error.to_string());
                    tracing::warn!(%tenant, golden, error, left_out, "a cold start failed, looking at the golden image again");
                }
                inner.pools.look_again().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the golden's sessions have unless somebody says otherwise. `None` for one that was removed a
/// moment ago: its start is about to fail.
fn machine_of(inner: &ServiceState, golden: &str) -> Option<Machine> {
    let entry = inner.catalog.get(golden)?;
    let (memory_bytes, disk_bytes) = (entry.memory_bytes, entry.disk_bytes);
    Some(Machine { vcpus: entry.vcpus, memory_bytes, disk_bytes })
}

/// From here on a next daemon knows of the session.
async fn write_down(inner: &ServiceState, live: &LiveSession) -> Result<(), CreateError> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let record = JournalEntry {
        id: live.id().to_owned(),
        golden: live.golden().to_owned(),
        tenant: live.tenant().clone(),
        cgroup: inner.engine.instance().cgroup_name(live.id()),
        vmm: instance::name_of(live.session().vmm_pid()),
        docker_socket: live.docker_socket().to_owned(),
        created_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        metadata: live.metadata().clone(),
    };
    let (journal, entry) = (inner.keeper.journal.clone(), live.entry().await);
    // Goes on when the request is withdrawn; the end of the session waits for it.
    let put = move || {
        let _entry = entry;
        journal.put(&record)
    };
    Ok(blocking(put).await?)
}

async fn ping_docker(live: &LiveSession) -> Result<(), SessionError> {
    let limit = scaled(DOCKER_LIMIT);
    match tokio::time::timeout(limit, live.session().docker_ping()).await {
        Ok(answer) => answer,
        Err(_) => Err(SessionError::DockerSilent { limit }),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
