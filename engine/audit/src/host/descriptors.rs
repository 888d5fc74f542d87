//! `/proc/PID/fd` and `/proc/PID/fdinfo`.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::look::{Look, Seen, done, run as look, subjects};

/// Devices that a VMM may have open: the one that swallows everything, and those it is given
/// because it needs them.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/kvm", "/dev/userfaultfd", "/null"];

/// One descriptor: what it leads to, and whether it can be written to.
struct Descriptor {
    number: String,
    target: String,
    writable: bool,
}

fn descriptors(pid: u32) -> std::io::Result<Vec<Descriptor>> {
    let mut descriptors = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let target =
            std::fs::read_link(entry.path()).map(|target| target.to_string_lossy().into_owned());
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let (Ok(target), Ok(info)) = (target, info) else { continue };
        // Octal flags of open(2); the lowest two bits are the access mode.
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
        let mode = flags
            .and_then(|flags| u32::from_str_radix(flags, 8).ok())
            .unwrap_or(libc::O_RDWR as u32)
            & 3;
        descriptors.push(Descriptor { number, target, writable: mode != libc::O_RDONLY as u32 });
    }
    Ok(descriptors)
}

impl Descriptor {
    /// What it is, without what differs between two of a kind.
    fn kind(&self) -> String {
        let name = self.target.split(":[").next().unwrap_or_default();
        let name =
            if name.starts_with('/') && !name.starts_with("/memfd:") && !name.starts_with("/dev") {
                let file =
                    Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
                match file.rsplit_once('.') {
                    Some((_, end)) => format!("file .{end}"),
                    None => "file".into(),
                }
            } else {
                name.to_owned()
            };
        format!("{name}{}", if self.writable { "" } else { " (read-only)" })
    }

    fn is_file(&self) -> bool {
        self.target.starts_with('/') && !self.target.starts_with("/dev/")
    }

    /// The overlay and the error output have no name; they are a process's own.
    fn is_own(&self) -> bool {
        self.target.starts_with("/memfd:vmm-stderr")
            || (self.target.ends_with(" (deleted)") && !self.target.starts_with("/memfd:"))
    }
}

fn list(of: &[&Descriptor]) -> String {
    if of.is_empty() {
        return "none".into();
    }
    of.iter().map(|d| format!("{} {}", d.number, d.target)).collect::<Vec<_>>().join(", ")
}

/// Writable files that are shared, or of the host.
fn writable(pid: u32) -> std::io::Result<Seen> {
    let all = descriptors(pid)?;
    let bad: Vec<&Descriptor> = all
        .iter()
        .filter(|d| {
            d.writable && d.is_file() && !d.is_own() && !DEVICES.contains(&d.target.as_str())
        })
        .collect();
    Ok((format!("{} descriptors; writable files: {}", all.len(), list(&bad)), !bad.is_empty()))
}

fn places(pid: u32) -> std::io::Result<Vec<String>> {
    let is_bad = |d: &Descriptor| {
        let path = format!("/proc/{pid}/fd/{}", d.number);
        let folder = std::fs::metadata(path).is_ok_and(|found| found.is_dir());
        folder || (d.target.starts_with("/dev/") && !DEVICES.contains(&d.target.as_str()))
    };
    Ok(descriptors(pid)?
        .iter()
        .filter(|d| is_bad(d))
        .map(|d| format!("{} {}", d.number, d.target))
        .collect())
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = look(lab, &[Look::new("no writable file but its own", writable)]).await?;
    // The control of this one: a process that has a folder open, which is this one while it reads
    // it.
    let own = std::fs::File::open("/").map_err(AuditError::host("open /"))?;
    let control = places(std::process::id()).map_err(AuditError::host("list descriptors"))?;
    drop(own);
    let subjects = subjects(lab).await?;
    for (name, pid, _) in &subjects {
        let bad = places(*pid).map_err(AuditError::host("list descriptors"))?;
        findings.push(super::super::report::Attempt::judge(
            format!("{name}: no folder, and no device that it does not need"),
            (
                format!("this process, which has / open: {}", control.join(", ")),
                !control.is_empty(),
            ),
            (if bad.is_empty() { "none".into() } else { bad.join(", ") }, !bad.is_empty()),
        ));
        let mut kinds = BTreeMap::<String, usize>::new();
        for descriptor in descriptors(*pid).map_err(AuditError::host("list descriptors"))? {
            *kinds.entry(descriptor.kind()).or_default() += 1;
        }
        let kinds: Vec<String> =
            kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        findings.notes.push(format!("{name}: {}.", kinds.join(", ")));
    }
    done(subjects).await?;
    Ok(findings)
}
