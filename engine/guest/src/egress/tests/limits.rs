//! Limits on connections and bytes.

use super::world::{World, policy, status};
use crate::egress::{Limits, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
#[ignore = "needs root"]
fn bytes_end_with_the_connection_that_uses_them_up() {
    let limits = Limits { max_bytes: 500_000, ..Limits::default() };
    World::run(policy(&["server.test"]).with_limits(limits), async |world| {
        let answer = world.get("http://server.test/bytes/100000").await;
        assert!(answer.len() > 100_000);
        let cut = world.get("http://server.test/bytes/1000000").await;
        assert!(cut.len() < 500_000 && status(&cut) == 200, "{}", cut.len());
        let refused = world.get("http://server.test/").await;
        assert_eq!(status(&refused), 429);
        assert!(refused.contains("used up its 500000 bytes"), "{refused}");
        let lines = world.log.lines(3).await;
        assert_eq!(lines.iter().map(|line| line.bytes_up + line.bytes_down).sum::<u64>(), 500_000);
        assert_eq!((lines[1].verdict, lines[2].verdict), (Verdict::Allowed, Verdict::Denied));
        assert!(lines[1].reason.as_ref().unwrap().contains("used up"), "{lines:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn a_client_too_many_is_told_so_and_others_go_on() {
    let limits = Limits { max_connections: 2, total_connections: 4, ..Limits::default() };
    World::run(policy(&["server.test", "server.test:8080"]).with_limits(limits), async |world| {
        let mut tunnels = Vec::new();
        for _ in 0..2 {
            let mut client = world.connect().await;
            client.write_all(b"CONNECT server.test:8080 HTTP/1.1\r\n\r\n").await.unwrap();
            assert_ne!(client.read(&mut [0; 4096]).await.unwrap(), 0);
            tunnels.push(client);
        }
        for _ in 0..20 {
            let answer = world.get("http://server.test/").await;
            assert_eq!(status(&answer), 429, "{answer}");
            assert!(answer.contains("2 connections at a time"), "{answer}");
        }
        drop(tunnels.pop());
        // Its place comes back with its end.
        while status(&world.get("http://server.test/").await) == 429 {}
        assert_eq!(status(&world.get("http://server.test/").await), 200);
        let answer = world.get("http://server.test/").await;
        assert!(status(&answer) == 429 && answer.contains("used up its 4 connections"), "{answer}");
        let mut rest = tunnels.pop().unwrap();
        rest.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_ne!(rest.read(&mut [0; 64]).await.unwrap(), 0, "an open tunnel goes on");
    });
}

#[test]
#[ignore = "needs root"]
fn many_clients_at_a_time() {
    World::run(policy(&["server.test"]), async |world| {
        let asks = (0..60).map(|_| world.get("http://server.test/bytes/20000"));
        for answer in futures::future::join_all(asks).await {
            assert!(status(&answer) == 200 && answer.len() > 20_000, "{}", answer.len());
        }
        assert_eq!(world.log.lines(60).await.len(), 60);
        assert!(!world.egress.is_over());
        assert!(world.agent.descriptors() < 100);
        world.channel.health().await.unwrap();
    });
}
