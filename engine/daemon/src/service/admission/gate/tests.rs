use tokio::task::JoinHandle;

use super::*;
use crate::service::error::CreateError;

fn gate(max_starts: usize, max_sessions: usize, max_queued: usize) -> Arc<Gate> {
    let config = AdmissionConfig {
        max_queued,
        max_starts: Some(max_starts),
        max_sessions: Some(max_sessions),
        ..AdmissionConfig::default()
    };
    Gate::new(&config, [], Arc::new(Metrics::new()))
}

fn tenant(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

fn sessions(max_sessions: usize) -> Bounds {
    Bounds { max_sessions, ..Bounds::default() }
}

/// Starts under way, live sessions, tenants that have any.
fn counts(gate: &Gate) -> (usize, usize, usize) {
    let state = gate.state();
    (state.starting, state.live, state.tenants.len())
}

const LONG: Duration = Duration::from_secs(3600);

/// Lets all other tasks run until they wait.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A request that waits for its turn.
async fn line_up(
    gate: &Arc<Gate>,
    tenant: &TenantName,
    most: usize,
) -> JoinHandle<Result<Grant, Refusal>> {
    line_up_for(gate, tenant, most, LONG).await
}

/// A request that waits at most `deadline` for its turn.
async fn line_up_for(
    gate: &Arc<Gate>,
    tenant: &TenantName,
    most: usize,
    deadline: Duration,
) -> JoinHandle<Result<Grant, Refusal>> {
    let (gate, tenant) = (gate.clone(), tenant.clone());
    let waiter = tokio::spawn(async move { gate.admit(&tenant, &sessions(most), deadline).await });
    settle().await;
    waiter
}

#[tokio::test]
async fn starts_and_sessions_are_bounded_and_the_queue_moves_when_room_appears() {
    let (gate, t) = (gate(1, 2, 10), tenant("t"));
    let first = gate.admit(&t, &sessions(100), LONG).await.unwrap();
    let waiter = line_up(&gate, &t, 100).await;
    assert_eq!(gate.queued(), 1);
    drop(first.start);
    let second = waiter.await.unwrap().unwrap();
    drop(second.start);
    // Two live: the third waits for an end, and its deadline passes first.
    let refused = gate.admit(&t, &sessions(100), Duration::from_millis(5)).await.unwrap_err();
    assert!(matches!(refused, Refusal::DeadlinePassed { .. }), "{refused:?}");
    assert_eq!(gate.queued(), 0);
    drop(first.slot);
    gate.admit(&t, &sessions(100), Duration::ZERO).await.unwrap();
    drop(second.slot);
    assert_eq!(counts(&gate), (0, 0, 0));
}

#[tokio::test]
async fn a_full_queue_a_busy_tenant_and_pressure_refuse_at_once() {
    let (gate, a, b) = (gate(1, 10, 1), tenant("a"), tenant("b"));
    let held = gate.admit(&a, &sessions(2), LONG).await.unwrap();
    let waiter = line_up(&gate, &a, 2).await;
    assert!(matches!(
        gate.admit(&a, &sessions(2), LONG).await,
        Err(Refusal::TenantBusy { limit: 2, .. })
    ));
    assert!(matches!(
        gate.admit(&b, &sessions(2), LONG).await,
        Err(Refusal::QueueFull { queued: 1, .. })
    ));
    gate.set_pressure(Some("memory".into()));
    assert!(matches!(gate.admit(&b, &sessions(2), LONG).await, Err(Refusal::Pressure { .. })));
    // What waits stays waiting, and goes on when the pressure is over.
    drop(held.start);
    settle().await;
    assert_eq!(gate.queued(), 1);
    gate.set_pressure(None);
    drop(waiter.await.unwrap().unwrap());
    gate.close();
    assert_eq!(gate.admit(&b, &sessions(2), LONG).await.unwrap_err(), Refusal::Closed);
}

#[tokio::test]
async fn those_who_wait_early_count_like_those_in_the_queue() {
    let (gate, a, b) = (gate(1, 10, 2), tenant("a"), tenant("b"));
    let early = gate.wait_early(&a, 1).ok().unwrap();
    assert_eq!(gate.queued(), 1);
    assert!(matches!(gate.wait_early(&a, 1).err(), Some(Refusal::TenantBusy { limit: 1, .. })));
    let other = gate.wait_early(&b, 2).ok().unwrap();
    assert!(matches!(gate.wait_early(&b, 2).err(), Some(Refusal::QueueFull { queued: 2, .. })));
    gate.set_pressure(Some("memory".into()));
    assert!(matches!(gate.wait_early(&b, 2).err(), Some(Refusal::Pressure { .. })));
    gate.set_pressure(None);
    // It takes its place along into the queue, where nobody else would find one.
    let held = gate.admit(&tenant("c"), &sessions(1), LONG).await.unwrap();
    let bounds = sessions(1);
    let mut waiting = Box::pin(gate.admit_from(Some(early), &a, &bounds, LONG));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    assert_eq!((gate.queued(), gate.queued_of(&a)), (2, 1));
    drop(held);
    drop(waiting.await.unwrap());
    gate.close();
    assert_eq!(gate.wait_early(&b, 2).err(), Some(Refusal::Closed));
    drop(other);
    assert_eq!((gate.queued(), counts(&gate)), (0, (0, 0, 0)));
}

#[tokio::test]
async fn a_tenant_that_fills_the_queue_leaves_the_others_their_places() {
    let config =
        AdmissionConfig { max_queued: 8, max_starts: Some(1), ..AdmissionConfig::default() };
    let (a, b) = (tenant("a"), tenant("b"));
    let gate = Gate::new(&config, [a.clone(), b.clone()], Arc::new(Metrics::new()));
    let held = gate.admit(&a, &sessions(100), LONG).await.unwrap();
    let mut waiters = Vec::new();
    // One place of its own, and half of the six that are common.
    for _ in 0..4 {
        waiters.push(line_up(&gate, &a, 100).await);
    }
    let full = gate.admit(&a, &sessions(100), LONG).await;
    assert!(matches!(full, Err(Refusal::QueueFull { queued: 4, .. })), "{full:?}");
    waiters.push(line_up(&gate, &b, 100).await);
    assert_eq!(gate.queued_of(&b), 1);
    gate.close();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap_err(), Refusal::Closed);
    }
    drop(held);
    assert_eq!(gate.places.held(&a) + gate.places.held(&b), 0);
}

#[tokio::test]
async fn a_dropped_request_leaves_nothing() {
    let (gate, t) = (gate(1, 1, 10), tenant("t"));
    let held = gate.admit(&t, &sessions(100), LONG).await.unwrap();
    let waiter = line_up(&gate, &t, 100).await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    assert_eq!((gate.queued(), counts(&gate)), (0, (1, 1, 1)));
    // Granted at the very moment of leaving: the grant comes back.
    let bounds = sessions(100);
    let mut leaving = Box::pin(gate.admit(&t, &bounds, LONG));
    assert!(futures::poll!(leaving.as_mut()).is_pending());
    drop(held);
    assert_eq!(counts(&gate).1, 1);
    drop(leaving);
    assert_eq!(counts(&gate), (0, 0, 0));
}

#[tokio::test]
async fn closing_ends_those_who_wait() {
    let (gate, t) = (gate(1, 1, 10), tenant("t"));
    let held = gate.admit(&t, &sessions(100), LONG).await.unwrap();
    let waiter = line_up(&gate, &t, 100).await;
    gate.close();
    assert_eq!(waiter.await.unwrap().unwrap_err(), Refusal::Closed);
    drop(held);
    gate.starts_done().await;
    assert_eq!(counts(&gate), (0, 0, 0));
}

#[tokio::test]
async fn what_a_tenants_sessions_have_together_is_bounded_and_comes_back() {
    let (gate, a, b) = (gate(1, 10, 10), tenant("a"), tenant("b"));
    let needs = |memory_mib| Bounds {
        max_sessions: 10,
        totals: TotalLimits { memory_mib: Some(100), ..TotalLimits::default() },
        demand: Demand { memory_mib, ..Demand::default() },
    };
    let excess = |refusal: Refusal| match refusal {
        Refusal::TenantTotal { excess, .. } => (excess.used, excess.more),
        other => panic!("{other:?}"),
    };
    let first = gate.admit(&a, &needs(60), LONG).await.unwrap();
    assert_eq!(excess(gate.admit(&a, &needs(41), LONG).await.unwrap_err()), (60, 41));
    // Those that wait count, until they go; other tenants have totals of their own.
    let waiter = {
        let (gate, a) = (gate.clone(), a.clone());
        tokio::spawn(async move { gate.admit(&a, &needs(40), LONG).await })
    };
    settle().await;
    assert_eq!((gate.queued_of(&a), gate.queued_of(&b)), (1, 0));
    assert_eq!(excess(gate.admit(&a, &needs(1), LONG).await.unwrap_err()), (100, 1));
    drop(first.start);
    let second = waiter.await.unwrap().unwrap();
    drop(second.start);
    drop(gate.admit(&b, &needs(100), LONG).await.unwrap());
    drop(first.slot);
    assert_eq!(excess(gate.admit(&a, &needs(61), LONG).await.unwrap_err()), (40, 61));
    drop(gate.admit(&a, &needs(60), LONG).await.unwrap());
    drop(second.slot);
    assert_eq!(counts(&gate), (0, 0, 0));
    // What can never be is told as such.
    let never = CreateError::from(gate.admit(&a, &needs(101), LONG).await.unwrap_err());
    assert_eq!((never.code(), never.retry_after()), ("above_ceiling", None));
}

#[test]
fn a_retry_is_told_from_the_rate_within_bounds() {
    let mut rate = DecayingRate::new(RATE_CONSTANT);
    assert_eq!(retry_after(3, &rate), RETRY_MAX);
    let now = Instant::now();
    // 40 events at once count as 2 per second over the time constant.
    (0..40).for_each(|_| rate.record(now));
    let wait = retry_after(19, &rate).as_secs_f64();
    assert!((9.9..=11.0).contains(&wait), "{wait}");
    assert_eq!(retry_after(0, &rate), RETRY_MIN);
    assert_eq!(sessions_for(24 << 30), 672);
}

/// Has the gate believe that one request had its turn every `gap` for some time.
fn observe(gate: &Gate, gap: Duration) {
    let now = Instant::now();
    let mut state = gate.state();
    state.drain.reset();
    state.drain.waits(now - 20 * gap);
    (0..20).rev().for_each(|n| state.drain.turn(now - n * gap));
    state.next_look = None;
}

#[tokio::test]
async fn those_who_wait_in_vain_are_told_as_soon_as_that_is_known() {
    let (gate, t) = (gate(1, 1000, 1000), tenant("t"));
    let held = gate.admit(&t, &sessions(1000), LONG).await.unwrap();
    // Nothing is known yet.
    let (first, second, patient) = (
        line_up_for(&gate, &t, 1000, Duration::from_secs(40)).await,
        line_up_for(&gate, &t, 1000, Duration::from_secs(40)).await,
        line_up_for(&gate, &t, 1000, Duration::from_secs(3600)).await,
    );
    assert_eq!(gate.queued(), 3);
    // A turn every 30 s: the first will have its own in time, with some luck.
    observe(&gate, Duration::from_secs(30));
    gate.change(|_| {});
    let refusal = second.await.unwrap().unwrap_err();
    let Refusal::Overloaded { ahead: 1, wait, deadline } = &refusal else { panic!("{refusal:?}") };
    assert!(*wait >= Duration::from_secs(59) && deadline.as_secs() == 40, "{refusal:?}");
    assert_eq!(gate.queued(), 2);
    // Whoever comes now is told at once, and when to come again.
    let refusal = gate.admit(&t, &sessions(1000), Duration::from_secs(30)).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Overloaded { ahead: 2, .. }), "{refusal:?}");
    let error = CreateError::from(refusal);
    assert_eq!(error.code(), "overloaded");
    assert!(error.retry_after().is_some_and(|after| after > Duration::from_secs(50)), "{error}");
    assert_eq!((gate.queued(), gate.places.held(&t)), (2, 2));

    // What was observed is of no use once nobody waits.
    drop(held);
    drop(first.await.unwrap().unwrap());
    drop(patient.await.unwrap().unwrap());
    assert_eq!(gate.state().drain.wait(0, Instant::now()), None);
    assert_eq!(counts(&gate), (0, 0, 0));
}
