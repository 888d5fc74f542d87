//! Requests of a guest and of its containers.

use mayfly_api::{CreateSession, EgressPolicy};
use mayfly_chaos_tests::home::GOLDEN;
use mayfly_chaos_tests::network::{Page, Site};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, allow};

fn site() -> Site {
    let redirect = |to: &str| {
        Page { status: "302 Found".into(), ..Page::default() }.header(format!("location: {to}"))
    };
    Site::from([
        ("/hello".to_owned(), Page::ok("hello from outside\n")),
        ("/big".to_owned(), Page::ok(vec![b'x'; 3_000_000])),
        ("/to-metadata".to_owned(), redirect("http://169.254.169.254/latest/meta-data/")),
        ("/to-loopback".to_owned(), redirect("http://inside.test/hello")),
    ])
}

#[test]
fn a_guest_and_its_containers_reach_what_is_allowed_and_nothing_else() {
    World::run("enabled = true", site(), async |world| {
        let id = world
            .start(allow(&[
                "server.test",
                "inside.test",
                "metadata.test",
                "private.test",
                "localhost",
                "127.0.0.1",
                "169.254.169.254",
            ]))
            .await;
        let wget = "busybox wget -q -T 60 -O -";
        assert_eq!(
            world.ok(&id, &format!("{wget} http://server.test/hello")).await,
            "hello from outside\n"
        );
        assert_eq!(
            world.audit_of_ended(&id, &["server.test", "allowed", "198.51.100.7"], 1).await,
            1,
            "{}",
            world.daemon.log()
        );
        let container = "docker run --rm busybox wget -q -T 60 -O - http://server.test/hello";
        assert!(world.ok(&id, container).await.contains("hello from outside"));
        assert_eq!(
            world.ok(&id, "getent ahostsv4 server.test | head -n 1 | cut -d' ' -f1").await,
            "198.51.100.7\n"
        );
        assert!(
            world
                .ok(&id, "docker run --rm busybox nslookup -type=a server.test")
                .await
                .contains("198.51.100.7")
        );
        let tunnel = "CONNECT server.test:80 HTTP/1.1\\r\\n\\r\\nGET /hello HTTP/1.0";
        assert!(world.ask(&id, tunnel).await.contains("hello from outside"));

        for (host, port, word) in [
            ("other.test", 80, "no entry"),
            ("server.test", 8080, "no entry"),
            ("198.51.100.7", 80, "no entry"),
            ("localhost", 80, "loopback"),
            ("127.0.0.1", 80, "loopback"),
            ("inside.test", 80, "loopback"),
            ("169.254.169.254", 80, "link-local"),
            ("metadata.test", 80, "link-local"),
            ("private.test", 80, "private"),
        ] {
            let get = format!("GET http://{host}:{port}/hello HTTP/1.0\\r\\nHost: {host}:{port}");
            let connect = format!("CONNECT {host}:{port} HTTP/1.1\\r\\nConnection: close");
            for head in [get, connect] {
                let answer = world.ask(&id, &head).await;
                assert!(
                    answer.starts_with("HTTP/1.") && answer.contains(" 403 "),
                    "{head}: {answer}"
                );
                assert!(answer.contains(word) && !answer.contains("trapped"), "{head}: {answer}");
                // Where a name leads is in the log alone.
                for address in ["127.0.0.1", "169.254.169.254", "10.1.2.3", "198.51.100.7"] {
                    assert!(host.contains(address) || !answer.contains(address), "{answer}");
                }
            }
            let lines = world.audit(
                &id,
                &[&format!("host=\"{host}\""), &format!("port={port}"), "denied", word],
            );
            assert_eq!(lines, 2, "{host}:{port}\n{}", world.daemon.log());
        }
        for page in ["to-metadata", "to-loopback"] {
            let said = world.sh(&id, &format!("{wget} http://server.test/{page}")).await;
            assert!(said.code != 0 && !said.text.contains("trapped"), "{}", said.text);
        }
        assert_eq!(world.audit(&id, &["host=\"169.254.169.254\"", "denied"]), 3);
        assert_eq!(world.audit(&id, &["host=\"inside.test\"", "denied"]), 3);
        // There is no other way: not a route, not the bridge's side.
        for place in ["198.51.100.7/80", "172.17.0.1/80", "127.0.0.1/80", "169.254.169.254/80"] {
            assert_ne!(
                world.sh(&id, &format!("exec 3<>/dev/tcp/{place}")).await.code,
                0,
                "{place}"
            );
        }
        let past =
            "docker run --rm -e http_proxy= busybox wget -q -T 5 -O - http://198.51.100.7/hello";
        assert_ne!(world.sh(&id, past).await.code, 0);
        let metrics =
            world.daemon.ask("GET", "/metrics", Some(mayfly_chaos_tests::daemon::TOKEN), None).body;
        let counted = metrics.lines().any(|line| {
            line.starts_with("mayfly_egress_requests_total{") && line.contains("denied")
        });
        assert!(counted, "{metrics}");
    });
}

#[test]
fn limits_hold_and_without_egress_there_is_nothing() {
    World::run("enabled = true\nmax_connections = 4\nmax_bytes = 2000000", site(), async |world| {
        let limits = EgressPolicy {
            max_connections: Some(2),
            max_bytes: Some(1_000_000),
            ..allow(&["server.test"])
        };
        let id = world.start(limits).await;
        let hold = "exec 4<>/dev/tcp/127.0.0.1/3128 5<>/dev/tcp/127.0.0.1/3128; \
                    for fd in 4 5; do printf 'CONNECT server.test:80 HTTP/1.1\\r\\n\\r\\n' >&$fd; read -r line <&$fd; echo $line; done; \
                    exec 3<>/dev/tcp/127.0.0.1/3128; printf 'GET http://server.test/hello HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let said = world.ok(&id, hold).await;
        assert_eq!(said.matches(" 200 OK").count(), 2, "{said}");
        assert!(said.contains(" 429 ") && said.contains("2 connections at a time"), "{said}");
        assert_eq!(world.audit(&id, &["denied", "too many connections"]), 1);
        // Places come back when their clients are gone.
        world
            .ok(&id, "until busybox wget -q -O - http://server.test/hello; do sleep 0.1; done")
            .await;
        let count =
            world.ok(&id, "busybox wget -q -O - http://server.test/big 2>/dev/null | wc -c").await;
        let count: u64 = count.trim().parse().unwrap();
        assert!(count > 500_000 && count < 1_000_000, "{count}");
        let refused = world.ask(&id, "GET http://server.test/hello HTTP/1.0").await;
        assert!(
            refused.contains(" 429 ") && refused.contains("used up its 1000000 bytes"),
            "{refused}"
        );
        assert_eq!(
            world.audit_of_ended(&id, &["allowed", "used up its egress bytes"], 1).await,
            1,
            "{}",
            world.daemon.log()
        );

        let by_hand =
            world.daemon.home().mayfly(["start", GOLDEN, "--egress", "server.test:80"]).run();
        assert!(by_hand.success(), "{by_hand}");
        let by_hand = by_hand.stdout.trim().to_owned();
        let got = world.daemon.home().mayfly([
            "exec",
            &by_hand,
            "--",
            "busybox",
            "wget",
            "-q",
            "-O",
            "-",
            "http://server.test/hello",
        ]);
        assert_eq!(got.run().stdout, "hello from outside\n");
        assert_eq!(world.audit_of_ended(&by_hand, &["tenant=\"default\"", "allowed"], 1).await, 1);

        let none = world.start(EgressPolicy::default()).await;
        assert_ne!(world.sh(&none, "exec 3<>/dev/tcp/127.0.0.1/3128").await.code, 0);
        assert_eq!(world.ok(&none, "env | grep -ci _proxy || true").await, "0\n");
        let pull = world.sh(&none, "docker pull server.test/tiny:1").await;
        assert!(pull.code != 0 && pull.text.contains("connection refused"), "{}", pull.text);
        assert_ne!(world.sh(&none, "getent hosts server.test").await.code, 0);
        assert_eq!(world.audit(&none, &[]), 0);

        let too_much = EgressPolicy { max_bytes: Some(2_000_001), ..allow(&["server.test"]) };
        for (egress, word) in [(too_much, "max_bytes"), (allow(&["http://a"]), "http://a")] {
            let request =
                CreateSession { golden: GOLDEN.into(), egress, ..CreateSession::default() };
            let error = world.client.create(&request, None).await.unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    });
}

#[test]
fn a_daemon_that_was_not_told_to_allows_none() {
    World::run("", site(), async |world| {
        let request = CreateSession {
            golden: GOLDEN.into(),
            egress: allow(&["server.test"]),
            ..CreateSession::default()
        };
        let error = world.client.create(&request, None).await.unwrap_err();
        assert_eq!(error.status().map(|status| status.as_u16()), Some(422));
        assert!(error.to_string().contains("egress is off"), "{error}");
        let home = world.daemon.home();
        let run = ["run", GOLDEN, "--egress", "server.test", "--", "true"];
        let refused = home.mayfly(run).run();
        assert!(refused.complaint().contains("egress is off"), "{refused}");
        // Whoever has an engine of their own is the operator, without exempt networks.
        let script = "exec 3<>/dev/tcp/127.0.0.1/3128; printf 'GET http://server.test/ HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let own =
            ["run", GOLDEN, "--no-daemon", "--egress", "server.test", "--", "bash", "-c", script];
        let denied = home.mayfly(own).run();
        assert!(
            denied.success()
                && denied
                    .stdout
                    .contains("server.test:80 is denied: it leads to an address of this host"),
            "{denied}"
        );
    });
}

/// The egress proxy of a process.
fn proxy_of(engine: u32) -> Option<i32> {
    let children = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
        (parent == engine.to_string()).then_some(pid)
    });
    let is_proxy = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"egress-proxy"))
    };
    children.into_iter().find(is_proxy)
}

#[test]
fn egress_goes_on_when_its_proxy_was_killed() {
    World::run("enabled = true", site(), async |world| {
        let daemon = world.daemon.pid();
        let none = world.start(EgressPolicy::default()).await;
        assert_eq!(proxy_of(daemon), None, "nobody needs it yet");
        world.client.kill(&none).await.unwrap();
        let id = world.start(allow(&["server.test"])).await;
        let get = "busybox wget -q -T 60 -O - http://server.test/hello";
        assert_eq!(world.ok(&id, get).await, "hello from outside\n");
        let proxy = proxy_of(daemon).expect("an egress proxy");
        kill(Pid::from_raw(proxy), Signal::SIGKILL).unwrap();
        // A client may come to the one that dies.
        world.ok(&id, &format!("until {get}; do sleep 0.1; done")).await;
        let next = proxy_of(daemon).expect("another egress proxy");
        assert_ne!(next, proxy);
        let other = world.start(allow(&["server.test"])).await;
        assert_eq!(world.ok(&other, get).await, "hello from outside\n");
        assert_eq!(proxy_of(daemon), Some(next), "one for all sessions");
        assert_eq!(world.audit_of_ended(&other, &["server.test", "allowed"], 1).await, 1);
    });
}
