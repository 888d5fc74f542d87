//! Guests and browsers: what a guest answers does not act on the daemon's origin, and what proves a
//! client does not reach a guest.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mayfly_api::{CreateSession, Exec};
use mayfly_chaos_tests::daemon::{Daemon, TOKEN};
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::program::{Finished, Program};
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use serde_json::json;

use crate::support::{SMALL_POOL, client, request, sh, until};

const SERVER: &str = include_str!("origin.pl");
/// Bound on each wait for an answer. It only ends what hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Headers of a request that prove somebody, with the same secret in each. They name no tenant that
/// could not be.
const SECRETS: &str = "Authorization: Bearer secret-of-host\r\nCookie: login=secret-of-host\r\n\
    Proxy-Authorization: Basic secret-of-host\r\nX-API-Key: secret-of-host\r\n\
    X-Forwarded-Access-Token: secret-of-host\r\nMayfly-Tenant: default\r\n";

/// A connection to one of a daemon's listeners.
trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

fn unix(path: &Path) -> Box<dyn Connection> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Box::new(stream)
}

/// The head of an answer in lower case, and its body with what comes behind that (trailers); for
/// status 101, the request that the server tells then.
fn answer(stream: &mut dyn Connection) -> (String, String) {
    let head = read_until(stream, "\r\n\r\n").to_lowercase();
    if head.starts_with("http/1.1 101") {
        return (head, read_until(stream, "\r\n\r\n"));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if let Some(length) = length {
        let body = read(stream, length.trim().parse().unwrap());
        return (head, body);
    }
    let mut body = String::new();
    loop {
        let line = read_until(stream, "\r\n");
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        body += &read(stream, size);
        read_until(stream, "\r\n");
    }
    loop {
        let trailer = read_until(stream, "\r\n");
        body += &trailer;
        if trailer == "\r\n" {
            return (head, body);
        }
    }
}

fn read(stream: &mut dyn Connection, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn read_until(stream: &mut dyn Connection, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        text += &read(stream, 1);
    }
    text
}

/// Asks over the Unix socket, as a browser behind an SSH forward does.
fn get(daemon: &Daemon, path: &str, headers: &str) -> (String, String) {
    let mut stream = unix(daemon.socket());
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:7070\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    answer(&mut *stream)
}

/// Replaces the Docker daemon of a session by [`SERVER`], which is on port 8080, too.
async fn serve(client: &Client, id: &str) {
    let server = Exec::new(["perl", "-e", SERVER, "/run/docker.sock", "8080"]);
    let command = client.start_background(id, &server).await.unwrap();
    until("the guest's server", || async {
        let output = client
            .background_output(id, command.n, mayfly_api::Stream::Stdout, 0, PATIENCE)
            .await
            .unwrap();
        (output.data.to_text().matches("listening").count() == 2).then_some(())
    })
    .await;
}

/// Headers that a guest's answer must not have.
const EVIL: [&str; 11] = [
    "set-cookie",
    "clear-site-data",
    "service-worker-allowed",
    "alt-svc",
    "nel",
    "report-to",
    "reporting-endpoints",
    "strict-transport-security",
    "refresh",
    "www-authenticate",
    "x-accel-redirect",
];

fn assert_harmless(head: &str, body: &str) {
    assert!(head.contains("\r\nx-plain: 1\r\n"), "other headers pass: {head}");
    assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{head}");
    for name in EVIL {
        assert!(!head.contains(&format!("\r\n{name}:")), "{name}: {head}");
    }
    assert!(!body.contains("login=evil"), "a trailer: {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_neither_acts_on_the_origin_of_the_daemon_nor_gets_credentials() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let session = client.create(&request(), None).await.unwrap();
    let id = session.id.as_str();
    serve(&client, id).await;

    for route in ["docker", "ports/8080"] {
        let root = format!("/v1/sessions/{id}/{route}");
        for path in ["page", "error", "parts"] {
            let path = format!("{root}/{path}");
            // Clients that say that they take trailers.
            let headers = format!("{SECRETS}TE: trailers\r\nConnection: TE\r\nX-Plain: 2\r\n");
            let (head, body) = get(&daemon, &path, &headers);
            assert_harmless(&head, &body);
            assert!(head.contains("\r\ncontent-security-policy: sandbox "), "{path}: {head}");
            assert!(!head.contains("allow-same-origin"), "{path}: {head}");
            assert!(!head.contains("multipart"), "{path}: {head}");
            assert!(head.contains(&format!("\r\nlocation: {root}/v1/sessions\r\n")), "{head}");
            // What it was asked, the guest has said itself.
            assert!(body.contains("x-plain: 2") && !body.contains("secret-of-host"), "{body}");
            assert!(!body.to_lowercase().contains("mayfly-tenant"), "{body}");
        }
        let headers = format!("{SECRETS}X-Plain: 2\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n");
        let (head, body) = get(&daemon, &format!("/v1/sessions/{id}/{route}/x"), &headers);
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert_harmless(&head, &body);
        assert!(body.contains("x-plain: 2") && !body.contains("secret-of-host"), "{body}");
        // A page of the guest, or of anybody else, does not speak to it from a browser.
        for foreign in ["Origin: null\r\n", "Origin: http://localhost:3000\r\n"] {
            let headers = format!("{foreign}Connection: Upgrade\r\nUpgrade: websocket\r\n");
            let (head, body) = get(&daemon, &format!("/v1/sessions/{id}/{route}/x"), &headers);
            assert!(head.starts_with("http/1.1 403") && body.contains("foreign_origin"), "{body}");
        }
    }
    // What a browser asks for a guest's own page is answered, of a port only.
    let link =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let shown = |route: &str| get(&daemon, &format!("/v1/sessions/{id}/{route}"), link).0;
    assert!(shown("ports/8080/page").starts_with("http/1.1 200"));
    assert!(shown("docker/page").starts_with("http/1.1 403"));

    // Bytes of a guest on other routes are no pages either.
    sh(&client, id, "echo '<script>alert(1)</script>' >/tmp/page.html").await;
    for (path, kind) in [
        ("files/content?path=/tmp/page.html", "application/octet-stream"),
        ("files/tar?path=/tmp/page.html", "application/x-tar"),
        ("files/list?path=/tmp", "application/json"),
        ("logs", "text/plain; charset=utf-8"),
    ] {
        let (head, _) = get(&daemon, &format!("/v1/sessions/{id}/{path}"), "");
        assert!(head.contains(&format!("\r\ncontent-type: {kind}\r\n")), "{path}: {head}");
        assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{path}: {head}");
        assert!(head.contains("\r\ncontent-security-policy: default-src 'none'"), "{path}: {head}");
        let saved = head.contains("\r\ncontent-disposition: attachment\r\n");
        assert_eq!(
            saved,
            path.starts_with("files/content") || path.starts_with("files/tar"),
            "{path}"
        );
    }

    docker_socket(&session.docker_socket);
    client.kill(id).await.unwrap();
    over_tcp(&daemon).await;
    daemon.stop();
}

/// Each request of a connection to the socket of stock clients goes without credentials.
fn docker_socket(path: &Path) {
    let mut stream = unix(path);
    for n in 0..3 {
        let head = format!("GET /{n} HTTP/1.1\r\nHost: docker\r\n{SECRETS}X-Plain: 2\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let (_, body) = answer(&mut *stream);
        assert!(body.contains(&format!("GET /{n} ")) && body.to_lowercase().contains("x-plain: 2"));
        assert!(!body.contains("secret-of-host"), "{body}");
    }
}

/// Nor does the token of a tenant reach its guest.
async fn over_tcp(daemon: &Daemon) {
    let id = daemon.create(&json!({ "golden": GOLDEN, "deadline_ms": 300_000 }));
    let client = Client::tcp(daemon.address().to_string(), TOKEN).unwrap();
    serve(&client, &id).await;
    for route in ["docker", "ports/8080"] {
        let mut stream = TcpStream::connect(daemon.address()).unwrap();
        let head = format!(
            "GET /v1/sessions/{id}/{route}/x HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {TOKEN}\r\n\
             Cookie: login=secret-of-host\r\nX-Plain: 2\r\n\r\n",
            daemon.address()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let (head, body) = answer(&mut stream);
        assert_harmless(&head, &body);
        assert!(body.contains("x-plain: 2"), "{body}");
        assert!(!body.contains("Bearer") && !body.contains("secret-of-host"), "{body}");
    }
    client.kill(&id).await.unwrap();
}

fn docker_is_here() -> bool {
    let found = Command::new("docker").arg("--version").output();
    let here = found.is_ok_and(|output| output.status.success());
    if !here {
        mayfly_skip::skip("this host has no docker client");
    }
    here
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_docker_client_works_and_keeps_its_token_to_itself() {
    if !docker_is_here() {
        return;
    }
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let client = client(&daemon);
    let wanted = CreateSession { wait_docker: true, ..request() };
    let local = client.create(&wanted, None).await.unwrap();
    let address = daemon.address().to_string();
    let tenant = Client::tcp(address.clone(), TOKEN).unwrap();
    let remote = tenant.create(&wanted, None).await.unwrap();

    // A person's own configuration, which sends a token to every daemon.
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("docker");
    std::fs::create_dir(&config).unwrap();
    let headers =
        json!({ "HttpHeaders": { "Authorization": "Bearer secret-of-host", "X-Plain": "2" } });
    std::fs::write(config.join("config.json"), headers.to_string()).unwrap();
    let url = format!("http://{address}");
    let here = |args: &[&str]| {
        let args = ["docker", local.id.as_str()].into_iter().chain(args.iter().copied());
        daemon.home().mayfly(args).env("DOCKER_CONFIG", &config)
    };
    let there = |args: &[&str]| {
        let args = ["docker", "--daemon", url.as_str(), remote.id.as_str()]
            .into_iter()
            .chain(args.iter().copied());
        daemon.home().mayfly(args).env("DOCKER_CONFIG", &config).env("MAYFLY_TOKEN", TOKEN)
    };
    let echo = ["run", "--rm", "-i", "busybox", "cat"];
    for ended in [
        here(&echo).stdin("both ways\n").run(),
        there(&echo).stdin("both ways\n").run(),
        stock(&["run", "--rm", "-i", "busybox", "cat"], &local.docker_socket, &config)
            .stdin("both ways\n")
            .run(),
    ] {
        assert_eq!((ended.code(), &*ended.stdout), (0, "both ways\n"), "{ended}");
    }
    let exits = ["run", "--rm", "busybox", "sh", "-c", "exit 7"];
    assert_eq!((here(&exits).run().code(), there(&exits).run().code()), (7, 7));
    built(&here, folder.path());
    built(&there, folder.path());
    refusals(&here, &there);

    // With somebody else in the place of Docker, the client's requests show what it sends.
    for (client, id) in [(&client, &local.id), (&tenant, &remote.id)] {
        serve(client, id).await;
    }
    let _ = stock(&["ps"], &local.docker_socket, &config).run();
    let heads = sh(&client, &local.id, "cat /tmp/heads; rm /tmp/heads").await;
    assert!(heads.to_lowercase().contains("x-plain: 2"), "{heads}");
    assert!(!heads.contains("secret-of-host"), "{heads}");
    let (_, _) = (here(&["ps"]).run(), there(&["ps"]).run());
    for (client, id) in [(&client, &local.id), (&tenant, &remote.id)] {
        let heads = sh(client, id, "cat /tmp/heads").await;
        assert!(heads.contains("/_ping"), "{heads}");
        let lower = heads.to_lowercase();
        assert!(!lower.contains("authorization") && !lower.contains("x-plain"), "{heads}");
    }
    for (client, id) in [(&client, &local.id), (&tenant, &remote.id)] {
        client.kill(id).await.unwrap();
    }
    daemon.stop();
}

/// The stock client with a person's configuration.
fn stock(args: &[&str], socket: &Path, config: &Path) -> Program {
    let mut docker = Command::new("docker");
    docker.args(args);
    Program::new(docker)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("DOCKER_CONFIG", config)
}

/// A build context goes in, over a request with a body of unknown length.
fn built(docker: &dyn Fn(&[&str]) -> Program, folder: &Path) {
    let context = folder.join("context");
    let _ = std::fs::create_dir(&context);
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY big /big\n").unwrap();
    std::fs::write(context.join("big"), vec![b'x'; 3 << 20]).unwrap();
    let context = context.display().to_string();
    let ended = docker(&["build", "-q", "-t", "built", &context]).env("DOCKER_BUILDKIT", "0").run();
    assert!(ended.success(), "{ended}");
    let size = docker(&["run", "--rm", "built", "stat", "-c", "%s", "/big"]).run();
    assert_eq!(size.stdout, "3145728\n", "{size}");
}

/// What is wrong is said, and docker is not led to another daemon.
fn refusals(here: &dyn Fn(&[&str]) -> Program, there: &dyn Fn(&[&str]) -> Program) {
    let complains = |ended: Finished, code: i32, of: &str| {
        assert_eq!(ended.code(), code, "{ended}");
        assert!(ended.complaint().contains(of), "{of}: {ended}");
    };
    complains(there(&["-H", "tcp://127.0.0.1:1", "ps"]).run(), 125, "-H");
    complains(there(&["ps"]).env("MAYFLY_TOKEN", "wrong").run(), 125, "not known");
    complains(here(&["ps"]).env("PATH", "/no/such/folder").run(), 127, "docker");
}
