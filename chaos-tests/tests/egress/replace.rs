//! What a live session may reach is replaced, taken away and given.

use mayfly_api::EgressPolicy;
use mayfly_chaos_tests::network::{Page, Site};

use crate::world::{World, allow};

const GET: &str = "busybox wget -q -T 60 -O - http://server.test/hello";

fn site() -> Site {
    Site::from([
        ("/hello".to_owned(), Page::ok("hello from outside\n")),
        ("/big".to_owned(), Page::ok(vec![b'x'; 3_000_000])),
    ])
}

#[test]
fn a_live_session_gets_another_policy_none_and_one_again() {
    World::run("enabled = true\nmax_bytes = 8000000", site(), async |world| {
        let client = &world.client;
        // Created without, which is no hindrance.
        let id = world.start(EgressPolicy::default()).await;
        assert_eq!(client.egress(&id).await.unwrap().policy, None);
        assert_ne!(world.sh(&id, GET).await.code, 0);
        let given = client.set_egress(&id, Some(&allow(&["server.test"]))).await.unwrap();
        let policy = given.policy.unwrap();
        assert_eq!(
            (&*policy.allow, policy.max_bytes),
            (&["server.test".to_owned()][..], Some(8_000_000))
        );
        assert_eq!(world.ok(&id, GET).await, "hello from outside\n");
        assert_eq!(
            world.ok(&id, "docker info -f '{{.HTTPProxy}}'").await,
            "http://127.0.0.1:3128\n"
        );

        // A connection that is open is cut off when its host is not allowed any more.
        let hold = "exec 4<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT server.test:80 HTTP/1.1\\r\\n\\r\\n' >&4; \
                    read -r line <&4; read -r line <&4; touch /tmp/held; cat <&4; touch /tmp/cut";
        world
            .ok(
                &id,
                &format!(
                    "(bash -c \"{}\") >/dev/null 2>&1 & disown",
                    hold.replace('"', "\\\"").replace('$', "\\$")
                ),
            )
            .await;
        world.ok(&id, "until [ -e /tmp/held ]; do sleep 0.05; done; [ ! -e /tmp/cut ]").await;
        client.set_egress(&id, Some(&allow(&["other.test"]))).await.unwrap();
        world.ok(&id, "until [ -e /tmp/cut ]; do sleep 0.05; done").await;
        assert_eq!(
            world.audit_of_ended(&id, &["policy was replaced"], 1).await,
            1,
            "{}",
            world.daemon.log()
        );
        let refused = world.ask(&id, "GET http://server.test/hello HTTP/1.0").await;
        assert!(refused.contains(" 403 "), "{refused}");
        assert!(
            world.ok(&id, "busybox wget -q -O - http://other.test/hello").await.contains("hello")
        );

        // Taken away: nothing listens, as where it was never given.
        let none = client.set_egress(&id, None).await.unwrap();
        assert!(none.policy.is_none() && none.connections_used >= 3, "{none:?}");
        world
            .ok(&id, "until ! (exec 3<>/dev/tcp/127.0.0.1/3128); do sleep 0.05; done 2>/dev/null")
            .await;
        assert_eq!(world.ok(&id, "env | grep -ci _proxy || true").await, "0\n");
        // And again, at once, several times. What was used counts.
        for _ in 0..3 {
            client.set_egress(&id, Some(&allow(&["server.test"]))).await.unwrap();
            assert_eq!(world.ok(&id, GET).await, "hello from outside\n");
            client.set_egress(&id, None).await.unwrap();
        }
        let limited = EgressPolicy { max_bytes: Some(4_000_000), ..allow(&["server.test"]) };
        client.set_egress(&id, Some(&limited)).await.unwrap();
        let big = "busybox wget -q -O - http://server.test/big 2>/dev/null | wc -c";
        assert_eq!(world.ok(&id, big).await, "3000000\n");
        client.set_egress(&id, None).await.unwrap();
        client.set_egress(&id, Some(&limited)).await.unwrap();
        let count: u64 = world.ok(&id, big).await.trim().parse().unwrap();
        assert!(count < 1_000_000, "{count} more of what 4,000,000 allow");
        let used = client.egress(&id).await.unwrap();
        assert_eq!(used.bytes_used, 4_000_000);

        // What cannot be leaves what there is.
        for (policy, word) in [
            (EgressPolicy { max_bytes: Some(8_000_001), ..allow(&["a"]) }, "max_bytes"),
            (allow(&["a:b"]), "a:b"),
            (EgressPolicy { deny: vec!["b".into()], ..allow(&["a"]) }, "egress.deny"),
        ] {
            let error = client.set_egress(&id, Some(&policy)).await.unwrap_err();
            assert!(
                error.status().is_some_and(|s| s == 422) && error.to_string().contains(word),
                "{error}"
            );
        }
        assert!(client.egress(&id).await.unwrap().policy.is_some());
        client.kill(&id).await.unwrap();
        let gone = client.set_egress(&id, None).await.unwrap_err();
        assert_eq!(gone.code(), Some("session_gone"));
    });
}

#[test]
fn a_star_is_every_public_address_and_no_other_and_deny_takes_from_it() {
    World::run("enabled = true", site(), async |world| {
        let home = world.daemon.home();
        let started = home.mayfly(["start", "default", "--egress", "*"]).run();
        assert!(started.success(), "{started}");
        let id = started.stdout.trim();
        assert_eq!(world.ok(id, GET).await, "hello from outside\n");
        let trap = world.ask(id, "GET http://198.51.100.7:8080/hello HTTP/1.0").await;
        assert!(trap.contains("trapped"), "on every port: {trap}");
        for host in ["127.0.0.1", "inside.test", "metadata.test", "private.test", "localhost"] {
            let answer = world.ask(id, &format!("GET http://{host}/hello HTTP/1.0")).await;
            assert!(answer.contains(" 403 ") && !answer.contains("trapped"), "{host}: {answer}");
        }
        let set = home.mayfly(["egress", id, "*", "other.test", "--deny", "198.51.100.0/24"]).run();
        assert!(set.success() && set.stdout.is_empty(), "{set}");
        let refused = world.ask(id, "GET http://server.test/hello HTTP/1.0").await;
        assert!(refused.contains(" 403 ") && refused.contains("policy denies it"), "{refused}");
        assert_ne!(world.sh(id, "getent hosts server.test").await.code, 0);
        let named = world.ask(id, "GET http://other.test/hello HTTP/1.0").await;
        assert!(named.contains("hello from outside"), "{named}");
        let shown = home.mayfly(["egress", id]).run();
        let said = ["allow  *", "allow  other.test", "deny   198.51.100.0/24", " connections"];
        assert!(said.iter().all(|line| shown.stdout.contains(line)), "{shown}");
        let none = home.mayfly(["--json", "egress", id, "--none"]).run();
        let none: serde_json::Value = serde_json::from_str(&none.stdout).unwrap();
        assert!(
            none.get("policy").is_none() && none["connections_used"].as_u64() > Some(2),
            "{none}"
        );
        assert_ne!(world.sh(id, GET).await.code, 0);
    });
}
