//! Attacks on the credentials of those who use a session.

use mayfly_engine::session::Session;
use mayfly_guest::channel::{ExecEvent, ExecRequest};
use mayfly_host::cgroup::Limits;
use mayfly_host::time_scale::scaled;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::ask::LIMIT;

const LISTEN: &str = include_str!("listen.pl");
/// The guest's own Docker socket.
const DOCKER: &str = mayfly_guest::docker::GUEST_SOCKET;
/// What a docker client sends with each request whose configuration has it among `HttpHeaders`, and
/// what browsers, login proxies and other clients send.
const SECRETS: [&str; 5] = [
    "Authorization: Bearer",
    "Cookie: login=",
    "Proxy-Authorization: Basic",
    "X-Api-Key:",
    "Mayfly-Tenant:",
];
/// What is after each of them, and after a header that is no secret.
const SECRET: &str = "mayfly-secret";
const CONTROL: &str = "mayfly-control";
/// Longest answer that is read, in bytes.
const LONGEST: usize = 64 << 10;

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let session = lab.session(Limits::default()).await?;
    // Root of the guest has put itself in the place of its Docker daemon.
    let mut listener =
        session.guest().exec(ExecRequest::new(["perl", "-e", LISTEN, DOCKER])).await?;
    match listener.recv().await? {
        Some(ExecEvent::Stdout(bytes)) if bytes.starts_with(b"listening") => {}
        other => {
            return Err(AuditError::Guest {
                what: "perl (package perl-base) to listen".into(),
                said: format!("{other:?}"),
            });
        }
    }
    let told = tokio::time::timeout(scaled(LIMIT), ask(&session)).await;
    let told = told.map_err(|_| AuditError::Guest {
        what: "an answer on its Docker socket".into(),
        said: "nothing in time".into(),
    })?;
    let told = told.map_err(AuditError::host("talk to a session's Docker socket"))?;
    for (what, told) in REQUESTS.iter().map(|(what, _)| what).zip(&told) {
        let seen = |line: &&str| line.contains(SECRET);
        let seen: Vec<&str> = told.lines().filter(seen).collect();
        let control = told.contains(CONTROL);
        findings.push(Attempt::judge(
            format!("read the credentials of a docker client on this host: {what}"),
            (
                format!(
                    "a header that is no secret: {}",
                    if control { "read" } else { "NOT read" }
                ),
                control,
            ),
            (if seen.is_empty() { "none".into() } else { seen.join(", ") }, !seen.is_empty()),
        ));
    }
    session.discard().await?;
    Ok(findings)
}

/// Requests of one connection, one after the other, and what follows the first line of each.
const REQUESTS: [(&str, &str); 3] = [
    ("the first request of a connection", ""),
    ("a later request of that connection", ""),
    ("a request to change the protocol", "Connection: Upgrade\r\nUpgrade: tcp\r\n"),
];

/// Sends them to the session's Docker socket on this host. Returns the heads as the guest tells it
/// got them.
async fn ask(session: &Session) -> std::io::Result<Vec<String>> {
    let socket = session.forward_docker().map_err(std::io::Error::other)?;
    let mut client = UnixStream::connect(socket.path()).await?;
    let secrets: String = SECRETS.iter().map(|name| format!("{name} {SECRET}\r\n")).collect();
    let mut told = Vec::new();
    for (_, headers) in REQUESTS {
        let request = format!(
            "GET /info HTTP/1.1\r\nHost: docker\r\n{secrets}X-Plain: {CONTROL}\r\n{headers}\r\n"
        );
        client.write_all(request.as_bytes()).await?;
        // Our answer's head, and in it the guest's.
        let mut read = Vec::new();
        while read.windows(4).filter(|end| end == b"\r\n\r\n").count() < 2 && read.len() < LONGEST {
            if client.read_buf(&mut read).await? == 0 {
                break;
            }
        }
        told.push(String::from_utf8_lossy(&read).into_owned());
    }
    Ok(told)
}
