//! The daemon's page in a real browser, headless Chromium, with real sessions behind it.

use std::future::Future;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::program::{Program, Running};
use mayfly_chaos_tests::slots;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for something that follows by itself. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// Figures of a pool, by their names in the status and on the page.
const FIGURES: [&str; 4] = ["standbys", "shells", "filling", "target"];
const PAGE: &str = include_str!("../../engine/src/api/page.html");

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
        assert!(PAGE[at..].starts_with("http://www.w3.org/2000/svg"), "foreign: {:?}", PAGE.get(at..at + 60));
    }
}

#[test]
fn the_page_shows_the_daemon_and_kills_sessions() {
    let _all = slots::take(slots::ALL);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let driver = ChromeDriver::start();
        let page = driver.browser().await;
        // The browser is closed before what failed is told, or its processes would outlive the test.
        let story = tokio::spawn(story(page.clone())).await;
        let closed = page.close().await;
        story.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        closed.expect("the browser closes");
    });
}

async fn story(page: Client) {
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
    page.goto(&format!("http://{}/", daemon.address())).await.unwrap();
    let visible = |selector: &'static str| {
        let page = page.clone();
        move || {
            let page = page.clone();
            async move { page.find(Locator::Css(selector)).await.ok()?.is_displayed().await.ok()?.then_some(()) }
        }
    };
    until("the question for a token", visible("#token")).await;
    assert!(!page.find(Locator::Css("#data")).await.unwrap().is_displayed().await.unwrap());
    give_token(&page, "wrong").await;
    until("a refusal", || shows(&page, "#token-note", "does not know this token")).await;
    give_token(&page, TOKEN).await;

    // The sessions are there, by their ids; what their makers wrote is text.
    for id in [&first, &second] {
        until("the row of a session", || cell(&page, id, "td.id", id)).await;
    }
    let metadata =
        page.find(Locator::Css(&format!("tr[data-session='{first}'] td.meta"))).await.unwrap().text().await.unwrap();
    assert!(metadata.contains(&format!("note={attack}")), "{metadata}");
    assert!(metadata.contains("<b>bold</b>=</td><script>"), "{metadata}");
    assert_eq!(eval(&page, "return document.querySelectorAll('img, td script, td b').length").await, 0);
    assert_eq!(page.title().await.unwrap(), "Mayfly");

    // The chart has a curve for each tier that was used, one step for each start, and says so in words.
    let latency = daemon.status()["latency"].clone();
    assert_eq!(latency.as_array().unwrap().iter().map(|l| l["summary"]["n"].as_u64().unwrap()).sum::<u64>(), 2);
    for tier in latency.as_array().unwrap() {
        let (name, n) = (tier["tier"].as_str().unwrap(), tier["recent_ms"].as_array().unwrap().len());
        let curve = format!("return document.querySelector('#latency path.curve.{name}')?.getAttribute('d') ?? ''");
        let drawn = eval(&page, &curve).await;
        assert_eq!(drawn.as_str().unwrap().matches('V').count(), n, "{drawn}");
        let marks = format!("return document.querySelectorAll('#latency circle.mark.{name}').length");
        assert_eq!(eval(&page, &marks).await, 3);
    }
    let said = eval(&page, "const s = document.querySelector('#latency svg'); return [s.getAttribute('role'), s.querySelector('desc').textContent]").await;
    assert_eq!(said[0], "img");
    assert!(said[1].as_str().unwrap().contains("p99"), "{said}");
    until("the chart of faults", || async {
        let points = eval(
            &page,
            "return document.querySelector('#faults path.curve.faults')?.getAttribute('d')?.split('L').length ?? 0",
        )
        .await;
        (points.as_u64() >= Some(2)).then_some(())
    })
    .await;

    // The pool is the one of the status.
    until("the pool's figures", || async {
        let told = || FIGURES.map(|name| daemon.pool(GOLDEN)[name].to_string());
        let before = told();
        let shown = figures(&page).await;
        (shown == before && told() == before && before[0] == "1").then_some(())
    })
    .await;

    // Killing asks first, and ends the one that was meant.
    let row = format!("tr[data-session='{first}']");
    click(&page, &format!("{row} button.kill")).await;
    until("a question", || shows(&page, "#confirm-text", &first)).await;
    click(&page, "#confirm-no").await;
    assert_eq!(daemon.ask("GET", &format!("/v1/sessions/{first}"), Some(TOKEN), None).status, 200);
    click(&page, &format!("{row} button.kill")).await;
    click(&page, "#confirm-yes").await;
    until("the end of the row", || async { page.find(Locator::Css(&row)).await.is_err().then_some(()) }).await;
    let gone = daemon.ask("GET", &format!("/v1/sessions/{first}"), Some(TOKEN), None).status;
    assert!((400..500).contains(&gone), "the session answers with {gone}");
    assert_eq!(daemon.ask("GET", &format!("/v1/sessions/{second}"), Some(TOKEN), None).status, 200);

    // A daemon that goes away is missed, and one that comes back is found again.
    let files = daemon.stop();
    until("the loss", || shows(&page, "#lost", "does not answer")).await;
    assert_eq!(eval(&page, "return document.getElementById('main').classList.contains('stale')").await, true);
    let daemon = Daemon::again(files);
    let third = daemon.create(&json!({ "golden": GOLDEN }));
    until("the row of a new session", || cell(&page, &third, "td.id", &third)).await;
    until("life", || shows(&page, "#state", "live")).await;
    assert!(!page.find(Locator::Css("#lost")).await.unwrap().is_displayed().await.unwrap());
    assert!(page.find(Locator::Css(&format!("tr[data-session='{second}']"))).await.is_err());
    assert_eq!(page.title().await.unwrap(), "Mayfly");
    daemon.stop();
}

/// Looks again and again until there is something.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn eval(page: &Client, script: &str) -> Value {
    page.execute(script, Vec::new()).await.unwrap_or_else(|e| panic!("{script}: {e}"))
}

async fn shows(page: &Client, selector: &str, text: &str) -> Option<()> {
    let shown = page.find(Locator::Css(selector)).await.ok()?.text().await.ok()?;
    shown.contains(text).then_some(())
}

async fn cell(page: &Client, session: &str, cell: &str, text: &str) -> Option<()> {
    shows(page, &format!("tr[data-session='{session}'] {cell}"), text).await
}

async fn click(page: &Client, selector: &str) {
    let element = page.find(Locator::Css(selector)).await.unwrap_or_else(|e| panic!("{selector}: {e}"));
    element.click().await.unwrap_or_else(|e| panic!("{selector}: {e}"));
}

async fn give_token(page: &Client, token: &str) {
    page.find(Locator::Css("#token")).await.unwrap().send_keys(token).await.unwrap();
    click(page, "#token-form button").await;
}

/// The golden's pool on the page.
async fn figures(page: &Client) -> [String; FIGURES.len()] {
    let script = format!(
        "return {FIGURES:?}.map(name => \
         document.querySelector(`[data-golden='{GOLDEN}'] [data-figure='${{name}}']`)?.textContent ?? '')"
    );
    serde_json::from_value(eval(page, &script).await).unwrap()
}

/// ChromeDriver on a free port, in a process group of its own with the browser. All of it is killed when dropped.
struct ChromeDriver {
    running: Running,
    port: u16,
    profile: TempDir,
}

impl ChromeDriver {
    fn start() -> Self {
        let found = Command::new("chromedriver").arg("--version").stdout(Stdio::null()).status();
        assert!(found.is_ok(), "chromedriver is missing: run the tests with ./mayfly test, or install chromium-driver");
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").process_group(0);
        let mut running = Program::new(command).limit(Duration::from_secs(600)).start();
        let port = running.until("its port", |running| {
            let said = running.stdout();
            let (_, rest) = said.split_once("started successfully on port ")?;
            rest.split_once('.')?.0.parse().ok()
        });
        let profile = tempfile::Builder::new().prefix("mayfly-chaos-").tempdir().unwrap();
        Self { running, port, profile }
    }

    async fn browser(&self) -> Client {
        let profile = format!("--user-data-dir={}", self.profile.path().display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,1000",
            &profile,
        ];
        let capabilities = json!({ "goog:chromeOptions": { "args": args } });
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        builder.connect(&format!("http://127.0.0.1:{}", self.port)).await.expect("a browser")
    }
}

impl Drop for ChromeDriver {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.running.pid() as i32), Signal::SIGKILL);
    }
}
