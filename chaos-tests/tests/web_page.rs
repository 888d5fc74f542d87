//! The daemon's page in a real browser, headless Chromium, with real sessions behind it.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::{Duration, Instant};

use mayfly_chaos_tests::browser::Browser;
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::slots;
use serde_json::{Value, json};

/// Longest wait for something that follows by itself. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Figures of a pool, by their names in the status and on the page.
const FIGURES: [&str; 4] = ["standbys", "shells", "filling", "target"];
const PAGE: &str = include_str!("../../engine/daemon/src/http/page.html");

#[test]
fn the_page_is_one_file_without_dangerous_doors() {
    for tag in ["<style>", "<script>"] {
        assert_eq!(PAGE.matches(&tag[..tag.len() - 1]).count(), 1, "the policy lets one {tag} run");
    }
    let doors = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        " onclick=\"",
        "srcdoc",
    ];
    for door in doors {
        assert!(!PAGE.contains(door), "{door}");
    }
    for (at, _) in PAGE.match_indices("http://").chain(PAGE.match_indices("https://")) {
        assert!(
            PAGE[at..].starts_with("http://www.w3.org/2000/svg"),
            "foreign: {:?}",
            PAGE.get(at..at + 60)
        );
    }
}

#[test]
fn the_page_shows_the_daemon_and_kills_sessions() {
    let _all = slots::take(slots::ALL);
    let page = Browser::start();
    story(&page);
}

fn story(page: &Browser) {
    let one_standby = format!("[goldens.{GOLDEN}]\nfloor = 1\nmax_standbys = 1\nshells = 0\n");
    let daemon = Daemon::start(&one_standby, &[]);
    let attack = "<img src=x onerror=\"document.title='owned'\">";
    let request = json!({ "golden": GOLDEN, "metadata": { "note": attack, "<b>bold</b>": "</td><script>document.title='owned'</script>" } });
    let first = daemon.create(&request);
    let second = daemon.create(&json!({ "golden": GOLDEN }));

    // Without the token the page shows nothing but the question for it.
    let response = daemon.ask("GET", "/", None, None);
    assert_eq!(response.status, 200);
    let policy = response.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    page.open(&format!("http://{}/", daemon.address()));
    let visible = |selector: &str| page.find(selector)?.is_displayed().then_some(());
    until("the question for a token", || visible("#token"));
    assert!(!page.find("#data").unwrap().is_displayed());
    give_token(page, "wrong");
    until("a refusal", || shows(page, "#token-note", "does not know this token"));
    give_token(page, TOKEN);

    // The sessions are there, by their ids; what their makers wrote is text.
    for id in [&first, &second] {
        until("the row of a session", || cell(page, id, "td.id", id));
    }
    let metadata =
        page.find(&format!("tr[data-session='{first}'] td.meta")).unwrap().text().unwrap();
    assert!(metadata.contains(&format!("note={attack}")), "{metadata}");
    assert!(metadata.contains("<b>bold</b>=</td><script>"), "{metadata}");
    assert_eq!(eval(page, "return document.querySelectorAll('img, td script, td b').length"), 0);
    assert_eq!(page.title(), "Mayfly");

    // The chart has a curve for each tier that was used, one step for each start, and says so in
    // words.
    let latency = daemon.status()["latency"].clone();
    assert_eq!(
        latency
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["summary"]["n"].as_u64().unwrap())
            .sum::<u64>(),
        2
    );
    for tier in latency.as_array().unwrap() {
        let (name, n) =
            (tier["tier"].as_str().unwrap(), tier["recent_ms"].as_array().unwrap().len());
        let curve = format!(
            "return document.querySelector('#latency path.curve.{name}')?.getAttribute('d') ?? ''"
        );
        let drawn = eval(page, &curve);
        assert_eq!(drawn.as_str().unwrap().matches('V').count(), n, "{drawn}");
        let marks =
            format!("return document.querySelectorAll('#latency circle.mark.{name}').length");
        assert_eq!(eval(page, &marks), 3);
    }
    let said = eval(
        page,
        "const s = document.querySelector('#latency svg'); return [s.getAttribute('role'), s.querySelector('desc').textContent]",
    );
    assert_eq!(said[0], "img");
    assert!(said[1].as_str().unwrap().contains("p99"), "{said}");
    until("the chart of faults", || {
        let points = eval(
            page,
            "return document.querySelector('#faults path.curve.faults')?.getAttribute('d')?.split('L').length ?? 0",
        );
        (points.as_u64() >= Some(2)).then_some(())
    });

    // The pool is the one of the status.
    until("the pool's figures", || {
        let told = || FIGURES.map(|name| daemon.pool(GOLDEN)[name].to_string());
        let before = told();
        let shown = figures(page);
        (shown == before && told() == before && before[0] == "1").then_some(())
    });

    // Killing asks first, and ends the one that was meant.
    let row = format!("tr[data-session='{first}']");
    click(page, &format!("{row} button.kill"));
    until("a question", || shows(page, "#confirm-text", &first));
    click(page, "#confirm-no");
    assert_eq!(daemon.ask("GET", &format!("/v1/sessions/{first}"), Some(TOKEN), None).status, 200);
    click(page, &format!("{row} button.kill"));
    click(page, "#confirm-yes");
    until("the end of the row", || page.find(&row).is_none().then_some(()));
    let gone = daemon.ask("GET", &format!("/v1/sessions/{first}"), Some(TOKEN), None).status;
    assert!((400..500).contains(&gone), "the session answers with {gone}");
    assert_eq!(daemon.ask("GET", &format!("/v1/sessions/{second}"), Some(TOKEN), None).status, 200);

    // A daemon that goes away is missed, and one that comes back is found again.
    let files = daemon.stop();
    until("the loss", || shows(page, "#lost", "does not answer"));
    assert_eq!(
        eval(page, "return document.getElementById('main').classList.contains('stale')"),
        true
    );
    let daemon = Daemon::again(files);
    let third = daemon.create(&json!({ "golden": GOLDEN }));
    until("the row of a new session", || cell(page, &third, "td.id", &third));
    until("life", || shows(page, "#state", "live"));
    assert!(!page.find("#lost").unwrap().is_displayed());
    assert!(page.find(&format!("tr[data-session='{second}']")).is_none());
    assert_eq!(page.title(), "Mayfly");
    daemon.stop();
}

/// Looks again and again until there is something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn eval(page: &Browser, script: &str) -> Value {
    page.eval(script)
}

fn shows(page: &Browser, selector: &str, text: &str) -> Option<()> {
    page.find(selector)?.text()?.contains(text).then_some(())
}

fn cell(page: &Browser, session: &str, cell: &str, text: &str) -> Option<()> {
    shows(page, &format!("tr[data-session='{session}'] {cell}"), text)
}

fn click(page: &Browser, selector: &str) {
    page.find(selector).unwrap_or_else(|| panic!("nothing is {selector}")).click();
}

fn give_token(page: &Browser, token: &str) {
    page.find("#token").unwrap().type_text(token);
    click(page, "#token-form button");
}

/// The golden's pool on the page.
fn figures(page: &Browser) -> [String; FIGURES.len()] {
    let script = format!(
        "return {FIGURES:?}.map(name => \
         document.querySelector(`[data-golden='{GOLDEN}'] [data-figure='${{name}}']`)?.textContent ?? '')"
    );
    serde_json::from_value(eval(page, &script)).unwrap()
}
