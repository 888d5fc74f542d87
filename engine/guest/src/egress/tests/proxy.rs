//! Requests through the proxy port: what is allowed, what is denied, and what each is told.

use super::world::{SERVER, World, policy, status};
use crate::channel::{ExecRequest, ExitStatus};
use crate::egress::{Denied, Kind, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[test]
#[ignore = "needs root"]
fn a_request_reaches_the_server_as_if_there_were_no_proxy() {
    World::run(policy(&["server.test", "server.test:8080"]), async |world| {
        let request = "GET http://server.test/a?b HTTP/1.1\r\nHost: SERVER.test.\r\nproxy-connection: keep-alive\r\n\
                       proxy-authorization: Basic eDp5\r\nconnection: close, x-mine\r\nx-mine: 1\r\nx-kept: 2\r\n\r\n";
        let answer = world.ask(request).await.to_lowercase();
        assert_eq!(status(&answer), 200);
        let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
        assert!(seen.starts_with("get /a?b http/1.1\r\n"), "{seen}");
        assert!(seen.contains("host: server.test\r\n") && seen.contains("x-kept: 2\r\n"), "{seen}");
        assert!(!seen.contains("proxy-") && !seen.contains("x-mine"), "{seen}");
        let answer = world.get("http://server.test:8080/hop").await;
        assert!(answer.contains("x-end: 2") && !answer.contains("x-hop"), "{answer}");

        let lines = world.log.lines(2).await;
        let line = &lines[0];
        assert_eq!(
            (line.kind, line.verdict, line.host.as_str(), line.port),
            (Kind::Http, Verdict::Allowed, "server.test", 80)
        );
        assert_eq!(
            (line.session.as_str(), line.tenant.as_deref(), line.reason.as_deref()),
            ("s1", Some("red"), None)
        );
        assert_eq!(line.address.unwrap().to_string(), "198.51.100.7");
        assert!(line.bytes_up > 50 && line.bytes_down > 50, "{line:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_carries_bytes_and_half_closes() {
    World::run(policy(&["server.test:8080"]), async |world| {
        let mut client = world.connect().await;
        client.write_all(b"CONNECT server.test:8080 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut head = vec![0; 4096];
        let count = client.read(&mut head).await.unwrap();
        assert_eq!(status(&String::from_utf8_lossy(&head[..count])), 200);
        client.write_all(b"GET /bytes/300000 HTTP/1.1\r\n\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() > 300_000 && answer.ends_with(b"xxx"), "{}", answer.len());
        let lines = world.log.lines(1).await;
        assert_eq!((lines[0].kind, lines[0].verdict), (Kind::Connect, Verdict::Allowed));
        assert_eq!((lines[0].bytes_up, lines[0].bytes_down), (30, answer.len() as u64));
    });
}

#[test]
#[ignore = "needs root"]
fn whatever_the_policy_or_the_address_forbids_is_refused_with_a_line() {
    let entries = [
        "server.test",
        "inside.test",
        "localhost",
        "metadata.test",
        "private.test",
        "*.sub.test",
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "dead.test:1",
    ];
    World::run(policy(&entries), async |world| {
        let cases = [
            ("other.test", 80, 403, "no entry"),
            ("server.test", 22, 403, "no entry"),
            ("198.51.100.7", 80, 403, "no entry"),
            ("sub.test", 80, 403, "no entry"),
            ("localhost", 80, 403, "loopback"),
            ("inside.test", 80, 403, "loopback"),
            ("127.0.0.1", 80, 403, "loopback"),
            ("[::1]", 80, 403, "loopback"),
            ("[::ffff:127.0.0.1]", 80, 403, "loopback"),
            ("metadata.test", 80, 403, "link-local"),
            ("169.254.169.254", 80, 403, "link-local"),
            ("private.test", 80, 403, "private"),
            ("server.test", 443, 502, "refused"),
            ("127.1", 80, 400, "neither"),
            ("2130706433", 80, 400, "neither"),
            ("user@server.test", 80, 400, "neither"),
        ];
        for (count, (host, port, code, word)) in cases.into_iter().enumerate() {
            let (http, connect) = (format!("http://{host}:{port}/"), format!("{host}:{port}"));
            let answers = [
                world.get(&http).await,
                world.ask(&format!("CONNECT {connect} HTTP/1.1\r\nhost: {connect}\r\n\r\n")).await,
            ];
            for answer in &answers {
                assert_eq!(status(answer), code, "{host}:{port}: {answer}");
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(body.contains(word) && body.lines().count() == 1, "{host}:{port}: {body}");
                // Where a name leads is in the log alone.
                for address in ["127.0.0.1", "169.254.169.254", "10.0.0.1", SERVER] {
                    assert!(host.contains(address) || !answer.contains(address), "{host}: {body}");
                }
            }
            let lines = world.log.lines(2 * count + 2).await;
            let verdict = if code == 502 { Verdict::Failed } else { Verdict::Denied };
            for line in &lines[2 * count..] {
                assert_eq!(line.verdict, verdict, "{line:?}");
                assert!(line.reason.as_ref().unwrap().contains(word), "{line:?}");
                assert_eq!((line.bytes_up, line.bytes_down), (0, 0));
            }
        }
        assert_eq!(Denied::Loopback.to_string(), "a loopback address");
    });
}

#[test]
#[ignore = "needs root"]
fn every_request_on_a_connection_is_decided_anew() {
    World::run(policy(&["server.test", "169.254.169.254"]), async |world| {
        let mut client = world.connect().await;
        let mut buffer = vec![0; 65536];
        for (url, code) in [
            ("http://server.test/", 200),
            ("http://other.test/", 403),
            ("http://server.test/redirect", 302),
            // Where the redirect leads, as a client would follow it.
            ("http://169.254.169.254/latest/meta-data/", 403),
            ("http://server.test/", 200),
        ] {
            let host = url.split('/').nth(2).unwrap();
            client
                .write_all(format!("GET {url} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            while !complete(&answer) {
                let count = client.read(&mut buffer).await.unwrap();
                assert_ne!(count, 0, "{answer}");
                answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            assert_eq!(status(&answer), code, "{url}: {answer}");
        }
        let verdicts: Vec<Verdict> =
            world.log.lines(5).await.iter().map(|line| line.verdict).collect();
        let (allowed, denied) = (Verdict::Allowed, Verdict::Denied);
        assert_eq!(verdicts, [allowed, denied, allowed, denied, allowed]);
    });
}

fn complete(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head
        .to_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

#[test]
#[ignore = "needs root"]
fn of_several_addresses_only_those_that_pass_are_tried() {
    World::run(policy(&["both.test"]), async |world| {
        for _ in 0..3 {
            assert_eq!(status(&world.get("http://both.test/").await), 200);
        }
        for line in world.log.lines(3).await {
            assert_eq!(line.address.unwrap().to_string(), "198.51.100.7");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn heads_without_end_and_garbage_are_cut_off() {
    World::run(policy(&["server.test"]), async |world| {
        let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
        let answer = world
            .ask(&format!("GET http://server.test/ HTTP/1.1\r\nhost: server.test\r\n{many}\r\n"))
            .await;
        assert_eq!(status(&answer), 431);
        let long = format!(
            "GET http://server.test/{} HTTP/1.1\r\nhost: server.test\r\n",
            "x".repeat(1 << 20)
        );
        let answer = world.ask(&long).await;
        assert!(answer.is_empty() || status(&answer) >= 400, "{answer}");
        let answer = world.ask("\0\x01\x02 garbage\r\n\r\n").await;
        assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
        assert_eq!(status(&world.ask("GET / HTTP/1.1\r\nhost: server.test\r\n\r\n").await), 400);
        // And it still works.
        assert_eq!(status(&world.get("http://server.test/").await), 200);
    });
}

#[test]
#[ignore = "needs root"]
fn nothing_is_left_when_it_ends() {
    World::run(policy(&["server.test:8080"]), async |world| {
        let World { channel, egress, agent, log, .. } = world;
        let proxy = ("127.0.0.1", egress.ports().proxy);
        assert!(channel.open_egress().await.is_err(), "there is egress already");
        let environment = |channel| async move { variables(channel).await };
        assert!(
            environment(&channel)
                .await
                .contains(&format!("HTTPS_PROXY=http://127.0.0.1:{}", proxy.1))
        );
        let mut tunnel = TcpStream::connect(proxy).await.unwrap();
        tunnel.write_all(b"CONNECT server.test:8080 HTTP/1.1\r\n\r\n").await.unwrap();
        assert_ne!(tunnel.read(&mut [0; 4096]).await.unwrap(), 0);
        drop(egress);
        assert_eq!(tunnel.read(&mut [0; 64]).await.unwrap_or(0), 0, "the tunnel has ended");
        assert_eq!(log.lines(1).await[0].verdict, Verdict::Allowed);
        while TcpStream::connect(proxy).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(!environment(&channel).await.contains("_PROXY="));
        // It can be had again, and parking ends it, too.
        let guest = channel.open_egress().await.unwrap();
        let proxy = ("127.0.0.1", guest.ports.proxy);
        let waiting = guest.clients.clone();
        let waiting = tokio::spawn(async move { waiting.accept().await });
        drop(TcpStream::connect(proxy).await.unwrap());
        waiting.await.unwrap().unwrap();
        channel.park().await.unwrap();
        assert!(TcpStream::connect(proxy).await.is_err(), "the parked phase has no listener");
        drop(agent);
    });
}

async fn variables(channel: &crate::channel::Channel) -> String {
    let output = channel.exec(ExecRequest::new(["env"])).await.unwrap().output().await.unwrap();
    assert_eq!(output.status, ExitStatus::Code(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs root"]
fn when_the_proxy_dies_its_connections_end_and_new_ones_begin() {
    World::run(policy(&["server.test", "server.test:8080"]), async |world| {
        let mut tunnel = world.connect().await;
        tunnel.write_all(b"CONNECT server.test:8080 HTTP/1.1\r\n\r\n").await.unwrap();
        assert_ne!(tunnel.read(&mut [0; 4096]).await.unwrap(), 0);
        world.proxies.end().await;
        assert_eq!(tunnel.read(&mut [0; 64]).await.unwrap_or(0), 0, "the tunnel has ended");
        // A client that comes in the moment of the death may be lost with it.
        while world.get("http://server.test/").await.is_empty() {}
        assert_eq!(status(&world.get("http://server.test/").await), 200);
        assert!(!world.egress.is_over());
        let lines = world.log.lines(3).await;
        assert!(lines.iter().any(|line| line.kind == Kind::Connect), "{lines:?}");
    });
}
