//! The file system a VMM sees: `/proc/PID/root` and `/proc/PID/mountinfo`.

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::look::{Look, Seen, run as look};

/// Folders in which a host keeps what is its own.
const OF_HOSTS: [&str; 8] = ["root", "home", "var", "boot", "srv", "mnt", "tmp", "run"];
/// Most files of the whole tree: QEMU, its libraries and firmware.
const MOST_FILES: usize = 2000;

fn names(pid: u32, path: &str) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/root{path}"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Mounts as (place, options of this mount, type); proc_pid_mountinfo(5).
fn mounts(pid: u32) -> std::io::Result<Vec<(String, String, String)>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let mount = |line: &str| {
        let (own, rest) = line.split_once(" - ")?;
        let fields: Vec<&str> = own.split(' ').collect();
        Some((
            (*fields.get(4)?).to_owned(),
            (*fields.get(5)?).to_owned(),
            rest.split(' ').next()?.to_owned(),
        ))
    };
    Ok(text.lines().filter_map(mount).collect())
}

fn places(places: &[&(String, String, String)]) -> String {
    match places.len() {
        0 => "none".into(),
        count => {
            let some: Vec<&str> = places.iter().take(6).map(|(place, ..)| place.as_str()).collect();
            format!("{count}: {}{}", some.join(" "), if count > 6 { " ..." } else { "" })
        }
    }
}

fn top(pid: u32) -> std::io::Result<Seen> {
    let mut names = names(pid, "/")?;
    names.sort();
    // An empty folder to mount something on tells nothing.
    let full: Vec<&str> = OF_HOSTS
        .into_iter()
        .filter(|name| names.iter().any(|found| found == name))
        .filter(|name| self::names(pid, &format!("/{name}")).is_ok_and(|inside| !inside.is_empty()))
        .collect();
    Ok((format!("/ has {}", names.join(" ")), !full.is_empty()))
}

fn writable(pid: u32) -> std::io::Result<Seen> {
    let mounts = mounts(pid)?;
    let writable: Vec<_> = mounts
        .iter()
        .filter(|(_, options, _)| !options.split(',').any(|word| word == "ro"))
        .collect();
    Ok((
        format!("writable mounts: {}; all mounts: {}", places(&writable), mounts.len()),
        !writable.is_empty(),
    ))
}

fn special(pid: u32) -> std::io::Result<Seen> {
    let mounts = mounts(pid)?;
    let kinds = [
        "sysfs",
        "cgroup",
        "cgroup2",
        "devtmpfs",
        "debugfs",
        "tracefs",
        "bpf",
        "securityfs",
        "devpts",
        "mqueue",
    ];
    let special: Vec<_> =
        mounts.iter().filter(|(_, _, kind)| kinds.contains(&kind.as_str())).collect();
    Ok((format!("file systems of the kernel: {}", places(&special)), !special.is_empty()))
}

fn processes(pid: u32) -> std::io::Result<Seen> {
    let seen = names(pid, "/proc").unwrap_or_default();
    let count = seen.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).count();
    // What root sees there is not what the process sees (kernel
    // `Documentation/filesystems/proc.rst`, `hidepid`). A zygote's PID namespace has those of its
    // forks below it.
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let hides = |line: &str| {
        line.contains(" - proc ")
            && (line.contains("hidepid=invisible") || line.contains("hidepid=2"))
    };
    let hidden = table.lines().any(hides);
    let text = format!(
        "{count} processes in its /proc{}",
        if hidden { ", those of others hidden" } else { "" }
    );
    Ok((text, count > 2 && !hidden))
}

#[expect(clippy::unnecessary_wraps, reason = "a look may fail, and this one does not")]
fn passwords(pid: u32) -> std::io::Result<Seen> {
    let found: Vec<&str> = [
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/bin/sh",
        "/usr/bin/perl",
    ]
    .into_iter()
    .filter(|path| std::fs::symlink_metadata(format!("/proc/{pid}/root{path}")).is_ok())
    .collect();
    Ok((if found.is_empty() { "none".into() } else { found.join(" ") }, !found.is_empty()))
}

/// Counts files, to the bound and not further.
#[expect(clippy::unnecessary_wraps, reason = "a look may fail, and this one does not")]
fn size(pid: u32) -> std::io::Result<Seen> {
    fn count(path: &std::path::Path, left: &mut usize) {
        let Ok(entries) = std::fs::read_dir(path) else { return };
        for entry in entries.flatten() {
            if *left == 0 {
                return;
            }
            match entry.file_type() {
                Ok(kind)
                    if kind.is_dir()
                        && entry.file_name() != "proc"
                        && entry.file_name() != "sys" =>
                {
                    count(&entry.path(), left);
                }
                Ok(kind) if kind.is_dir() => {}
                _ => *left -= 1,
            }
        }
    }
    let mut left = MOST_FILES + 1;
    count(std::path::Path::new(&format!("/proc/{pid}/root/")), &mut left);
    let files = MOST_FILES + 1 - left;
    let text =
        if left == 0 { format!("more than {MOST_FILES} files") } else { format!("{files} files") };
    Ok((text, left == 0))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    look(
        lab,
        &[
            Look::new("no folder of the host with something in it", top),
            Look::new("everything is mounted read-only", writable),
            Look::new("no file system of the kernel but /proc", special),
            Look::new("no other process in /proc", processes),
            Look::new("no file of the host's configuration, no shell, no interpreter", passwords),
            Look::new("few files", size),
        ],
    )
    .await
}
