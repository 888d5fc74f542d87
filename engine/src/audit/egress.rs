//! The network that a session may use when it is given some: what the policy must never let through.
//!
//! Without a policy there is no way out at all: no card, no route, no proxy that answers. That is what is checked here; the checks of
//! the network in `guest` go further. Checks of a policy belong here too: host loopback, private, link-local and metadata
//! addresses through the proxy, by number, by name and by redirect.

use futures::FutureExt;

use super::check::{Check, Findings};
use super::guest::sh;
use super::lab::Lab;
use super::options::AuditError;
use super::report::{Attempt, Threat, Vantage};
use crate::cgroup::Limits;

pub(super) const CHECKS: &[Check] = &[Check {
    id: "egress.off",
    tried: "Ask for addresses of the host and of metadata services through a proxy, in a session that was given no network.",
    threat: Threat::Network,
    vantage: Vantage::GuestRoot,
    control: "A listener of the guest's own, at the same place, is reached.",
    run: |lab| off(lab).boxed(),
}];

/// Where a session finds the proxy when it is given one.
const PROXY: (&str, u16) = ("127.0.0.1", 3128);

/// Asks the proxy for `target` with CONNECT, and prints the first line of the answer.
const ASK: &str = include_str!("guest/ask.pl");

async fn off(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let session = lab.session(Limits::default()).await?;
    let (host, port) = (PROXY.0, PROXY.1.to_string());
    let mut outcomes = Vec::new();
    for target in ["127.0.0.1:22", "169.254.169.254:80", "10.0.0.1:80", "deb.debian.org:80"] {
        let said = super::guest::perl(&session, ASK, &[host, &port, target]).await?;
        outcomes.push((target, said.all()));
    }
    // The same again with somebody at that place, who says yes to everything.
    let said = super::guest::perl(&session, ASK, &[host, &port, "127.0.0.1:22", "serve"]).await?;
    let control = (said.all(), said.out.contains("200"));
    for (target, said) in outcomes {
        let answered = said.contains(" 200");
        findings.push(Attempt::judge(format!("CONNECT {target} at {host}:{port}"), control.clone(), (said, answered)));
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
