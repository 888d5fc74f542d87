//! Network cards, routes, connections and packets.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mayfly_guest::channel::{ExecEvent, ExecRequest};

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::ask::{Said, perl};
use super::memory::Scanned;

const NETWORK: &str = include_str!("network.pl");
const SNIFF: &str = include_str!("sniff.pl");
const SEND: &str = include_str!("send.pl");

/// Metadata services, the addresses of QEMU's user network for host, DNS and SMB, and examples of
/// private networks.
const OTHERS: &[&str] = &[
    "169.254.169.254:80",
    "169.254.170.2:80",
    "100.100.100.200:80",
    "10.0.2.2:80",
    "10.0.2.3:53",
    "10.0.0.1:80",
    "172.16.0.1:80",
    "192.168.0.1:80",
];
/// How long packets are captured.
const CAPTURE: &str = "3";

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let subject = lab.subject().await?;
    let failed = || AuditError::host("listen on the loopback interface");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    listener.set_nonblocking(true).map_err(failed())?;
    let address = listener.local_addr().map_err(failed())?;
    let said = perl(&subject.session, NETWORK, &[&[&*address.port().to_string()], OTHERS].concat())
        .await?;
    let from_guest = listener.accept().is_ok();
    let from_host = TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
        && listener.accept().is_ok();
    let answers = said.answers();
    let get = |name: &str| answers.get(name).map_or("", String::as_str);

    findings.push(Attempt::judge(
        "find a network card",
        (
            format!("interfaces {}; one that is added: {}", get("interfaces"), get("planted")),
            get("interfaces").split(' ').any(|name| name == "lo") && get("planted") == "seen",
        ),
        (
            if get("cards").is_empty() {
                "no interface has a device".into()
            } else {
                get("cards").to_owned()
            },
            !get("cards").is_empty(),
        ),
    ));
    findings.push(Attempt::judge(
        "find a way out: a default route",
        (
            format!("with one that is added: {}", get("planted-routes")),
            get("planted-routes") == "1",
        ),
        (format!("{} default routes", get("default-routes")), get("default-routes") != "0"),
    ));
    findings.push(Attempt::judge(
        format!("connect to a listener on the host's loopback interface, port {}", address.port()),
        (
            format!(
                "the host connects to it: {from_host}; the guest connects to one of its own: {}",
                get("own")
            ),
            from_host && get("own") == "connected",
        ),
        (
            format!("{}; the listener was reached: {from_guest}", get("loopback-host")),
            from_guest || get("loopback-host") == "connected",
        ),
    ));
    let control = (
        format!(
            "the guest connects to 169.254.169.254 when that is its own: {}",
            get("own-metadata")
        ),
        get("own-metadata") == "connected",
    );
    for other in OTHERS {
        let seen = get(&format!("try-{other}")).to_owned();
        findings.push(Attempt::judge(
            format!("connect to {other}"),
            control.clone(),
            (seen.clone(), seen.is_empty() || seen == "connected"),
        ));
    }
    Ok(findings)
}

/// Captures while others send.
pub(super) async fn packets(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let neighbour = lab.neighbour().await?;
    let subject = lab.subject().await?;
    let marks = &lab.marks;
    let sniff = ["perl", "-e", SNIFF, CAPTURE, &marks.prefix, &marks.own];
    let mut capture = subject.session.guest().exec(ExecRequest::new(sniff)).await?;
    let mut text = Vec::new();
    while !text.starts_with(b"ready") {
        match capture.recv().await? {
            Some(ExecEvent::Stdout(bytes)) => text.extend(bytes),
            Some(ExecEvent::Stderr(bytes)) => {
                let said = String::from_utf8_lossy(&bytes).into_owned();
                return Err(AuditError::Guest { what: "a capture".into(), said });
            }
            Some(ExecEvent::Exit(_)) | None => {
                return Err(AuditError::Guest {
                    what: "a capture".into(),
                    said: "it ended".into(),
                });
            }
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let host = tokio::task::spawn_blocking(send_from_host(
        format!("{}{}", marks.prefix, marks.host),
        stop.clone(),
    ));
    let args = ["2", marks.prefix.as_str(), &marks.neighbour];
    let by_neighbour = perl(&neighbour.session, SEND, &args);
    let leak = async {
        if lab.options.plants(Planted::LeakedSecrets) {
            perl(&subject.session, SEND, &["1", &marks.prefix, &marks.neighbour]).await.map(drop)
        } else {
            Ok(())
        }
    };
    let (sent, leaked, captured) = tokio::join!(by_neighbour, leak, capture.output());
    stop.store(true, Ordering::Relaxed);
    let by_host = host.await.unwrap_or(0);
    leaked?;
    text.extend(captured?.stdout);
    let said =
        Said { code: 0, out: String::from_utf8_lossy(&text).into_owned(), err: String::new() };
    let answers = said.answers();
    let count = answers.get("packets").and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let sent = sent?.answers().get("sent").and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let scanned = Scanned::new(&said, marks);
    findings.push(Attempt::judge(
        format!("see one of {sent} packets of a neighbour and {by_host} of the host"),
        (
            format!("own packets seen: {}, of {count} in all", scanned.own),
            scanned.own && sent > 0 && by_host > 0,
        ),
        (scanned.found(), !scanned.foreign.is_empty()),
    ));
    Ok(findings)
}

/// Sends marked packets over the host's loopback interface to a socket of this process.
fn send_from_host(mark: String, stop: Arc<AtomicBool>) -> impl FnOnce() -> u64 {
    move || {
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else { return 0 };
        let Ok(address) = socket.local_addr() else { return 0 };
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            sent += u64::from(socket.send_to(mark.as_bytes(), address).is_ok());
            std::thread::sleep(Duration::from_millis(50));
        }
        sent
    }
}
