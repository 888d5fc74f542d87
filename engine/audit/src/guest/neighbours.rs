//! Attacks on what belongs to a neighbour or to the engine.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::ask::{perl, sh};

const LOOK: &str = include_str!("look.pl");
/// The guest's own Docker socket.
const DOCKER: &str = "/run/docker.sock";

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let (neighbour, socket) = lab.neighbour_with_socket().await?;
    let subject = lab.subject().await?;
    let marks = &lab.marks;
    let container = |tag: &str| format!("docker create --name {}{tag} busybox true", marks.prefix);
    let created = sh(&neighbour.session, &container(&marks.neighbour)).await?;
    let own = sh(&subject.session, &container(&marks.own)).await?;
    if lab.options.plants(Planted::LeakedSecrets) {
        sh(&subject.session, &container(&marks.neighbour)).await?;
    }
    let layout = lab.engine.layout();
    let failed = || AuditError::host("listen on an abstract socket");
    let address = SocketAddr::from_abstract_name(format!("{}{}", marks.prefix, marks.host))
        .map_err(failed())?;
    let _of_host = UnixListener::bind_addr(&address).map_err(failed())?;
    let paths = [
        ("the engine's API", layout.api_socket()),
        ("the pager", layout.pager_socket()),
        ("a neighbour's Docker daemon", socket.path().to_owned()),
    ];
    let names: Vec<String> = paths.iter().map(|(_, path)| path.display().to_string()).collect();
    let mut args =
        vec![marks.prefix.as_str(), &marks.own, &marks.neighbour, &marks.host, "--", DOCKER];
    args.extend(names.iter().map(String::as_str));
    let said = perl(&subject.session, LOOK, &args).await?;

    let seen = |kind: &str| -> Vec<&'static str> {
        let tag = |line: &str| {
            line.strip_prefix(kind)?.strip_prefix(' ').and_then(|tag| marks.owner(tag))
        };
        said.out.lines().filter_map(tag).collect()
    };
    for (kind, what) in [
        ("process", "see a process of a neighbour"),
        ("file", "find a file of a neighbour"),
        ("abstract", "connect to an abstract socket of a neighbour or the host"),
        ("container", "see a container of a neighbour in Docker"),
    ] {
        let owners = seen(kind);
        let foreign: Vec<_> = owners.iter().copied().filter(|owner| *owner != "itself").collect();
        let mut control =
            format!("own: {}", if owners.contains(&"itself") { "seen" } else { "NOT seen" });
        let mut works = owners.contains(&"itself");
        if kind == "container" {
            control.push_str(&format!(" ({})", own.all()));
            works &= created.code == 0;
        }
        let outcome = if foreign.is_empty() {
            "none".to_owned()
        } else {
            format!("of {}", foreign.join(", "))
        };
        findings.push(Attempt::judge(what, (control, works), (outcome, !foreign.is_empty())));
    }
    let outcome = |path: &str| {
        let line = said
            .out
            .lines()
            .find_map(|line| line.strip_prefix("socket ")?.strip_prefix(path)?.strip_prefix(' '));
        line.map_or_else(String::new, |outcome| outcome.trim().to_owned())
    };
    let own = outcome(DOCKER);
    for ((what, _), name) in paths.iter().zip(&names) {
        let outcome = outcome(name);
        findings.push(Attempt::judge(
            format!("connect to the socket of {what} ({name})"),
            (format!("{DOCKER} of the guest itself: {own}"), own == "connected"),
            (outcome.clone(), outcome.is_empty() || outcome == "connected"),
        ));
    }
    Ok(findings)
}
