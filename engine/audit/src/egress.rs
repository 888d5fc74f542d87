//! The network that a session may use when it is given some: what the policy must never let
//! through. The checks of a session without a network in `guest` go further.

use std::net::{Ipv4Addr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use mayfly_guest::egress::Policy;
use mayfly_host::cgroup::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::check::{Check, Findings};
use super::guest::ask::{perl, sh};
use super::lab::Lab;
use super::options::AuditError;
use super::report::{Attempt, Threat, Vantage};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "egress.off",
        tried: "Ask for addresses of the host and of metadata services through a proxy, in a session that was given no network.",
        threat: Threat::Network,
        vantage: Vantage::GuestRoot,
        control: "A listener of the guest's own, at the same place, is reached.",
        run: |lab| off(lab).boxed(),
    },
    Check {
        id: "egress.policy",
        tried: "Ask the engine's proxy for the host's loopback, own, private, link-local and metadata addresses, in a session whose \
                policy names each of them, and for what it does not name; learn from a refusal where a name leads.",
        threat: Threat::Network,
        vantage: Vantage::GuestRoot,
        control: "A listener on the host's loopback answers to the host itself, and a planted proxy that says yes to everything is believed.",
        run: |lab| policy(lab).boxed(),
    },
];

/// Where a session finds the proxy when it is given one.
const PROXY: (&str, u16) = ("127.0.0.1", 3128);

/// Asks the proxy for `target` with CONNECT, and prints the first line of the answer, and the reason
/// of a refusal.
const ASK: &str = include_str!("guest/ask.pl");

async fn off(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let session = lab.session(Limits::default()).await?;
    let (host, port) = (PROXY.0, PROXY.1.to_string());
    let mut outcomes = Vec::new();
    for target in ["127.0.0.1:22", "169.254.169.254:80", "10.0.0.1:80", "deb.debian.org:80"] {
        let said = perl(&session, ASK, &[host, &port, target]).await?;
        outcomes.push((target, said.all()));
    }
    // The same again with somebody at that place, who says yes to everything.
    let said = perl(&session, ASK, &[host, &port, "127.0.0.1:22", "serve"]).await?;
    let control = (said.all(), said.out.contains("200"));
    for (target, said) in outcomes {
        let answered = said.contains(" 200");
        findings.push(Attempt::judge(
            format!("CONNECT {target} at {host}:{port}"),
            control.clone(),
            (said, answered),
        ));
    }
    let names = sh(&session, "getent hosts deb.debian.org || echo 'no such name'").await?;
    let own = sh(&session, "getent hosts localhost").await?;
    findings.push(Attempt::judge(
        "resolve a name of the Internet",
        (own.all(), own.code == 0),
        (names.all(), !names.out.contains("no such name")),
    ));
    session.discard().await?;
    Ok(findings)
}

/// A listener on the host's loopback that answers as a proxy would, and counts who came.
struct Bait {
    port: u16,
    reached: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Bait {
    async fn lay() -> Result<Self, AuditError> {
        const ACTION: &str = "listen on the host's loopback";
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(AuditError::host(ACTION))?;
        let port = listener.local_addr().map_err(AuditError::host(ACTION))?.port();
        let reached = Arc::new(AtomicUsize::new(0));
        let counter = reached.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            }
        });
        Ok(Self { port, reached, task })
    }

    /// How often it was reached since the last look.
    fn reached(&self) -> usize {
        self.reached.swap(0, Ordering::Relaxed)
    }

    /// What it says to somebody who is let through.
    async fn ask(&self) -> (String, bool) {
        let asked = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let said = asked.await.unwrap_or_else(|error| error.to_string());
        let reached = self.reached() > 0 && said.ends_with("200");
        (format!("the host itself: {said}"), reached)
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// IPv4 addresses of this host's interfaces, loopback left out.
fn own_addresses() -> Result<Vec<Ipv4Addr>, AuditError> {
    let interfaces = nix::ifaddrs::getifaddrs()
        .map_err(std::io::Error::from)
        .map_err(AuditError::host("list the host's addresses"))?;
    let addresses = interfaces
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .filter(|address| !address.is_loopback());
    Ok(addresses.collect())
}

/// These addresses as a NAT64 translator (RFC 6052) has them.
fn translated(addresses: &[Ipv4Addr]) -> impl Iterator<Item = String> {
    addresses.iter().map(|address| {
        let [a, b, c, d] = address.octets();
        format!("[64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}]:80")
    })
}

/// Judges the refusal of a name that leads to the loopback interface.
fn tells_where(target: &str, said: &str) -> Attempt {
    let name = target.rsplit_once(':').map_or(target, |(name, _)| name);
    let found: Vec<String> = (name, 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip().to_string()).collect())
        .unwrap_or_default();
    let told = found.iter().any(|address| said.contains(address.as_str()));
    // A refusal without a reason proves nothing.
    let control = !found.is_empty() && said.to_ascii_lowercase().contains("x-mayfly-egress:");
    Attempt::judge(
        format!("learn from the refusal of {name} where it leads"),
        (format!("the host itself: {}", found.join(" ")), control),
        (said, told),
    )
}

async fn policy(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let bait = Bait::lay().await?;
    let direct = bait.ask().await;
    let port = bait.port;
    // Named by the policy, and to be refused all the same; the last of a name that leads to the
    // loopback.
    let named = [
        format!("127.0.0.1:{port}"),
        format!("127.9.9.9:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("[64:ff9b::7f00:1]:{port}"),
        "10.0.0.1:80".to_owned(),
        "192.168.0.1:80".to_owned(),
        "169.254.169.254:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
        "[fd20:ce::254]:80".to_owned(),
        "[fd00:c1::a9fe:a9fe]:80".to_owned(),
        "224.0.0.1:80".to_owned(),
        format!("localhost:{port}"),
    ];
    let named: Vec<String> = named.into_iter().chain(translated(&own_addresses()?)).collect();
    let session = lab.session(Limits::default()).await?;
    // The network of which the metadata services of IPv6 are a part: an exemption must not help.
    let local = ["fd00::/8".parse().expect("a network")];
    let allowed = Policy::allow(&named)
        .and_then(|policy| policy.with_exempt(local))
        .map_err(|e| AuditError::Guest { what: "a policy".into(), said: e.to_string() })?;
    let proxy = (PROXY.0, PROXY.1.to_string());
    // Before the engine's proxy has the place.
    let planted = perl(&session, ASK, &[proxy.0, &proxy.1, "127.0.0.1:22", "serve"]).await?;
    let planted = (planted.all(), planted.out.contains("200"));
    let egress = session.allow_egress(allowed).await?;
    let not_named =
        [format!("127.0.0.1:{}", port.wrapping_add(1).max(1)), "deb.debian.org:443".to_owned()];
    for target in named.iter().chain(&not_named) {
        let said = perl(&session, ASK, &[proxy.0, &proxy.1, target]).await?;
        // Whoever says that nobody answered has tried to connect.
        let tried = [" 200", " 502", " 504"].iter().any(|status| said.out.contains(status));
        let through = bait.reached() > 0 || tried;
        let control = if target.ends_with(&format!(":{port}")) { &direct } else { &planted };
        let answered = said.out.starts_with("HTTP/1.");
        let control = (control.0.clone(), control.1 && answered);
        findings.push(Attempt::judge(format!("CONNECT {target}"), control, (said.all(), through)));
        if target.starts_with("localhost:") {
            findings.push(tells_where(target, &said.out));
        }
    }
    drop(egress);
    let said = perl(&session, ASK, &[proxy.0, &proxy.1, &named[0]]).await?;
    let through = bait.reached() > 0 || said.out.contains(" 200");
    findings.push(Attempt::judge(
        "CONNECT after the policy was taken away",
        direct,
        (said.all(), through),
    ));
    session.discard().await?;
    Ok(findings)
}
