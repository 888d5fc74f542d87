//! A store that was damaged on disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use mayfly_chaos_tests::daemon::{Daemon, Response, TOKEN};
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::slots;
use serde_json::{Value, json};

use crate::support::{check_failure, missing_base_disk};

/// Touches much of the golden's memory.
const BUSY: [&str; 6] = ["run", GOLDEN, "--", "sh", "-c", "docker run --rm busybox true"];

fn packs(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.layout().store().join("packs")).unwrap();
    let packs: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some())
        .collect();
    assert!(!packs.is_empty());
    packs
}

/// `golden verify` must find it, and a session must not run on it.
fn check_damaged(home: &Home) {
    let verified = home.mayfly(["-q", "golden", "verify", GOLDEN]).run();
    assert_ne!(verified.code(), 0, "{verified}");
    check_failure(home, &verified, &["damaged", "golden build"]);
    let reported = home.mayfly(["golden", "verify", GOLDEN]).run();
    assert!(
        reported.stdout.starts_with(&format!("{GOLDEN}: ")) && reported.stdout.contains("chunk"),
        "{reported}"
    );
    let ended = home.mayfly(BUSY).run();
    assert_ne!(ended.code(), 0, "a session ran on damaged memory: {ended}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("mayfly: ") && last.contains("chunk") && last.contains(GOLDEN),
        "{ended}"
    );
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn flipped_bits_are_found_and_never_reach_a_guest() {
    let home = Home::with_golden();
    let _slot = slots::take(1);
    for pack in packs(&home) {
        let file = File::options().read(true).write(true).open(&pack).unwrap();
        let len = file.metadata().unwrap().len();
        // One bit in every 256 KiB: no session gets far without one of them.
        for at in (4096..len).step_by(256 << 10) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    }
    check_damaged(&home);
}

#[test]
fn a_truncated_pack_is_found_and_never_used() {
    let home = Home::with_golden();
    let _slot = slots::take(1);
    for pack in packs(&home) {
        let file = File::options().write(true).open(&pack).unwrap();
        file.set_len(file.metadata().unwrap().len() / 3).unwrap();
    }
    check_damaged(&home);
}

#[test]
fn a_base_disk_with_other_content_is_refused() {
    let home = Home::with_golden();
    let (base, _) = missing_base_disk(&home);
    let ended = home.mayfly(["run", GOLDEN, "--", "true"]).run();
    check_failure(&home, &ended, &[base.to_str().unwrap()]);
    fs::write(&base, "not a disk").unwrap();
    let ended = home.mayfly(["run", GOLDEN, "--", "true"]).run();
    check_failure(&home, &ended, &[base.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn a_request_waits_for_the_check_of_a_golden_no_longer_than_its_deadline() {
    let home = Home::with_golden();
    let _all = slots::take(slots::ALL);
    let (base, len) = missing_base_disk(&home);
    // Gigabytes that have to be hashed before it is known that they are wrong.
    File::create(base).unwrap().set_len(len).unwrap();
    let daemon = Daemon::with_home(home, "");
    // It looks by itself, and keeps nothing ready of a golden that nobody has asked for.
    daemon.until_logged("golden image cannot be used");
    assert!(daemon.pool(GOLDEN).is_null(), "{}", daemon.pool(GOLDEN));

    let ask = |wanted| daemon.ask("POST", "/v1/sessions", Some(TOKEN), Some(&wanted));
    let code = |response: &Response| {
        serde_json::from_str::<Value>(&response.body).unwrap()["code"].clone()
    };
    // A busy machine may wake a request late enough for the answer to be there.
    let hasty = (0..20).map(|_| ask(json!({ "golden": GOLDEN, "deadline_ms": 1 })));
    let refused = hasty
        .into_iter()
        .find(|response| code(response) == "golden_checking")
        .expect("no deadline was kept");
    assert_eq!(refused.status, 504, "{}", refused.body);
    assert!(
        refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0),
        "{refused:?}"
    );
    let patient = || {
        let answer = ask(json!({ "golden": GOLDEN, "deadline_ms": 300_000 }));
        assert_eq!(
            (answer.status, code(&answer)),
            (500, "golden_unusable".into()),
            "{}",
            answer.body
        );
    };
    patient();
    // Those who wait at the same time share a check: the one under way, and one that was begun
    // after they came.
    let checks = || daemon.log().matches("golden image is being checked").count();
    let before = checks();
    std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(patient))));
    assert!((1..6).contains(&(checks() - before)), "{} checks for 6 requests", checks() - before);
    daemon.stop();
}
