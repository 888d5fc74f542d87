//! A client with its session, from the request to the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use mayfly_api::{CreateSession, Exec, ExecOutcome, SessionInfo};
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_client::{Client, ClientError};
use mayfly_host::time_scale::scaled;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::outcome::{Outcome, Reason};
use crate::plan::{Dice, Errand};

/// Longest wait of a request for its turn, in milliseconds.
const DEADLINE: u64 = 60_000;
/// Longest life of a session whose client went away before it knew of it, in seconds.
const IDLE: u64 = 2;
/// Longest time for all of an errand. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// Time between two tries to reach a daemon.
const AGAIN: Duration = Duration::from_millis(20);
/// Most bytes of a file that is written and read back.
const FILE: usize = 300_000;
/// Longest body that is held in memory (docs/src/api.md, `too_large`), and more.
const OVERSIZED: usize = 5 << 20;

/// Takes the port of the channel from the agent and writes what is no message of it.
const BAD_GUEST: &str = r#"my @found = grep { (readlink($_) // "") =~ m{^/dev/vport} } glob("/proc/[0-9]*/fd/*");
@found or die "no port";
my ($pid, $fd) = $found[0] =~ m{/proc/(\d+)/fd/(\d+)};
my $process = syscall(434, $pid + 0, 0); # pidfd_open(2)
my $port = syscall(438, $process, $fd + 0, 0); # pidfd_getfd(2)
$port >= 0 or die "no descriptor: $!";
open(my $channel, ">&=", $port) or die $!;
syswrite($channel, pack("L*", map { int(rand(2**32)) } 1 .. 1024)) for 1 .. 16;
sleep 100;"#;

/// What all clients know.
#[derive(Debug)]
pub struct World {
    /// A client of each tenant.
    pub clients: Vec<Client>,
    pub socket: PathBuf,
    /// Files of the golden image and their SHA-256.
    pub content: BTreeMap<String, String>,
    /// Requests of this round that have been answered.
    pub answered: AtomicUsize,
}

/// A step of an errand that did not go well.
type Step<T> = Result<T, Outcome>;

fn failed(error: &ClientError) -> Outcome {
    Outcome::of(error, Outcome::Failed)
}

pub fn request() -> CreateSession {
    CreateSession { golden: GOLDEN.into(), deadline_ms: Some(DEADLINE), ..CreateSession::default() }
}

/// Goes on an errand. Whatever happens, its end comes.
pub async fn run(world: Arc<World>, errand: Errand, mut dice: Dice) -> Outcome {
    let work = async {
        match errand {
            Errand::Garbage => {
                let outcome = garbage(&world.socket, &mut dice).await;
                world.answered.fetch_add(1, Ordering::Relaxed);
                outcome.unwrap_or_else(|error| Outcome::Broke(error.to_string()))
            }
            Errand::Vanish => vanish(&world, &mut dice).await,
            _ => session(&world, errand, &mut dice).await,
        }
    };
    let hangs = |_| Outcome::Wrong(format!("no end within {LIMIT:?}"));
    tokio::time::timeout(scaled(LIMIT), work).await.unwrap_or_else(hangs)
}

async fn session(world: &World, errand: Errand, dice: &mut Dice) -> Outcome {
    let client = dice.pick(&world.clients).clone();
    let mark = format!("{:016x}", dice.roll());
    let wanted = CreateSession {
        env: BTreeMap::from([("MARK".to_owned(), mark.clone())]),
        wait_docker: errand == Errand::Docker,
        ..request()
    };
    let created = loop {
        match client.create(&wanted, None).await {
            // As who does not know that the daemon is just being replaced. The limit bounds it.
            Err(ClientError::Connect { .. }) => tokio::time::sleep(AGAIN).await,
            created => break created,
        }
    };
    world.answered.fetch_add(1, Ordering::Relaxed);
    let session = match created {
        Ok(session) => session,
        Err(error) => return Outcome::of(&error, Outcome::Refused),
    };
    let outcome = in_session(world, &client, &session, errand, &mark, dice).await;
    match client.kill(&session.id).await {
        Ok(()) => {}
        // It is over already, or with its daemon.
        Err(error) if outcome.is_err() && matches!(failed(&error), Outcome::Failed(_)) => {}
        Err(error) => match (failed(&error), &outcome) {
            (Outcome::Broke(_), _) => {}
            (Outcome::Failed(Reason { code, .. }), _) if code == "session_gone" => {}
            (Outcome::Failed(Reason { code, .. }), _) if code == "no_such_session" => {}
            (other, _) => return Outcome::Wrong(format!("not killed: {other:?}")),
        },
    }
    outcome.map_or_else(|outcome| outcome, |()| Outcome::Served(session.tier))
}

async fn sh(client: &Client, id: &str, script: &str) -> Step<String> {
    let command = Exec::new(["/bin/sh", "-c", script]);
    let result = client.exec(id, &command).await.map_err(|error| failed(&error))?;
    match result.outcome {
        ExecOutcome::ExitCode(0) => Ok(result.stdout.to_text().trim_end().to_owned()),
        other => Err(Outcome::Command(format!("{script}: {other:?}: {}", result.stderr.to_text()))),
    }
}

/// What became of a session whose download broke off: a connection that breaks tells no reason, the
/// session does.
async fn of_download(client: &Client, id: &str, outcome: Outcome) -> Outcome {
    match (outcome, client.session(id).await.map_err(|error| failed(&error))) {
        (Outcome::Broke(_), Err(reason @ Outcome::Failed(_))) => reason,
        (outcome, _) => outcome,
    }
}

fn same(what: &str, found: &str, wanted: &str) -> Step<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(Outcome::Wrong(format!("{what}: {found:?} instead of {wanted:?}"))),
    }
}

async fn in_session(
    world: &World,
    client: &Client,
    session: &SessionInfo,
    errand: Errand,
    mark: &str,
    dice: &mut Dice,
) -> Step<()> {
    let id = session.id.as_str();
    // Nothing of another, and itself.
    let script = "ls /root/mark 2>/dev/null; echo $MARK >/root/mark; hostname; cat /root/mark";
    same("which session", &sh(client, id, script).await?, &format!("mayfly-{id}\n{mark}"))?;
    match errand {
        Errand::Content => {
            let names: Vec<&String> = world.content.keys().collect();
            for _ in 0..2 {
                let name = *dice.pick(&names);
                let found = sh(client, id, &format!("sha256sum <{name}")).await?;
                same(name, &found, &world.content[name])?;
            }
        }
        Errand::Docker => {
            let ping = client.docker(id, Method::GET, "/_ping", "").await;
            let ping = ping.map_err(|error| failed(&error))?;
            let body = String::from_utf8_lossy(ping.body()).into_owned();
            match serde_json::from_str::<BTreeMap<String, String>>(&body) {
                Ok(told) if !ping.status().is_success() && told.contains_key("code") => {
                    let of = |key: &str| told.get(key).cloned().unwrap_or_default();
                    let reason = Reason { code: of("code"), message: of("message") };
                    return Err(Outcome::Failed(reason));
                }
                _ => same("Docker", &body, "OK")?,
            }
        }
        Errand::Files => {
            let length = 1 + dice.below(FILE);
            let content = dice.bytes(length);
            let written = client.write_file(id, "/root/file", 0o600, content.clone()).await;
            written.map_err(|error| failed(&error))?;
            let read = async {
                client.read_file(id, "/root/file", 0, None).await?.collect(2 * FILE).await
            };
            match read.await {
                Ok(read) if read == content => {}
                Ok(_) => return Err(Outcome::Wrong(format!("another file of {length} bytes"))),
                Err(error) => return Err(of_download(client, id, failed(&error)).await),
            }
        }
        Errand::BadGuest => {
            let command = Exec::new(["perl", "-e", BAD_GUEST]);
            let result = client.exec(id, &command).await.map_err(|error| failed(&error))?;
            let told = result.stderr.to_text().into_owned();
            return Err(Outcome::Wrong(format!("its garbage was taken: {told}")));
        }
        Errand::Compute | Errand::Vanish | Errand::Garbage => {}
    }
    // Still the same.
    same("which session", &sh(client, id, "cat /root/mark").await?, mark)
}

/// Goes away while it waits, or when it has a session.
async fn vanish(world: &World, dice: &mut Dice) -> Outcome {
    let client = dice.pick(&world.clients).clone();
    let patience = Duration::from_millis(dice.roll() % 400);
    let attached = dice.below(2) == 0;
    let answer = async {
        if attached {
            client.create_attached(&request()).await.map(drop)
        } else {
            // Nobody learns its id when the answer is lost: it ends by itself.
            let wanted = CreateSession { idle_timeout_seconds: Some(IDLE), ..request() };
            client.create(&wanted, None).await.map(drop)
        }
    };
    let outcome = tokio::time::timeout(patience, answer).await;
    world.answered.fetch_add(1, Ordering::Relaxed);
    match outcome {
        Ok(Err(error)) => Outcome::of(&error, Outcome::Refused),
        Ok(Ok(())) | Err(_) => Outcome::Vanished,
    }
}

/// Sends what is no request; returns what came back.
async fn garbage(socket: &Path, dice: &mut Dice) -> std::io::Result<Outcome> {
    let head = |length: usize| {
        let typed = format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        format!("POST /v1/sessions HTTP/1.1\r\nhost: mayfly\r\n{typed}").into_bytes()
    };
    let body = format!("{{\"golden\": \"{GOLDEN}\"");
    let sent = match dice.below(4) {
        0 => [head(body.len()), body.into_bytes()].concat(),
        1 => [head(OVERSIZED), vec![b' '; OVERSIZED]].concat(),
        2 => dice.bytes(4096),
        _ => {
            // Half a request, and then nothing any more.
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_all(&[head(2 * body.len()), body.into_bytes()].concat()).await?;
            return Ok(Outcome::Vanished);
        }
    };
    let mut stream = UnixStream::connect(socket).await?;
    // It may be refused before it has been read.
    let _ = stream.write_all(&sent).await;
    let mut answer = [0; 12];
    let status = match stream.read_exact(&mut answer).await {
        Ok(_) => String::from_utf8_lossy(&answer[9..]).parse().ok(),
        Err(_) => Some(0),
    };
    let strange = || Outcome::Wrong(format!("{:?}", String::from_utf8_lossy(&answer)));
    Ok(status.map_or_else(strange, Outcome::Answered))
}
