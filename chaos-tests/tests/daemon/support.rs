//! Short ways to do what most tests do.

use std::future::Future;
use std::time::{Duration, Instant};

use mayfly_api::{CreateSession, Exec};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_client::{Client, ClientError};

/// Settings of a pool that a small host can fill.
pub const SMALL_POOL: &str = "[goldens.default]\nfloor = 1\nmax_standbys = 1\nshells = 0\n";
/// Longest wait for something that follows by itself. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);

pub fn client(daemon: &Daemon) -> Client {
    Client::unix(daemon.socket())
}

/// Makes a request for a session, of which nothing but the golden is said. It may wait for long on
/// a busy host.
pub fn request() -> CreateSession {
    CreateSession { golden: GOLDEN.into(), deadline_ms: Some(300_000), ..CreateSession::default() }
}

pub fn shell(script: &str) -> Exec {
    Exec::new(["/bin/sh", "-c", script])
}

/// Runs a shell script in a session; returns its output without the last newline.
pub async fn sh(client: &Client, id: &str, script: &str) -> String {
    let result =
        client.exec(id, &shell(script)).await.unwrap_or_else(|error| panic!("{script}: {error}"));
    assert!(
        result.outcome.success(),
        "{script}: {:?}: {}",
        result.outcome,
        result.stderr.to_text()
    );
    result.stdout.to_text().trim_end().to_owned()
}

/// Looks again and again until there is something.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many requests wait.
pub async fn until_queued(client: &Client, count: usize) {
    until("the queue", || async { (client.status().await.unwrap().queued == count).then_some(()) })
        .await;
}

/// Returns the ids of the live sessions.
pub async fn ids(client: &Client) -> Vec<String> {
    client.sessions().await.unwrap().into_iter().map(|session| session.id).collect()
}

/// Status and word of a refusal.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (u16, String) {
    let error = outcome.expect_err("a refusal");
    let status = error.status().unwrap_or_else(|| panic!("no refusal: {error}")).as_u16();
    (status, error.code().unwrap_or_default().to_owned())
}

/// Returns the refusal of everything that is asked of a session that is over.
pub fn gone() -> (u16, String) {
    (410, "session_gone".to_owned())
}
