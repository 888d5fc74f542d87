//! A daemon in a network of the test's own, with servers behind and traps beside it.

use mayfly_api::{CreateSession, EgressPolicy, Exec};
use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::{GOLDEN, Home};
use mayfly_chaos_tests::network::{self, ADDRESS, NETWORK, Page, Site};
use mayfly_chaos_tests::slots;
use mayfly_client::Client;
use std::time::{Duration, Instant};

/// `inside.test` leads to this host's loopback interface: what an attacker's name server would
/// answer.
const HOSTS: &str = "127.0.0.1 localhost\n198.51.100.7 server.test other.test\n127.0.0.1 inside.test\n\
                     169.254.169.254 metadata.test\n10.1.2.3 private.test\n";
const POOL: &str = "[goldens.default]\nfloor = 0\nmax_standbys = 1\nshells = 0\n";

/// How long the line of a connection that has ended may take.
const LINE_LIMIT: Duration = Duration::from_secs(20);

pub struct World {
    pub daemon: Daemon,
    pub client: Client,
}

/// A command's end: exit code, standard output and error together.
pub struct Said {
    pub code: i32,
    pub text: String,
}

impl World {
    /// Runs `work` with a daemon whose configuration has `egress` below `[egress]`.
    pub fn run(egress: &str, site: Site, work: impl AsyncFnOnce(&World) + Send) {
        let _all = slots::take(slots::ALL);
        // Building the golden image needs the host's network.
        Home::shared();
        network::isolated(HOSTS, || {
            network::serve(ADDRESS, 80, site);
            for (address, port) in [("127.0.0.1", 80), (ADDRESS, 8080)] {
                let trap = Site::from([("/hello".to_owned(), Page::ok("trapped\n"))]);
                network::serve(address, port, trap);
            }
            // The traps work: from here they are reached.
            for place in [("inside.test", 80), ("server.test", 8080)] {
                assert!(network::get(place, "/hello").ends_with("trapped\n"), "{place:?}");
            }
            let daemon = Daemon::aside(&format!(
                "{POOL}[egress]\nexempt_networks = [\"{NETWORK}\"]\n{egress}"
            ));
            let client = Client::unix(daemon.socket());
            let world = World { daemon, client };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(&world));
            drop(runtime);
            world.daemon.stop();
        });
    }

    /// Starts a session that may reach `allow`.
    pub async fn start(&self, egress: EgressPolicy) -> String {
        let request = CreateSession {
            golden: GOLDEN.into(),
            deadline_ms: Some(300_000),
            wait_docker: true,
            egress,
            ..CreateSession::default()
        };
        self.client.create(&request, None).await.unwrap().id
    }

    /// Runs a script in a session.
    pub async fn sh(&self, id: &str, script: &str) -> Said {
        let result = self.client.exec(id, &Exec::new(["/bin/bash", "-c", script])).await.unwrap();
        let text = result.stdout.to_text().into_owned() + &result.stderr.to_text();
        Said { code: result.outcome.shell_code(), text }
    }

    /// Runs a script that must succeed; returns what it said.
    pub async fn ok(&self, id: &str, script: &str) -> String {
        let said = self.sh(id, script).await;
        assert_eq!(said.code, 0, "{script}: {}\n{}", said.text, self.daemon.log());
        said.text
    }

    /// Sends `head` to the proxy port of the guest as it is; returns the whole answer.
    pub async fn ask(&self, id: &str, head: &str) -> String {
        self.ok(
            id,
            &format!("exec 3<>/dev/tcp/127.0.0.1/3128; printf '{head}\\r\\n\\r\\n' >&3; cat <&3"),
        )
        .await
    }

    /// As [`World::audit`], of connections that have ended for their client: their lines come with the
    /// proxy's word a moment later. Waits for so many.
    pub async fn audit_of_ended(&self, id: &str, words: &[&str], count: usize) -> usize {
        let begun = Instant::now();
        while self.audit(id, words) < count && begun.elapsed() < LINE_LIMIT {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.audit(id, words)
    }

    /// Lines of the audit log of a session in which all of `words` are.
    pub fn audit(&self, id: &str, words: &[&str]) -> usize {
        let log = self.daemon.log();
        let ours = log.lines().filter(|line| line.contains("mayfly::egress") && line.contains(id));
        ours.filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

/// Makes a policy that allows these.
pub fn allow(entries: &[&str]) -> EgressPolicy {
    EgressPolicy {
        allow: entries.iter().map(|&entry| entry.to_owned()).collect(),
        ..EgressPolicy::default()
    }
}
