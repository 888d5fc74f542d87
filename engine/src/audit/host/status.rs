//! `/proc/PID/status` and `/proc/PID/limits`.

use std::collections::BTreeSet;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::look::{Look, done, run as look, subjects};
use crate::vmm::Accel;

/// A line of `/proc/PID/status` (proc_pid_status(5)).
fn status(pid: u32, name: &str) -> std::io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(value.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
}

pub(super) async fn user(lab: &mut Lab) -> Result<Findings, AuditError> {
    // Under KVM a VMM has the group of the device, which it opens itself.
    let groups_allowed = usize::from(lab.golden.shape().accel == Accel::Kvm);
    let same = |field: &'static str| {
        move |pid| {
            let ids = status(pid, field)?;
            let different: BTreeSet<&str> = ids.split(' ').collect();
            Ok((format!("{field} {ids}"), different.len() != 1 || different.contains("0") || ids.is_empty()))
        }
    };
    let looks = [
        Look::new("its user is one and not root", same("Uid")),
        Look::new("its group is one and not root's", same("Gid")),
    ];
    let mut findings = look(lab, &looks).await?;
    let subjects = subjects(lab).await?;
    let mut users = Vec::new();
    for (name, pid, _) in &subjects {
        let host = |action| AuditError::host(format!("{action} of a VMM"));
        let groups = status(*pid, "Groups").map_err(host("read the groups"))?;
        let count = groups.split_whitespace().count();
        let own = nix::unistd::getgroups().map_or(0, |groups| groups.len());
        findings.push(Attempt::judge(
            format!("{name}: it has no groups beside its own"),
            (
                format!(
                    "this process has {own}, read through the same file: {}",
                    status(std::process::id(), "Groups").unwrap_or_default()
                ),
                true,
            ),
            (if groups.is_empty() { "none".into() } else { groups }, count > groups_allowed),
        ));
        users.push(status(*pid, "Uid").map_err(host("read the user"))?);
    }
    let different: BTreeSet<&String> = users.iter().collect();
    let planted = lab.options.plants(Planted::UnconfinedVmm);
    findings.push(Attempt::judge(
        "no two VMMs have the same user",
        ("two ordinary processes of root have the same".to_owned(), true),
        (users.iter().map(|ids| ids.split(' ').next().unwrap_or_default()).collect::<Vec<_>>().join(", "), {
            different.len() != users.len() || planted
        }),
    ));
    done(subjects).await?;
    Ok(findings)
}

pub(super) async fn capabilities(lab: &mut Lab) -> Result<Findings, AuditError> {
    let empty = |set: &'static str| {
        move |pid| {
            let bits = status(pid, set)?;
            Ok((format!("{set} {bits}"), u64::from_str_radix(&bits, 16).unwrap_or(u64::MAX) != 0))
        }
    };
    let is = |field: &'static str, wanted: &'static str| {
        move |pid| {
            let value = status(pid, field)?;
            Ok((format!("{field} {value}"), value != wanted))
        }
    };
    let mut findings = look(
        lab,
        &[
            Look::new("no effective capability", empty("CapEff")),
            Look::new("no permitted capability", empty("CapPrm")),
            Look::new("empty bounding set", empty("CapBnd")),
            Look::new("no_new_privs", is("NoNewPrivs", "1")),
            Look::new("seccomp filters (mode 2)", is("Seccomp", "2")),
        ],
    )
    .await?;
    // An ordinary root has none of these either, so they cannot be told from it; what matters follows from the bounding set.
    let subjects = subjects(lab).await?;
    for (name, pid, _) in &subjects {
        let sets = ["CapInh", "CapAmb", "Seccomp_filters"];
        let values: Vec<String> =
            sets.iter().map(|set| format!("{set} {}", status(*pid, set).unwrap_or_default())).collect();
        findings.notes.push(format!("{name}: {}.", values.join(", ")));
    }
    done(subjects).await?;
    Ok(findings)
}

/// Hard limits of `/proc/PID/limits` (proc_pid_limits(5)).
fn hard(pid: u32, name: &str) -> std::io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_default().split_whitespace().nth(1).unwrap_or("unlimited");
    Ok(value.parse().unwrap_or(u64::MAX))
}

pub(super) async fn limits(lab: &mut Lab) -> Result<Findings, AuditError> {
    let at_most = |name: &'static str, most: u64| {
        move |pid| {
            let value = hard(pid, name)?;
            let text = if value == u64::MAX { "unlimited".into() } else { value.to_string() };
            Ok((format!("{name}: {text}"), value > most))
        }
    };
    // Above what any golden's disk needs, and far below a host's.
    const LARGEST_FILE: u64 = 1 << 42;
    look(
        lab,
        &[
            Look::new("no core dumps: they hold the guest's memory", at_most("Max core file size", 0)),
            Look::new("open files are bounded", at_most("Max open files", 16384)),
            Look::new("the size of a file is bounded", at_most("Max file size", LARGEST_FILE)),
            Look::new("processes of its user are bounded", at_most("Max processes", 4096)),
        ],
    )
    .await
}
