//! `/proc/PID/ns` (namespaces(7)).

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::super::unconfined::Unconfined;
use super::look::{done, subjects};

const KINDS: [&str; 5] = ["mnt", "pid", "net", "ipc", "uts"];

fn namespace(pid: u32, kind: &str) -> Result<String, AuditError> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let link = std::fs::read_link(&path).map_err(AuditError::host(format!("read {path}")))?;
    Ok(link.to_string_lossy().into_owned())
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let ordinary = Unconfined::start()?;
    let neighbour = lab.neighbour().await?;
    let subjects = subjects(lab).await?;
    for kind in KINDS {
        let host = namespace(std::process::id(), kind)?;
        let control = namespace(ordinary.pid(), kind)?;
        let works = control == host;
        let mut seen = vec![("a neighbour", namespace(neighbour.session.vmm_pid(), kind)?)];
        for (name, pid, _) in &subjects {
            let own = namespace(*pid, kind)?;
            let mut shared: Vec<&str> =
                seen.iter().filter(|(_, other)| *other == own).map(|(name, _)| *name).collect();
            if own == host {
                shared.insert(0, "the host");
            }
            let text = match shared.as_slice() {
                [] => own.clone(),
                shared => format!("{own}, shared with {}", shared.join(" and ")),
            };
            findings.push(Attempt::judge(
                format!("{name}: a {kind} namespace of its own"),
                (format!("{control}, the host's {host}"), works),
                (text, !shared.is_empty()),
            ));
            seen.push((*name, own));
        }
    }
    for (name, pid, _) in &subjects {
        let user = namespace(*pid, "user")?;
        let host = namespace(std::process::id(), "user")?;
        let text = if user == host { "the host's" } else { "one of its own" };
        findings.notes.push(format!("{name}: its user namespace is {text}."));
    }
    done(subjects).await?;
    Ok(findings)
}
