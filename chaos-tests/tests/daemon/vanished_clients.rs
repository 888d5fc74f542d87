//! Clients that go away without a word: what was theirs is gone, and nobody else's.

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;

use crate::support::{SMALL_POOL, client, ids, refusal, request, sh, until, until_queued};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_loses_its_session_and_its_place_in_the_queue() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(&format!("[admission]\nmax_sessions = 1\n{SMALL_POOL}"), &[]);
    let client = client(&daemon);

    // Attached: the connection is the session's life.
    let mut attached = client.create_attached(&request()).await.unwrap();
    let id = attached.info().id.clone();
    assert_eq!(sh(&client, &id, "echo used").await, "used");
    drop(attached);
    until("the end of an attached session", || async {
        ids(&client).await.is_empty().then_some(())
    })
    .await;
    let error = client.session(&id).await.unwrap_err();
    assert!(
        error.code() == Some("session_gone") && error.to_string().contains("went away"),
        "{error}"
    );

    // Not attached: it stays.
    let kept = client.create(&request(), None).await.unwrap();
    assert_eq!(ids(&client).await, [kept.id.as_str()]);

    // While they wait for their turn, with a key, without one, and attached.
    let waiting = [
        tokio::spawn({
            let client = client.clone();
            async move { drop(client.create(&request(), Some("key")).await) }
        }),
        tokio::spawn({
            let client = client.clone();
            async move { drop(client.create(&request(), None).await) }
        }),
        tokio::spawn({
            let client = client.clone();
            async move { drop(client.create_attached(&request()).await) }
        }),
    ];
    until_queued(&client, waiting.len()).await;
    for waiter in &waiting {
        waiter.abort();
    }
    until_queued(&client, 0).await;
    assert_eq!(ids(&client).await, [kept.id.as_str()]);

    // Only one can live: this one comes through because nothing of the vanished is left, and its
    // key is free.
    client.kill(&kept.id).await.unwrap();
    attached = client.create_attached(&request()).await.unwrap();
    let mine = attached.info().id.clone();
    assert_eq!(ids(&client).await, [mine.as_str()]);
    client.kill(&mine).await.unwrap();
    assert!(attached.ended().await.unwrap().contains("on request"));
    let keyed = client.create(&request(), Some("key")).await.unwrap();
    assert_eq!(ids(&client).await, [keyed.id.as_str()]);
    assert_eq!(refusal(client.session(&mine).await).0, 410);
    daemon.stop();
}
