//! Bounds on who gets in, and when.

use std::fs;

use mayfly_api::CreateSession;
use mayfly_chaos_tests::daemon::{Daemon, Response, TOKEN};
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use serde_json::{Value, json};

use crate::support::{SMALL_POOL, client, ids, refusal, request, until_queued};

const TWO_SESSIONS: &str = "[admission]\nmax_sessions = 2\nmax_queued = 1\n";

#[tokio::test(flavor = "multi_thread")]
async fn tenants_the_queue_and_deadlines_have_bounds_and_tcp_needs_a_token() {
    let _all = slots::take(slots::ALL);
    // The tenant's third request is too much for a long time.
    let tenant = "limits = { max_sessions = 1, requests_per_second = 0.001, burst = 2 }\n";
    let daemon = Daemon::start(&format!("{tenant}{TWO_SESSIONS}{SMALL_POOL}"), &[]);
    let local = client(&daemon);

    let wanted = json!({ "golden": GOLDEN });
    for (method, path, body) in [
        ("GET", "/v1/sessions", None),
        ("GET", "/v1/status", None),
        ("GET", "/metrics", None),
        ("POST", "/v1/sessions", Some(&wanted)),
    ] {
        for token in [None, Some("abd"), Some("")] {
            let refused = daemon.ask(method, path, token, body);
            assert_eq!(
                (refused.status, word(&refused)),
                (401, "unauthorized".into()),
                "{method} {path}"
            );
            assert_eq!(refused.header("www-authenticate"), "Bearer");
        }
    }
    assert_eq!(ids(&local).await, Vec::<String>::new());

    let red = Client::tcp(daemon.address().to_string(), TOKEN).unwrap();
    let first = red.create(&request(), None).await.unwrap();
    assert_eq!(first.tenant, "red");
    check_later(&daemon.ask("POST", "/v1/sessions", Some(TOKEN), Some(&wanted)), "tenant_busy");
    check_later(&daemon.ask("POST", "/v1/sessions", Some(TOKEN), Some(&wanted)), "rate_limited");

    // Another tenant is not held up by that. Two sessions are all that may live.
    let second = local.create(&request(), None).await.unwrap();
    assert_eq!(ids(&red).await, [first.id.as_str()]);
    assert_eq!(ids(&local).await, [second.id.as_str()]);
    let hasty = local.create(&CreateSession { deadline_ms: Some(100), ..request() }, None).await;
    assert!(hasty.as_ref().unwrap_err().retry_after().is_some(), "{hasty:?}");
    assert_eq!(refusal(hasty), (504, "deadline_passed".into()));

    let waiter = tokio::spawn({
        let local = local.clone();
        async move { local.create(&request(), None).await }
    });
    until_queued(&local, 1).await;
    let full = local.create(&request(), None).await;
    assert!(full.as_ref().unwrap_err().retry_after().is_some(), "{full:?}");
    assert_eq!(refusal(full), (429, "queue_full".into()));
    red.kill(&first.id).await.unwrap();
    let third = waiter.await.unwrap().unwrap();
    let mut mine = ids(&local).await;
    mine.sort();
    let mut both = vec![second.id, third.id];
    both.sort();
    assert_eq!(mine, both);
    daemon.stop();
}

fn word(response: &Response) -> String {
    let body: Value = serde_json::from_str(&response.body).expect("an error");
    body["code"].as_str().expect("a word").to_owned()
}

/// A refusal that passes, and says when.
fn check_later(response: &Response, expected: &str) {
    assert_eq!((response.status, word(response)), (429, expected.to_owned()), "{response:?}");
    let after: u64 = response.header("retry-after").parse().expect("whole seconds");
    assert!(after >= 1, "{response:?}");
}

#[test]
fn without_tokens_it_does_not_listen_on_tcp() {
    let _all = slots::take(slots::ALL);
    let home = Home::aside();
    let config = home.layout().run().join("serve.toml");
    let journal = home.layout().run().join("journal");
    fs::write(&config, format!("journal = {journal:?}\n{SMALL_POOL}")).unwrap();
    let args = ["-q", "serve", "--config", config.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let ended = home.mayfly(args).run();
    let complaint = ended.complaint();
    assert!(
        complaint.contains("without bearer tokens") && complaint.contains("[[tenants]]"),
        "{complaint}"
    );
    assert!(!home.layout().api_socket().exists());
    assert_eq!(home.leaks_of(ended.pid), []);
}
