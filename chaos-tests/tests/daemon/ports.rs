//! TCP ports of a session: raw, forwarded by the command line, published by containers, and the
//! redirects of servers behind them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use mayfly_api::{CreateSession, Exec, Publish, SessionInfo};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{SMALL_POOL, client, gone, refusal, request, sh, until};

/// A server that hears all that a client says, and then says it in capital letters, with an end of
/// line. It lets many wait: the two that busybox's `nc -ll` lets wait make the kernel reset others.
const UPPER: &str = "nohup perl -MIO::Socket::INET -e '\
    $all = IO::Socket::INET->new(LocalPort => PORT, Listen => 128, ReuseAddr => 1) or die $@; \
    $SIG{CHLD} = q(IGNORE); \
    while (1) { \
        $one = $all->accept or next; \
        if (!fork) { local $/; $said = <$one>; print $one uc($said), qq(\\n); exit } \
        close $one \
    }' >/dev/null 2>&1 </dev/null &";

async fn serve_upper(client: &Client, id: &str, port: u16) {
    let server = Exec::new(["sh", "-c", &UPPER.replace("PORT", &port.to_string())]);
    client.start_background(id, &server).await.unwrap();
    sh(client, id, &format!("until busybox netstat -ltn | grep -q :{port}; do sleep 0.05; done"))
        .await;
}

/// Says something through a socket of this host, with half-close, and returns the answer.
fn converse(address: SocketAddr, words: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(words.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_tcp_has_half_close_and_says_before_it_begins_what_is_wrong() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let id = client.create(&request(), None).await.unwrap().id;
    let refused = refusal(client.connect_tcp(&id, 7000).await);
    assert_eq!(refused, (502, "connection_refused".into()));
    let plain = daemon.ask("GET", &format!("/v1/sessions/{id}/tcp/7000"), Some("abc"), None);
    // Of another tenant, to whom the session is unknown.
    assert_eq!(plain.status, 404, "{}", plain.body);
    for (upgrade, status) in [("", 426), ("Connection: Upgrade\r\nUpgrade: websocket\r\n", 426)] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let head =
            format!("GET /v1/sessions/{id}/tcp/7000 HTTP/1.1\r\nHost: mayfly\r\n{upgrade}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"));
    }
    serve_upper(&client, &id, 7000).await;

    let mut stream = client.connect_tcp(&id, 7000).await.unwrap();
    let words = "words ".repeat(200_000);
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let say = async {
        writer.write_all(words.as_bytes()).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut answer = String::new();
    tokio::join!(say, async { reader.read_to_string(&mut answer).await.unwrap() });
    assert_eq!(answer.trim_end(), words.to_uppercase().trim_end());

    // Many at a time.
    let many = (0..30).map(|n| {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move {
            let mut stream = client.connect_tcp(&id, 7000).await.unwrap();
            stream.write_all(format!("number {n}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, format!("NUMBER {n}\n"));
        })
    });
    for one in many.collect::<Vec<_>>() {
        one.await.unwrap();
    }

    // It ends with the session.
    let mut open = client.connect_tcp(&id, 7000).await.unwrap();
    open.write_all(b"x").await.unwrap();
    client.kill(&id).await.unwrap();
    assert_eq!(open.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert_eq!(refusal(client.connect_tcp(&id, 7000).await), gone());
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_listens_for_ports_until_the_session_is_over() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let client = client(&daemon);
    let home = daemon.home();
    let id = client.create(&request(), None).await.unwrap().id;
    serve_upper(&client, &id, 7000).await;
    let ports = ["0:7000", "127.0.0.9:0:7001"];
    let forward = home.mayfly(["--json", "forward", &id, ports[0], ports[1]]);
    let mut forward = forward.start();
    let addresses = forward.until("its addresses", |running| {
        let said = running.stdout();
        let lines: Vec<Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == 2).then_some(lines)
    });
    let address =
        |n: usize| addresses[n]["address"].as_str().unwrap().parse::<SocketAddr>().unwrap();
    assert_eq!((&addresses[0]["port"], &addresses[1]["port"]), (&json!(7000), &json!(7001)));
    assert_eq!(address(1).ip(), Ipv4Addr::new(127, 0, 0, 9));
    let talk = tokio::task::spawn_blocking({
        let (first, second) = (address(0), address(1));
        move || {
            let many: Vec<_> = (0..20)
                .map(|n| {
                    std::thread::spawn(move || converse(first, &format!("hello {n}")).unwrap())
                })
                .collect();
            for (n, one) in many.into_iter().enumerate() {
                assert_eq!(one.join().unwrap(), format!("HELLO {n}\n"));
            }
            // Nothing listens there: closed, and the others go on.
            assert!(converse(second, "x").map_or(true, |answer| answer.is_empty()));
            assert_eq!(converse(first, "again").unwrap(), "AGAIN\n");
        }
    });
    talk.await.unwrap();
    // What cannot be had is said before anything is.
    let taken = home.mayfly(["forward", &id, &format!("{}:7000", address(0))]).run();
    assert!(
        !taken.success() && taken.stdout.is_empty() && taken.complaint().contains("cannot listen"),
        "{taken}"
    );
    let nobody = home.mayfly(["forward", "nobody", "80"]).run();
    assert!(!nobody.success() && nobody.complaint().contains("no session"), "{nobody}");
    client.kill(&id).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || forward.wait()).await.unwrap();
    assert!(!ended.success() && ended.complaint().contains("is over"), "{ended}");

    let id = client.create(&request(), None).await.unwrap().id;
    let mut forward = home.mayfly(["forward", &id, "0:7000"]).start();
    forward.until("its address", |running| running.stdout().contains(" -> 7000").then_some(()));
    forward.signal(Signal::SIGINT);
    let ended = tokio::task::spawn_blocking(move || forward.wait()).await.unwrap();
    assert_eq!(ended.code(), 130, "{ended}");
    client.kill(&id).await.unwrap();
    daemon.stop();
}

async fn call(client: &Client, id: &str, path: &str, body: Value) -> Value {
    let answer = client.docker(id, hyper::Method::POST, path, body.to_string()).await.unwrap();
    assert!(answer.status().is_success(), "{path}: {answer:?}");
    serde_json::from_slice(answer.body()).unwrap_or_default()
}

/// Runs a web server in a container that publishes its port as these; returns its id.
async fn container(client: &Client, id: &str, published: &[u16]) -> String {
    let bindings: Vec<_> =
        published.iter().map(|port| json!({ "HostPort": port.to_string() })).collect();
    let config = json!({
        "Image": "busybox", "Cmd": ["httpd", "-f", "-p", "80", "-h", "/etc"],
        "ExposedPorts": { "80/tcp": {} }, "HostConfig": { "PortBindings": { "80/tcp": bindings } },
    });
    let made = call(client, id, "/v1.41/containers/create", config).await;
    let container = made["Id"].as_str().unwrap().to_owned();
    call(client, id, &format!("/v1.41/containers/{container}/start"), Value::Null).await;
    container
}

fn is_open(address: Ipv4Addr, port: u16) -> bool {
    TcpStream::connect((address, port)).is_ok()
}

async fn published(client: &Client, id: &str, port: u16, open: bool) -> SessionInfo {
    until("a published port", || async {
        let info = client.session(id).await.unwrap();
        let found = info.published_ports.iter().find(|published| published.port == port);
        match (found, open) {
            (Some(published), true) if published.error.is_none() => Some(info),
            (None, false) => Some(info),
            _ => None,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_publish_is_open_on_an_address_of_the_session() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(&format!("{SMALL_POOL}[publish]\non_localhost = true\n"));
    let client = client(&daemon);
    let wanted = CreateSession { publish: Some(Publish::Own), wait_docker: true, ..request() };
    let session = client.create(&wanted, None).await.unwrap();
    let (id, address) = (session.id.as_str(), session.published_address.unwrap());
    assert!(address.is_loopback() && address != Ipv4Addr::LOCALHOST);
    // 0 is a free port of the session's; a low one, and one that is taken, are not had.
    let other = std::net::TcpListener::bind((address, 8090)).unwrap();
    let first = container(&client, id, &[8080, 0, 88, 8090]).await;
    let info = published(&client, id, 8080, true).await;
    let of = |info: &SessionInfo, port: u16| {
        let found = info.published_ports.iter().find(|published| published.port == port);
        found.unwrap_or_else(|| panic!("{port}: {info:?}")).error.clone().unwrap_or_default()
    };
    assert!(of(&info, 88).contains("below 1024"), "{info:?}");
    assert!(of(&info, 8090).contains("in use"), "{info:?}");
    let free = info.published_ports.iter().find(|published| published.port > 10_000).unwrap();
    assert_eq!(free.error, None);
    for port in [8080, free.port] {
        let answer = converse((address, port).into(), "GET /hostname HTTP/1.0\r\n\r\n").unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }
    assert!(!is_open(Ipv4Addr::LOCALHOST, free.port), "on no other address");
    drop(other);
    published(&client, id, 8090, true).await;

    // Sessions do not come in each other's way.
    let second = client.create(&wanted, None).await.unwrap();
    assert_ne!(second.published_address, session.published_address);
    container(&client, &second.id, &[8080]).await;
    published(&client, &second.id, 8080, true).await;
    client.kill(&second.id).await.unwrap();
    assert!(!is_open(second.published_address.unwrap(), 8080), "all is gone with the session");

    // A container that stops takes its ports with it, and brings them again.
    call(&client, id, &format!("/v1.41/containers/{first}/stop?t=0"), Value::Null).await;
    published(&client, id, 8080, false).await;
    assert!(!is_open(address, 8080));
    call(&client, id, &format!("/v1.41/containers/{first}/start"), Value::Null).await;
    published(&client, id, 8080, true).await;
    client.kill(id).await.unwrap();
    assert!(!is_open(address, 8080));

    // On the host's own address, which sessions share.
    let started = daemon.home().mayfly(["--json", "start", "default", "--publish=127.0.0.1"]).run();
    let started: SessionInfo = serde_json::from_str(&started.stdout).unwrap();
    assert_eq!(started.published_address, Some(Ipv4Addr::LOCALHOST));
    until("Docker", || async {
        client
            .docker(&started.id, hyper::Method::GET, "/_ping", "")
            .await
            .ok()
            .filter(|a| a.status() == 200)
    })
    .await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    container(&client, &started.id, &[port]).await;
    published(&client, &started.id, port, true).await;
    let answer =
        converse((Ipv4Addr::LOCALHOST, port).into(), "GET /hostname HTTP/1.0\r\n\r\n").unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
    client.kill(&started.id).await.unwrap();
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_of_a_real_server_stay_below_its_port() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::start(SMALL_POOL, &[]);
    let client = client(&daemon);
    let id = client.create(&request(), None).await.unwrap().id;
    // busybox httpd sends a folder without a slash to the one with it; the rest is said by hand.
    sh(&client, &id, "mkdir -p /tmp/www/d /tmp/www/cgi-bin; echo index >/tmp/www/d/index.html; \
        printf '#!/bin/sh\\nprintf \"Status: 302 Found\\\\r\\\\nLocation: $QUERY_STRING\\\\r\\\\n\\\\r\\\\n\"\\n' >/tmp/www/cgi-bin/to; \
        chmod +x /tmp/www/cgi-bin/to").await;
    let server = Exec::new(["busybox", "httpd", "-f", "-p", "127.0.0.1:8000", "-h", "/tmp/www"]);
    client.start_background(&id, &server).await.unwrap();
    let get = async |path: &str| {
        let request = Request::get(path).body(Bytes::new()).unwrap();
        client.port(&id, 8000, request).await.unwrap()
    };
    until("a server in the guest", || async {
        (get("/d/index.html").await.status() == StatusCode::OK).then_some(())
    })
    .await;
    let prefix = format!("/v1/sessions/{id}/ports/8000");
    let folder = get("/d").await;
    assert!(folder.status().is_redirection(), "{folder:?}");
    assert_eq!(folder.headers()["location"], format!("{prefix}/d/"));
    for (told, led) in [
        ("/d/", "/d/"),
        ("http://localhost:8000/d/", "/d/"),
        ("http://127.0.0.1:8000/d/?a", "/d/?a"),
        ("//localhost:8000/x", "/x"),
        ("../d/", "/d/"),
        ("next", "/cgi-bin/next"),
        ("/v1/sessions", "/v1/sessions"),
    ] {
        let answer = get(&format!("/cgi-bin/to?{told}")).await;
        assert_eq!(answer.status(), StatusCode::FOUND, "{told}: {answer:?}");
        assert_eq!(answer.headers()["location"], format!("{prefix}{led}"), "{told}");
        // What a client that follows it gets is of the guest.
        if led.starts_with("/d/") {
            assert_eq!(&get(led).await.body()[..], b"index\n");
        }
    }
    client.kill(&id).await.unwrap();
    daemon.stop();
}
