//! Files of the host.

use mayfly_vmm::Accel;
use nix::errno::Errno;

use super::super::check::Findings;
use super::super::inject::{Call, InjectError, Outcome, Tracee};
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::attack::{Attack, closing, run as attack};

/// Opens a path, and closes it again.
fn open(tracee: &mut Tracee, path: &str, flags: i32) -> Result<Outcome, InjectError> {
    let outcome = tracee
        .call(&Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(path).arg(flags).arg(0))?;
    closing(tracee, outcome)
}

fn opening(path: impl Into<String>, flags: i32, why: &str) -> Attack {
    let path = path.into();
    let way = if flags & libc::O_WRONLY != 0 { "for writing" } else { "for reading" };
    Attack::steps(format!("open {path} {way} ({why})"), move |tracee| open(tracee, &path, flags))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let neighbour = lab.neighbour().await?;
    let layout = lab.engine.layout().clone();
    let store = layout.store().display().to_string();
    let run = layout.run().display().to_string();
    let neighbour_pid = neighbour.session.vmm_pid();
    let cgroup = lab.cgroup(&neighbour.session);
    let mut attacks = vec![
        opening("/etc/shadow", libc::O_RDONLY, "secret"),
        opening("/etc/passwd", libc::O_RDONLY, "readable by everybody"),
        opening("/etc/hostname", libc::O_RDONLY, "readable by everybody").absent([Errno::ENOENT]),
        opening("/root", libc::O_RDONLY | libc::O_DIRECTORY, "secret folder"),
        opening("/home", libc::O_RDONLY | libc::O_DIRECTORY, "folder").absent([Errno::ENOENT]),
        opening("/var", libc::O_RDONLY | libc::O_DIRECTORY, "folder"),
        opening("/tmp", libc::O_RDONLY | libc::O_DIRECTORY, "folder"),
        opening("/sys/kernel", libc::O_RDONLY | libc::O_DIRECTORY, "kernel"),
        opening(store, libc::O_RDONLY | libc::O_DIRECTORY, "the goldens"),
        opening(run, libc::O_RDONLY | libc::O_DIRECTORY, "sockets of engine and pager"),
        opening(
            format!("/proc/{}/environ", std::process::id()),
            libc::O_RDONLY,
            "environment of the engine",
        ),
        opening(
            format!("/proc/{neighbour_pid}/maps"),
            libc::O_RDONLY,
            "memory layout of a neighbour's VMM",
        ),
        opening(
            format!("/proc/{neighbour_pid}/cmdline"),
            libc::O_RDONLY,
            "command line of a neighbour's VMM",
        ),
        opening(
            format!("/proc/{neighbour_pid}/mem"),
            libc::O_RDONLY,
            "memory of a neighbour's VMM",
        ),
        opening("/proc/kallsyms", libc::O_RDONLY, "kernel symbols").absent([Errno::ENOENT]),
        opening("/proc/sys/kernel/core_pattern", libc::O_WRONLY, "runs a program as root"),
        opening("/dev/userfaultfd", libc::O_RDWR, "device").absent([Errno::ENOENT]),
        opening("/dev/mem", libc::O_RDONLY, "device").absent([Errno::ENOENT, Errno::EPERM]),
        opening("/dev/vda", libc::O_RDONLY, "disk of the host").absent([
            Errno::ENOENT,
            Errno::ENXIO,
            Errno::EPERM,
        ]),
        opening("/dev/sda", libc::O_RDONLY, "disk of the host").absent([
            Errno::ENOENT,
            Errno::ENXIO,
            Errno::EPERM,
        ]),
        opening("/dev/fuse", libc::O_RDWR, "device").absent([Errno::ENOENT, Errno::ENODEV]),
        opening("/dev/net/tun", libc::O_RDWR, "device").absent([Errno::ENOENT, Errno::ENODEV]),
    ];
    // Under KVM it is what a VMM works with.
    if lab.golden.shape().accel != Accel::Kvm {
        attacks.push(
            opening("/dev/kvm", libc::O_RDWR, "device").absent([Errno::ENOENT, Errno::ENODEV]),
        );
    }
    for folder in cgroup
        .iter()
        .filter(|folder| folder.to_string_lossy().contains("memory") || cgroup.len() == 1)
    {
        let path = folder.join("cgroup.procs").display().to_string();
        attacks.push(opening(path, libc::O_WRONLY, "cgroup of a neighbour"));
    }
    attacks.push(entries());
    attacks.push(create());
    attack(lab, &attacks).await
}

/// What QEMU needs of a root folder: no more than this many names.
const FEW: usize = 12;
/// Begin of the names in a `struct linux_dirent64` (getdents64(2)).
const NAME: usize = 19;

/// The names in a buffer of getdents64(2).
fn names(buffer: &[u8]) -> Vec<String> {
    let (mut names, mut rest) = (Vec::new(), buffer);
    while let Some(length) =
        rest.get(16..18).map(|bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    {
        let Some(entry) = rest.get(..length).filter(|entry| entry.len() > NAME) else { break };
        let name: Vec<u8> = entry[NAME..].iter().copied().take_while(|byte| *byte != 0).collect();
        names.push(String::from_utf8_lossy(&name).into_owned());
        rest = &rest[length..];
    }
    names
}

/// Lists `/`. That must fail, or show no folder in which a host keeps what is its own.
fn entries() -> Attack {
    Attack::steps(
        format!("list /, and find more than {FEW} names, or root, home, var, etc/shadow"),
        |tracee| {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            let open = tracee.call(
                &Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg("/").arg(flags).arg(0),
            )?;
            let Outcome::Returned(folder) = open else { return Ok(open) };
            let call = Call::new(libc::SYS_getdents64).arg(folder).arg(vec![0_u8; 8192]).arg(8192);
            let (outcome, buffers) = tracee.call_reading(&call)?;
            tracee.call(&Call::new(libc::SYS_close).arg(folder))?;
            let Outcome::Returned(length) = outcome else { return Ok(outcome) };
            let length = usize::try_from(length).unwrap_or(0);
            let names =
                names(buffers.first().and_then(|buffer| buffer.get(..length)).unwrap_or_default());
            let names: Vec<_> = names.iter().filter(|name| *name != "." && *name != "..").collect();
            let host = names.len() > FEW
                || names
                    .iter()
                    .any(|name| ["root", "home", "var", "boot", "srv"].contains(&name.as_str()));
            Ok(if host {
                Outcome::Returned(i64::try_from(names.len()).unwrap_or(i64::MAX))
            } else {
                Outcome::Failed(Errno::ENOENT)
            })
        },
    )
}

/// Makes a file in the root folder.
fn create() -> Attack {
    Attack::steps("make a file in /, /tmp, /var/tmp or /dev/shm", |tracee| {
        let mut last = Outcome::Failed(Errno::ENOENT);
        for folder in ["/", "/tmp/", "/var/tmp/", "/dev/shm/"] {
            let path = format!("{folder}mayfly-audit-{}", std::process::id());
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
            last = tracee.call(
                &Call::new(libc::SYS_openat).arg(libc::AT_FDCWD).arg(&*path).arg(flags).arg(0o600),
            )?;
            if let Outcome::Returned(_) = last {
                tracee.call(&Call::new(libc::SYS_unlink).arg(&*path))?;
                return closing(tracee, last);
            }
            if last == Outcome::Killed {
                break;
            }
        }
        Ok(last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_out_of_what_the_kernel_writes_and_nothing_else_is_trusted() {
        let entry = |name: &str| {
            let length = (NAME + name.len() + 1).next_multiple_of(8);
            let mut bytes = vec![0; 16];
            bytes.extend(u16::try_from(length).unwrap().to_le_bytes());
            bytes.push(4);
            bytes.extend(name.as_bytes());
            bytes.resize(length, 0);
            bytes
        };
        let buffer = [entry("usr"), entry("a-longer-name")].concat();
        assert_eq!(names(&buffer), ["usr", "a-longer-name"]);
        assert_eq!(names(&buffer[..buffer.len() - 1]), ["usr"]);
        assert_eq!(names(&[0; 64]), [""; 0]);
    }
}
