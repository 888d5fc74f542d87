//! `/proc/PID/cgroup`, and the bounds in the folders it names.

use std::io;
use std::path::PathBuf;

use mayfly_host::cgroup::{Place, ROOT, Version};

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::look::{Look, Seen, run as look};

/// Below this a bound is one: the kernel writes none as the largest multiple of a page (v1) or as
/// `max` (v2).
const BOUND: u64 = 1 << 60;

fn place() -> io::Result<&'static Place> {
    Place::of_this_process().map_err(io::Error::other)
}

/// The folder of a process's cgroup for a controller.
fn folder(pid: u32, controller: &str) -> io::Result<PathBuf> {
    place()?.folder_of(pid, controller)
}

/// What bounds a process by a group of ours, and as text. A service manager may have bounded the
/// group that an ordinary process is in (`TasksMax=`), which is nothing of ours.
fn bound(pid: u32, controller: &str, v1: &str, v2: &str) -> io::Result<(String, Option<u64>)> {
    let name = if place()?.version() == Version::V2 { v2 } else { v1 };
    let folder = folder(pid, controller)?;
    match std::fs::read_to_string(folder.join(name)) {
        Ok(text) if folder.iter().any(|part| part == ROOT) => {
            let value = text.trim().parse().ok().filter(|value| *value < BOUND);
            Ok((format!("{name} {}", text.trim()), value))
        }
        Ok(text) => Ok((format!("{name} {} of a group that is not ours", text.trim()), None)),
        // The root of a hierarchy has no such file: no bound.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((format!("no {name}"), None)),
        Err(error) => Err(error),
    }
}

fn bounded(
    controller: &'static str,
    v1: &'static str,
    v2: &'static str,
) -> impl Fn(u32) -> io::Result<Seen> {
    move |pid| {
        let (text, value) = bound(pid, controller, v1, v2)?;
        Ok((text, value.is_none()))
    }
}

/// Most tasks in its cgroup, where there is a bound.
pub(super) fn most_tasks(pid: u32) -> io::Result<Option<u64>> {
    Ok(bound(pid, "pids", "pids.max", "pids.max")?.1)
}

fn own(pid: u32) -> io::Result<Seen> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let ours: Vec<&str> = text.lines().filter(|line| line.contains(&format!("/{ROOT}/"))).collect();
    let first = ours.first().copied().unwrap_or("none of ours");
    let memory = folder(pid, "memory")?;
    let tasks = std::fs::read_to_string(memory.join("cgroup.procs")).unwrap_or_default();
    let others = tasks.lines().filter(|line| line.trim().parse() != Ok(pid)).count();
    Ok((
        format!("{} of ours, such as {first}; {others} other processes in it", ours.len()),
        ours.is_empty() || others > 0,
    ))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut looks = vec![
        Look::new("a cgroup of its own", own),
        Look::new("memory is bounded", bounded("memory", "memory.limit_in_bytes", "memory.max")),
        Look::new("tasks are bounded", bounded("pids", "pids.max", "pids.max")),
    ];
    let v2 = place().is_ok_and(|place| place.version() == Version::V2);
    let accounts_swap = v2
        || folder(std::process::id(), "memory")
            .is_ok_and(|path| path.join("memory.memsw.limit_in_bytes").exists());
    if accounts_swap {
        looks.push(Look::new(
            "swap is bounded",
            bounded("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
        ));
    }
    let mut findings = look(lab, &looks).await?;
    if !accounts_swap {
        findings.notes.push("This host does not account for swap.".into());
    }
    Ok(findings)
}
