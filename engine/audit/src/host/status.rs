//! `/proc/PID/status` and `/proc/PID/limits`.

use std::collections::BTreeSet;

use mayfly_vmm::Accel;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::super::unconfined::Unconfined;
use super::cgroups;
use super::look::{Look, Seen, done, run as look, subjects};

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
            Ok((
                format!("{field} {ids}"),
                different.len() != 1 || different.contains("0") || ids.is_empty(),
            ))
        }
    };
    let groups = move |pid| {
        let groups = status(pid, "Groups")?;
        let count = groups.split_whitespace().count();
        Ok((
            if groups.is_empty() { "no groups".into() } else { format!("Groups {groups}") },
            count > groups_allowed,
        ))
    };
    let looks = [
        Look::new("its user is one and not root", same("Uid")),
        Look::new("its group is one and not root's", same("Gid")),
        Look::new("it has no groups beside its own", groups),
    ];
    let mut findings = look(lab, &looks).await?;
    let user = |pid| {
        let ids = status(pid, "Uid").map_err(AuditError::host("read the user of a process"));
        ids.map(|ids| ids.split(' ').next().unwrap_or_default().to_owned())
    };
    let equal = |users: &[String]| users.iter().collect::<BTreeSet<_>>().len() != users.len();
    let (one, other) = (Unconfined::start()?, Unconfined::start()?);
    let ordinary = [user(one.pid())?, user(other.pid())?];
    let subjects = subjects(lab).await?;
    let users = subjects.iter().map(|(_, pid, _)| user(*pid)).collect::<Result<Vec<_>, _>>()?;
    findings.push(Attempt::judge(
        "no two VMMs have the same user",
        (format!("two ordinary processes: {}", ordinary.join(", ")), equal(&ordinary)),
        (users.join(", "), equal(&users)),
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
    // An ordinary root has none of these either, so they cannot be told from it; what matters
    // follows from the bounding set.
    let subjects = subjects(lab).await?;
    for (name, pid, _) in &subjects {
        let sets = ["CapInh", "CapAmb", "Seccomp_filters"];
        let values: Vec<String> = sets
            .iter()
            .map(|set| format!("{set} {}", status(*pid, set).unwrap_or_default()))
            .collect();
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

/// A dump of one byte: none is written, and the helper of a `core_pattern` that is a pipe, which
/// runs as root on the host, starts at every limit but this one (core(5)).
fn core_dumps(pid: u32) -> std::io::Result<Seen> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let limits: Vec<&str> = line.unwrap_or_default().split_whitespace().take(2).collect();
    Ok((
        format!("Max core file size: soft and hard {}", limits.join(" and ")),
        limits != ["1", "1"],
    ))
}

/// proc_pid_oom_score_adj(5). The lowest that is far from what services have.
fn oom_score(pid: u32) -> std::io::Result<Seen> {
    const LEAST: i32 = 500;
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    let score = text.trim().parse().unwrap_or(i32::MIN);
    Ok((format!("oom_score_adj {score}"), score < LEAST))
}

/// By its own limit, or by that of its cgroup: of a zygote the kernel counts those of its forks as
/// well.
fn processes(pid: u32) -> std::io::Result<Seen> {
    const MOST: u64 = 4096;
    let own = hard(pid, "Max processes")?;
    let group = cgroups::most_tasks(pid)?;
    let bounded = own <= MOST || group.is_some_and(|tasks| tasks <= MOST);
    let group = group.map_or_else(|| "none".into(), |tasks| tasks.to_string());
    Ok((format!("Max processes: {own}; bound of its cgroup: {group}"), !bounded))
}

pub(super) async fn limits(lab: &mut Lab) -> Result<Findings, AuditError> {
    // Above what any golden's disk needs, and far below a host's.
    const LARGEST_FILE: u64 = 1 << 42;
    let at_most = |name: &'static str, most: u64| {
        move |pid| {
            let value = hard(pid, name)?;
            let text = if value == u64::MAX { "unlimited".into() } else { value.to_string() };
            Ok((format!("{name}: {text}"), value > most))
        }
    };
    look(
        lab,
        &[
            Look::new(
                "no core dumps, which hold the guest's memory, and no helper for them",
                core_dumps,
            ),
            Look::new("it is killed before others when the host's memory is used up", oom_score),
            Look::new("open files are bounded", at_most("Max open files", 16384)),
            Look::new("the size of a file is bounded", at_most("Max file size", LARGEST_FILE)),
            Look::new("processes of its user are bounded", processes),
        ],
    )
    .await
}
