//! Many more requests than the host can serve, and its zygote lost amid them: all are answered, and
//! at the price of before.

use std::collections::BTreeMap;

use mayfly_api::{CreateSession, PoolStatus, Tier};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::leaks;
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

use crate::support::{SMALL_POOL, client, refusal, request, sh, until};

/// Requests at once: at least ten times what two processors serve in a second from a zygote.
const BURST: usize = 150;
/// How many of them have been served when the zygote is killed.
const BEFORE: usize = 30;
/// Requests after each other, when all of that is over.
const AFTER: usize = 20;
/// Longest wait of a request for its turn, in milliseconds.
const DEADLINE: u64 = 120_000;
/// Most of them that may start cold, in percent.
const MOST_COLD: usize = 15;
/// How a warm start begins.
const WARM: [Tier; 2] = [Tier::Standby, Tier::Fork];

async fn pool(client: &Client) -> PoolStatus {
    let goldens = client.status().await.unwrap().goldens;
    goldens.into_iter().find(|golden| golden.name == GOLDEN).unwrap().pool.unwrap_or_default()
}

async fn until_zygote(client: &Client) {
    until("a zygote", || async { pool(client).await.zygote.then_some(()) }).await;
}

/// Asks for a session, proves that it works, and gives it back. Returns how it began, or the code
/// of the refusal.
async fn one(client: &Client, wanted: &CreateSession) -> Result<Tier, (u16, String)> {
    let session = match client.create(wanted, None).await {
        Ok(session) => session,
        refused => return Err(refusal(refused)),
    };
    assert_eq!(sh(client, &session.id, "echo $((40 + 2))").await, "42");
    client.kill(&session.id).await.unwrap();
    Ok(session.tier)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overload_that_loses_its_zygote_keeps_the_price_of_a_start() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    if !client.status().await.unwrap().host.starts_with("tcg") {
        return mayfly_skip::skip("under KVM there is no zygote");
    }
    until_zygote(&client).await;

    let wanted = CreateSession { deadline_ms: Some(DEADLINE), ..request() };
    let mut burst = JoinSet::new();
    for _ in 0..BURST {
        let (client, wanted) = (client.clone(), wanted.clone());
        burst.spawn(async move { one(&client, &wanted).await });
    }
    let mut tiers = BTreeMap::<&str, usize>::new();
    let mut refused = BTreeMap::<(u16, String), usize>::new();
    let mut killed = None;
    while let Some(outcome) = burst.join_next().await {
        match outcome.unwrap() {
            Ok(tier) => *tiers.entry(tier.word()).or_default() += 1,
            Err(refusal) => *refused.entry(refusal).or_default() += 1,
        }
        if killed.is_none() && tiers.values().sum::<usize>() >= BEFORE {
            // The next one may be in the making already.
            killed = leaks::zygotes_of(daemon.pid()).first().copied();
            let zygote = killed.expect("a zygote");
            kill(Pid::from_raw(zygote.cast_signed()), Signal::SIGKILL).unwrap();
        }
    }
    println!("{BURST} requests at once: served {tiers:?}, refused {refused:?}");
    let killed = killed.expect("not even the first of them were served");
    // What cannot be done in time is refused; nothing fails.
    let codes = ["deadline_passed", "overloaded", "pressure", "queue_full"];
    let known = |code: &(u16, String)| codes.contains(&&*code.1);
    assert!(refused.keys().all(known), "{refused:?}: {}", daemon.log());
    let cold = tiers.get("cold").copied().unwrap_or_default();
    assert!(cold * 100 <= BURST * MOST_COLD, "{tiers:?}: {}", daemon.log());

    until_zygote(&client).await;
    assert!(!leaks::zygotes_of(daemon.pid()).contains(&killed));
    for turn in 0..AFTER {
        let tier = one(&client, &wanted).await.unwrap();
        assert!(WARM.contains(&tier), "{turn} began {}: {}", tier.word(), daemon.log());
    }
    daemon.stop();
}
