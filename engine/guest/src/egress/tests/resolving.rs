//! Look-ups of names: with a real name server at a loopback address.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::name_server::{NameServer, V4, V6};
use crate::egress::host::Host;
use crate::egress::line_rate::LineRate;
use crate::egress::policy::Policy;
use crate::egress::resolve::{NoAddress, Resolver};
use crate::egress::room::{Full, Rooms};
use crate::egress::shared::Shared;
use crate::egress::system::System;
use crate::egress::{Denied, EgressAccount, gate::Gate, record::Kind};

/// Files of a host, and a name server that they name.
struct Bench {
    server: NameServer,
    shared: Shared,
    _files: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::with(NameServer::start([127, 0, 0, 1], 0).await, "nameserver 127.0.0.1\n", 1 << 10)
    }

    fn with(server: NameServer, resolv_conf: &str, descriptors: u64) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (hosts, conf) = (files.path().join("hosts"), files.path().join("resolv.conf"));
        let names = "192.0.2.7 known.test\n2001:db8::7 known.test\n10.1.2.3 inside.test\n";
        std::fs::write(&hosts, names).unwrap();
        std::fs::write(&conf, resolv_conf).unwrap();
        let system = Arc::new(System::new(hosts, conf, server.address.port()));
        let shared =
            Shared { system, rooms: Rooms::of(descriptors), line_rate: LineRate::default() };
        Self { server, shared, _files: files }
    }

    /// The look-ups of a session.
    fn resolver(&self, tenant: &str) -> Arc<Resolver> {
        Arc::new(Resolver::new(&self.shared, Some(tenant)))
    }

    async fn find(&self, name: &str) -> Result<Vec<IpAddr>, NoAddress> {
        self.resolver("red").resolve(&Host::parse(name).unwrap(), &documentation()).await
    }

    /// Waits until so many look-ups wait for a name server.
    async fn until_held(&self, count: usize) {
        while self.shared.rooms.lookups.held() != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Documentation addresses, which pass.
fn documentation() -> [IpNet; 2] {
    ["192.0.2.0/24", "2001:db8::/32"].map(|network| network.parse().unwrap())
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn names_are_found_in_hosts_and_then_at_the_name_server() {
    let bench = Bench::new().await;
    assert_eq!(bench.find("known.test").await.unwrap(), ips(&["192.0.2.7", "2001:db8::7"]));
    assert!(bench.server.asked().is_empty());
    for name in ["a.test", "_b-c.test", "single", "alias.test", "forged.test", "long.test"] {
        assert_eq!(bench.find(name).await.unwrap(), ips(&[V4, V6]), "{name}");
    }
    let asked = bench.server.asked();
    assert!(asked.iter().all(|asked| !asked.over_tcp || asked.name == "long.test."));
    assert_eq!(asked.iter().filter(|asked| asked.over_tcp).count(), 2);
    for (name, reason) in [("none.test", "no such name"), ("empty.test", "no address")] {
        let error = bench.find(name).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(
            bench.server.asked().iter().filter(|asked| asked.name.contains(name)).count(),
            2
        );
    }
    let broken = bench.find("broken.test").await.unwrap_err();
    assert!(matches!(&broken, NoAddress::NotFound(_)), "{broken}");
    bench.until_held(0).await;
}

#[tokio::test]
async fn a_name_is_asked_for_as_it_is_and_below_no_search_domain() {
    let server = NameServer::start([127, 0, 0, 1], 0).await;
    let conf =
        "search corp.internal\ndomain corp.internal\nnameserver 127.0.0.1\noptions ndots:9\n";
    let bench = Bench::with(server, conf, 1024);
    bench.find("none.test").await.unwrap_err();
    bench.find("none").await.unwrap_err();
    bench.find("one").await.unwrap();
    assert_eq!(bench.server.names(), ["none.", "none.test.", "one."]);
}

#[tokio::test]
async fn a_name_server_that_is_silent_or_gone_or_old_is_no_end() {
    // The first is silent, nobody is at the second.
    let (server, _silent) = loop {
        let server = NameServer::start([127, 0, 0, 3], 0).await;
        if let Ok(silent) = UdpSocket::bind(("127.0.0.1", server.address.port())) {
            break (server, silent);
        }
    };
    let conf =
        "nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\noptions timeout:1\n";
    let bench = Bench::with(server, conf, 1024);
    assert_eq!(bench.find("a.test").await.unwrap(), ips(&[V4, V6]));
    assert_eq!(bench.find("half.test").await.unwrap(), ips(&[V4]));
    assert_eq!(bench.find("old.test").await.unwrap(), ips(&[V4, V6]));
}

#[tokio::test]
async fn slow_names_of_one_tenant_leave_room_for_another() {
    // Room for 16 look-ups, of which a tenant alone gets 8; a session has 8.
    let server = NameServer::start([127, 0, 0, 1], 0).await;
    let bench = Bench::with(server, "nameserver 127.0.0.1\n", 256);
    let slow = |number: usize| Host::parse(&format!("slow{number}.test")).unwrap();
    let red = bench.resolver("red");
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..20 {
        let red = Arc::clone(&red);
        waiting.spawn(async move { red.resolve(&slow(number), &documentation()).await });
    }
    bench.until_held(8).await;
    let refused = bench.resolver("red").resolve(&slow(99), &documentation()).await.unwrap_err();
    assert_eq!(refused, NoAddress::Full(Full::Share));
    let blue = bench.resolver("blue");
    let found = blue.resolve(&Host::parse("quick.test").unwrap(), &documentation()).await;
    assert_eq!(found.unwrap(), ips(&[V4, V6]));
    // What hosts(5) knows needs no room.
    bench.find("known.test").await.unwrap();
    waiting.shutdown().await;
    assert_eq!(bench.shared.rooms.lookups.held(), 0);
    assert_eq!(bench.find("quick.test").await.unwrap(), ips(&[V4, V6]));
}

#[tokio::test]
async fn a_look_up_that_is_given_up_leaves_nothing() {
    let bench = Bench::new().await;
    let red = bench.resolver("red");
    let look_up =
        tokio::spawn(async move { red.resolve(&Host::parse("slow.test").unwrap(), &[]).await });
    while bench.server.asked().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bench.shared.rooms.lookups.held(), 1);
    let from = bench.server.asked()[0].from;
    UdpSocket::bind(from).unwrap_err();
    look_up.abort();
    assert!(look_up.await.unwrap_err().is_cancelled());
    assert_eq!(bench.shared.rooms.lookups.held(), 0);
    // Another test may have the port for a moment.
    let free = async {
        while UdpSocket::bind(from).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap();
}

#[tokio::test]
async fn a_name_that_leads_inside_is_denied_without_its_address() {
    let bench = Bench::new().await;
    let all = ["0.0.0.0/0".parse().unwrap()];
    let resolver = Resolver::new(&bench.shared, None);
    for name in ["localhost", "a.localhost"] {
        let denied = resolver.resolve(&Host::parse(name).unwrap(), &all).await.unwrap_err();
        assert!(matches!(denied, NoAddress::Denied(_, Denied::Loopback)), "{denied}");
    }
    let inside = Host::parse("inside.test").unwrap();
    assert_eq!(resolver.resolve(&inside, &all).await.unwrap(), ips(&["10.1.2.3"]));

    let entries = ["inside.test", "10.1.2.3"];
    let gate = {
        let account = EgressAccount::default();
        Gate::within("s", Policy::allow(entries).unwrap(), account, &bench.shared)
    };
    for (host, verb) in [("inside.test", "leads to"), ("10.1.2.3", "is")] {
        let target = crate::egress::decision::Target { host: Host::parse(host).unwrap(), port: 80 };
        let refusal = gate.open(Kind::Connect, &target).await.unwrap_err();
        let expected = format!("egress to {host}:80 is denied: it {verb} a private address");
        assert_eq!((refusal.status.as_u16(), refusal.message), (403, expected));
    }
}
