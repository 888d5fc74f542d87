//! Sessions of several tenants in one process, of which one wants everything.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};

use super::name_server::{NameServer, V4};
use super::world::{SERVER, alone, bind_mount, policy};
use crate::egress::EgressAccount;
use crate::egress::decision::Target;
use crate::egress::gate::Gate;
use crate::egress::host::Host;
use crate::egress::record::Kind;

/// The look-ups of a session at a time, with some that wait.
const WANTED: usize = 10;
/// More sessions than it took to hold all look-ups that a process had.
const SESSIONS: usize = 16;

fn session(tenant: &str, entry: &str) -> Arc<Gate> {
    let policy = policy(&[entry]).with_exempt(["192.0.2.0/24".parse().unwrap()]).unwrap();
    Arc::new(Gate::new(tenant, policy.with_tenant(tenant), EgressAccount::default()))
}

#[test]
#[ignore = "needs root"]
fn slow_names_of_one_tenants_sessions_stop_nobody_else() {
    alone(async || {
        let conf = "search corp.internal\nnameserver 127.0.0.1\noptions timeout:30\n";
        bind_mount(conf, "/etc/resolv.conf");
        let server = NameServer::start([127, 0, 0, 1], 53).await;
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..SESSIONS {
            let red = session("red", "*.red.test");
            for name in 0..WANTED {
                let (red, name) = (red.clone(), format!("slow{}.red.test", number * 100 + name));
                waiting.spawn(async move { red.look_up(&name).await.is_ok() });
            }
        }
        // Either all of them wait for the name server, or the first was told not to.
        while server.names().len() < SESSIONS * 8 && waiting.try_join_next().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let blue = session("blue", "*.blue.test");
        assert_eq!(blue.look_up("quick.blue.test").await.unwrap()[0].to_string(), V4);
        blue.look_up("none.blue.test").await.unwrap_err();
        let names = server.names();
        assert!(names.contains(&"none.blue.test.".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("corp.internal")), "{names:?}");
    });
}

/// Says that this is the process with few descriptors that the test below starts.
const CHILD: &str = "MAYFLY_TEST_FEW_DESCRIPTORS";
const DESCRIPTORS: u64 = 256;

#[test]
#[ignore = "needs root"]
fn one_tenants_connections_leave_descriptors_for_sessions_and_other_tenants() {
    const NAME: &str = "egress::tests::shares::one_tenants_connections_leave_descriptors_for_sessions_and_other_tenants";
    if std::env::var_os(CHILD).is_none() {
        // A limit is of a process, and other tests run in this one.
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--include-ignored", "--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned()
            + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).unwrap();
    alone(async || {
        // The kernel makes connections to it; the other ends are no descriptors of this process.
        let _server = tokio::net::TcpListener::bind((SERVER, 80)).await.unwrap();
        let target = Target { host: Host::parse(SERVER).unwrap(), port: 80 };
        let mut connections = Vec::new();
        let (mut refused, mut sessions) = (None, Vec::new());
        for _ in 0..8 {
            let red = session("red", SERVER);
            for _ in 0..64 {
                match red.open(Kind::Connect, &target).await {
                    Ok(connection) => connections.push(connection),
                    Err(refusal) => refused = Some(refusal),
                }
            }
            sessions.push(red);
        }
        // What a daemon needs for some sessions.
        let files: Vec<_> =
            (0..100).map(|_| std::fs::File::open("/dev/null").expect("a descriptor")).collect();
        let refused = refused.expect("a refusal");
        assert_eq!(refused.status.as_u16(), 503, "{refused:?}");
        assert!(refused.message.contains("this tenant's sessions have their share"), "{refused:?}");
        let blue = session("blue", SERVER);
        drop(blue.open(Kind::Connect, &target).await.unwrap());
        let count = connections.len();
        connections.truncate(count / 2);
        sessions[0].open(Kind::Connect, &target).await.unwrap();
        drop(files);
    });
}
