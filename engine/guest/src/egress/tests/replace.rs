//! Another policy for a session that has egress: what it forbids ends, what it allows goes on, and
//! what was used counts.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{World, policy, status};
use crate::egress::{Egress, Limits, Policy};

async fn tunnel(world: &World, target: &str) -> TcpStream {
    let mut client = world.connect().await;
    client.write_all(format!("CONNECT {target} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = vec![0; 4096];
    let count = client.read(&mut head).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&head[..count])), 200);
    client
}

/// Sends a request through a tunnel, and returns whether it was answered.
async fn is_answered(client: &mut TcpStream) -> bool {
    let _ = client.write_all(b"GET /bytes/10 HTTP/1.1\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    answer.ends_with(b"xxxxxxxxxx")
}

fn like(world: &World, policy: Policy) -> Policy {
    policy.with_observer(world.log.clone()).with_tenant("red")
}

#[test]
#[ignore = "needs root"]
fn what_another_policy_forbids_is_cut_off_and_the_rest_goes_on() {
    World::run(policy(&["server.test:*", "other.test:8080"]), async |world| {
        let mut kept = tunnel(&world, "server.test:8080").await;
        let mut port_forbidden = tunnel(&world, "server.test:80").await;
        let mut forbidden = tunnel(&world, "other.test:8080").await;
        world.egress.replace(like(&world, policy(&["server.test:8080", "a.sub.test"])));
        assert!(!is_answered(&mut forbidden).await && !is_answered(&mut port_forbidden).await);
        assert!(is_answered(&mut kept).await);
        // Its half would keep the connection.
        drop(kept);
        assert_eq!(status(&world.get("http://other.test:8080/").await), 403);
        assert_eq!(status(&world.get("http://a.sub.test/").await), 200);
        let lines = world.log.lines(5).await;
        let cut = |host: &str, port: u16| {
            lines.iter().any(|line| {
                let reason = line.reason.as_deref().unwrap_or_default();
                line.host == host && line.port == port && reason.contains("policy was replaced")
            })
        };
        assert!(cut("other.test", 8080) && cut("server.test", 80), "{lines:?}");
        assert!(!cut("server.test", 8080), "{lines:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn what_was_used_counts_for_other_limits() {
    let limits = Limits { max_bytes: 500_000, ..Limits::default() };
    World::run(policy(&["server.test"]).with_limits(limits), async |world| {
        let of = |max_bytes| {
            like(&world, policy(&["server.test"]))
                .with_limits(Limits { max_bytes, ..Limits::default() })
        };
        assert!(world.get("http://server.test/bytes/400000").await.len() > 400_000);
        world.log.lines(1).await;
        assert!((400_000..401_000).contains(&world.account.used().bytes));
        // Fewer than were used, and then again more: by the engine's count and by the proxy's.
        world.egress.replace(of(300_000));
        assert_eq!(status(&world.get("http://server.test/").await), 429);
        world.egress.replace(of(1_000_000));
        let cut = world.get("http://server.test/bytes/900000").await;
        assert!(status(&cut) == 200 && cut.len() < 601_000, "{}", cut.len());
        world.log.lines(3).await;
        assert_eq!(world.account.used().bytes, 1_000_000);
        world.egress.replace(of(2_000_000));
        assert!(world.get("http://server.test/bytes/900000").await.len() > 900_000);
    });
}

#[test]
#[ignore = "needs root"]
fn egress_that_was_taken_away_can_be_given_again_and_what_was_used_counts() {
    let limits = Limits { max_bytes: 500_000, ..Limits::default() };
    World::run(policy(&["server.test"]).with_limits(limits), async |mut world| {
        assert!(world.get("http://server.test/bytes/400000").await.len() > 400_000);
        world.log.lines(1).await;
        for round in 0..3 {
            let again = like(&world, policy(&["server.test"]).with_limits(limits));
            let World { agent, channel, egress, account, proxies, log } = world;
            drop(egress);
            let started =
                Egress::start(&channel, "s1", again, account.clone(), proxies.clone()).await;
            world = World { agent, channel, egress: started.unwrap(), account, proxies, log };
            let answer = world.get("http://server.test/bytes/200000").await;
            if round == 0 {
                assert!(status(&answer) == 200 && answer.len() < 101_000, "{}", answer.len());
                world.log.lines(2).await;
            } else {
                assert_eq!(status(&answer), 429, "{round}");
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn an_address_that_is_denied_is_not_reached_by_any_name_of_a_star() {
    let policy = policy(&["*", "a.sub.test"]).deny(["198.51.100.0/24:80"]).unwrap();
    World::run(policy, async |world| {
        let refused = world.get("http://server.test/").await;
        assert!(status(&refused) == 403 && refused.contains("policy denies it"), "{refused}");
        assert!(!refused.contains("198.51.100"), "{refused}");
        assert_eq!(status(&world.get("http://198.51.100.7/").await), 403);
        assert_eq!(status(&world.get("http://server.test:8080/").await), 200);
        assert_eq!(status(&world.get("http://a.sub.test/").await), 200);
        // Inside stays inside, whatever is allowed.
        for inside in ["127.0.0.1", "inside.test", "metadata.test", "private.test"] {
            assert_eq!(status(&world.get(&format!("http://{inside}/")).await), 403, "{inside}");
        }
    });
}
