//! Tenants beside each other: none has more than its share, and none sees another.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_api::{CreateSession, SessionLimits, Stream};
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::{leaks, slots};
use mayfly_client::Client;
use serde_json::json;

use crate::support::{SMALL_POOL, client, refusal, request, sh, shell, until};

/// How long one look at a command waits.
const WAIT: Duration = Duration::from_secs(1);
/// The token of a second tenant, and its BLAKE3.
const BLUE_TOKEN: &str = "blue-token";
const BLUE: &str = "[[tenants]]\nname = \"blue\"\n\
    token_blake3 = \"BLAKE3\"\n";

fn blue() -> String {
    BLUE.replace("BLAKE3", blake3::hash(BLUE_TOKEN.as_bytes()).to_hex().as_str())
}

fn over_tcp(daemon: &Daemon, token: &str) -> Client {
    Client::tcp(daemon.address().to_string(), token).unwrap()
}

fn with(limits: SessionLimits) -> CreateSession {
    CreateSession { limits, ..request() }
}

/// The bound on processors that the kernel has for a process, in thousandths.
fn cpu_bound(pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let root = Path::new("/sys/fs/cgroup");
        if controllers.is_empty() {
            let text = fs::read_to_string(root.join(path).join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            return Some(quota.parse::<u64>().ok()? * 1000 / period.parse::<u64>().ok()?);
        }
        if !controllers.split(',').any(|controller| controller == "cpu") {
            return None;
        }
        [controllers, "cpu"].iter().map(|name| root.join(name).join(path)).find_map(|dir| {
            let quota = number(dir.join("cpu.cfs_quota_us"))?;
            Some(quota * 1000 / number(dir.join("cpu.cfs_period_us"))?)
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_never_gets_more_than_the_operator_has_set() {
    let _all = slots::take(slots::ALL);
    let tenant = "limits = { total_limits = { memory_mib = 3000, cpus = 0.9 } }\n";
    let ceilings = "[max_limits]\nmemory_mib = 2048\ncpus = 0.5\n";
    let daemon = Daemon::start(&format!("{tenant}{ceilings}{SMALL_POOL}"), &[]);
    let red = over_tcp(&daemon, TOKEN);
    let none = SessionLimits::default();
    for limits in [
        SessionLimits { cpus: Some(64.0), ..none },
        SessionLimits { memory_mib: Some(1 << 20), ..none },
    ] {
        assert_eq!(refusal(red.create(&with(limits), None).await), (422, "above_ceiling".into()));
    }
    // Who asks for nothing is bounded, too.
    let first = red.create(&request(), None).await.unwrap();
    let vmm = leaks::vmms_of(daemon.pid()).into_iter().filter_map(cpu_bound).collect::<Vec<_>>();
    assert!(vmm.contains(&500), "{vmm:?}");
    // Two of them would have a whole processor; a smaller one fits beside the first.
    let second = red.create(&request(), None).await;
    assert!(second.as_ref().unwrap_err().retry_after().is_some(), "{second:?}");
    assert_eq!(refusal(second), (429, "tenant_total".into()));
    let small = with(SessionLimits { cpus: Some(0.4), memory_mib: Some(1000), ..none });
    let beside = red.create(&small, None).await.unwrap();
    assert_eq!(refusal(red.create(&small, None).await), (429, "tenant_total".into()));
    // Another tenant has totals of its own.
    client(&daemon).create(&small, None).await.unwrap();
    red.kill(&first.id).await.unwrap();
    red.create(&small, None).await.unwrap();
    red.kill(&beside.id).await.unwrap();
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_host_has_is_refused_with_what_it_has() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let asked = client(&daemon);
    let none = SessionLimits::default();
    let host = std::thread::available_parallelism().unwrap().get();
    let limits = SessionLimits { cpus: Some(host as f64 + 1.0), ..none };
    let refused = asked.create(&with(limits), None).await;
    let told = refused.as_ref().unwrap_err().to_string();
    assert!(told.contains(&format!("at most {host}")) && told.contains("the host"), "{told}");
    assert_eq!(refusal(refused), (422, "above_ceiling".into()));
    let limits = SessionLimits { memory_mib: Some(1 << 20), ..none };
    assert_eq!(refusal(asked.create(&with(limits), None).await), (422, "above_ceiling".into()));
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_makes_the_daemon_hold_is_bounded_and_others_have_their_part() {
    let _all = slots::take(slots::ALL);
    // A quarter is set aside for the two tenants, 1 MiB each; of the rest, one takes a half at most.
    let daemon = Daemon::start(&format!("[buffers]\ntotal_mib = 8\n{SMALL_POOL}"), &[]);
    let (red, local) = (over_tcp(&daemon, TOKEN), client(&daemon));
    let session = red.create(&request(), None).await.unwrap();
    let beside = local.create(&request(), None).await.unwrap();

    // As long as there is room, all of the output is kept.
    let letters = |mib: u64| shell(&format!("head -c {mib}M /dev/zero | tr '\\0' x"));
    assert_eq!(red.exec(&session.id, &letters(1)).await.unwrap().stdout.0.len(), 1 << 20);
    let much = red.exec(&session.id, &letters(7)).await.unwrap();
    assert!(much.truncated && much.stdout.0.len() < 7 << 20, "{}", much.stdout.0.len());

    // Commands in the background keep less and less, and at last are not started.
    let mut kept = Vec::new();
    let refused = loop {
        match red.start_background(&session.id, &letters(1)).await {
            Ok(command) => {
                let ended = until("the end of a command", || async {
                    let command = red.background(&session.id, command.n, WAIT).await.unwrap();
                    (!command.is_running()).then_some(command)
                })
                .await;
                assert_eq!(ended.stdout_bytes, 1 << 20, "{ended:?}");
                let read = red.background_output(&session.id, ended.n, Stream::Stdout, 0, WAIT);
                kept.push((1 << 20) - read.await.unwrap().offset);
            }
            refused => break refused,
        }
        assert!(kept.len() < 64, "{kept:?}");
    };
    assert_eq!(refusal(refused), (429, "buffers_full".into()));
    assert!(kept.iter().sum::<u64>() <= 4 << 20, "{kept:?}");
    assert_eq!(kept[0], 1 << 20);
    // What is kept can be read all the same, piece by piece.
    let mut read = 0;
    while read < 1 << 20 {
        let piece = red.background_output(&session.id, 1, Stream::Stdout, read, WAIT);
        let piece = piece.await.unwrap();
        assert!(piece.offset == read && !piece.data.0.is_empty(), "{} at {read}", piece.offset);
        read += piece.data.0.len() as u64;
    }
    assert!(kept.iter().all(|kept| *kept >= 16 << 10), "{kept:?}");

    // The other tenant does not notice.
    assert_eq!(sh(&local, &beside.id, "echo here").await, "here");
    local.create(&request(), None).await.unwrap();
    // What a session held is free again after it.
    red.kill(&session.id).await.unwrap();
    let session = red.create(&request(), None).await.unwrap();
    assert_eq!(sh(&red, &session.id, "echo again").await, "again");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_tenant_is_shown_to_another() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(&format!("{}{SMALL_POOL}", blue()), &[]);
    let (red, blue) = (over_tcp(&daemon, TOKEN), over_tcp(&daemon, BLUE_TOKEN));
    let secret = CreateSession {
        metadata: [("label-of-red".to_owned(), "value-of-red".to_owned())].into(),
        ..request()
    };
    let session = red.create(&secret, Some("key-of-red")).await.unwrap();
    assert_eq!(red.status().await.unwrap().sessions, 1);
    assert_eq!(blue.status().await.unwrap().sessions, 0);
    // The same key is another one.
    let other = blue.create(&request(), Some("key-of-red")).await.unwrap();
    assert_ne!(other.id, session.id);
    blue.kill(&other.id).await.unwrap();
    let missing = blue.session(&session.id).await.unwrap_err().to_string();
    assert_eq!(
        missing.replace(&session.id, "ID"),
        blue.session("ID").await.unwrap_err().to_string()
    );

    let words = [session.id.as_str(), "label-of-red", "value-of-red", "key-of-red", "tenant red"];
    let check = |daemon: &Daemon| {
        let wanted = json!({ "golden": "none-such" });
        for (method, path, body) in [
            ("GET", "/v1/status", None),
            ("GET", "/v1/goldens", None),
            ("GET", "/v1/sessions", None),
            ("GET", "/metrics", None),
            ("POST", "/v1/sessions", Some(&wanted)),
        ] {
            let answer = daemon.ask(method, path, Some(BLUE_TOKEN), body).body;
            for word in words {
                assert!(!answer.contains(word), "{path} tells of {word}: {answer}");
            }
        }
    };
    check(&daemon);
    // Nor after a crash, when the next one tells what was left: to its owner, and the operator.
    let daemon = Daemon::again(daemon.kill());
    check(&daemon);
    let reaped = |status: mayfly_api::ServiceStatus| status.reaped.join("\n");
    let told = reaped(over_tcp(&daemon, TOKEN).status().await.unwrap());
    assert!(told.contains(&session.id) && !told.contains("engine "), "{told}");
    let told = reaped(client(&daemon).status().await.unwrap());
    assert!(told.contains(&session.id) && told.contains("engine "), "{told}");
    assert_eq!(reaped(over_tcp(&daemon, BLUE_TOKEN).status().await.unwrap()), "");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_killed_last_and_its_vmms_are_not() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let asked = client(&daemon);
    asked.create(&request(), None).await.unwrap();
    let score = |pid: u32| -> Option<i32> {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
    };
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let of_it = score(daemon.pid()).unwrap();
    if own != 0 || daemon.log().contains("is not protected from the OOM killer") {
        mayfly_skip::skip(format_args!("this root has an OOM score of {own}, or may not set one"));
    } else {
        assert_eq!(of_it, -900);
        let vmms: Vec<i32> = leaks::vmms_of(daemon.pid()).into_iter().filter_map(score).collect();
        assert!(!vmms.is_empty() && vmms.iter().all(|score| *score >= 0), "{vmms:?}");
    }
    daemon.stop();
}
