//! The user namespace of a build: root in it is nobody on the host.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, IoContext as _};

/// The host's user and group ids that builds run as: `FIRST_ID..FIRST_ID + IDS` are 0 to 65535 in
/// their user namespaces. Above what useradd(8), systemd (`systemd.io/UIDS-GIDS`) and container
/// runtimes hand out, and next to what VMMs have by default.
pub const FIRST_ID: u32 = 0x7100_0000;
/// How many ids a build has: all that Debian policy knows (section 9.2.2).
pub const IDS: u32 = 0x1_0000;

/// Bounds the number of user namespaces (namespaces(7)); holds for root as well.
const MOST_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";

/// Makes a user namespace with the ids of builds. It lives as long as the descriptor, or a process
/// in it.
///
/// # Errors
/// [`Error::UserNamespace`] when the kernel refuses it.
pub(crate) fn make() -> Result<OwnedFd, Error> {
    // A process of its own, for a namespace is not to be had otherwise in a program with threads
    // (unshare(2)). It waits for the end of its input, and so ends with this one at the latest.
    let mut command = Command::new("cat");
    command.env_clear().env("PATH", crate::sandbox::PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec one system call is made, and an io::Error from a number, which
    // does not allocate.
    unsafe {
        command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWUSER)?));
    }
    let mut first = command.spawn().map_err(|error| {
        refused(&error, std::fs::read_to_string(MOST_NAMESPACES).unwrap_or_default().trim())
    })?;
    let of_first = Path::new("/proc").join(first.id().to_string());
    // The kernel takes a map in one write(2), once (user_namespaces(7)).
    let map = |name: &str| {
        let path = of_first.join(name);
        let file = File::options().write(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("0 {FIRST_ID} {IDS}\n").as_bytes()))
            .context("write", &path)
    };
    let path = of_first.join("ns/user");
    let namespace = map("uid_map")
        .and_then(|()| map("gid_map"))
        .and_then(|()| File::open(&path).context("open", &path));
    let _ = first.kill();
    let _ = first.wait();
    Ok(namespace?.into())
}

/// Why the kernel made no user namespace for root, and what helps.
fn refused(error: &io::Error, most: &str) -> Error {
    let (reason, remedy) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EUSERS) if most == "0" => (
            "user.max_user_namespaces=0 forbids them, also to root".to_owned(),
            "run `sysctl -w user.max_user_namespaces=65536` and look in /etc/sysctl.d for what sets it",
        ),
        Some(Errno::ENOSPC | Errno::EUSERS) => (
            format!("the {most} that user.max_user_namespaces allows are in use, or 32 are nested"),
            "raise it with `sysctl -w`",
        ),
        _ => (
            error.to_string(),
            "a security module or the seccomp profile of a container forbids it: allow it there for mayfly",
        ),
    };
    Error::UserNamespace { reason, remedy }
}

/// Makes the build's root the owner of `path` and, when it is not yet, of all below it. Links are
/// not followed.
///
/// # Errors
/// A link in place of `path`, or an owner who is neither root nor the build's: somebody else has made
/// it.
pub(crate) fn give(path: &Path) -> Result<(), Error> {
    let found = path.symlink_metadata().context("look at", path)?;
    if found.is_symlink() || ![0, FIRST_ID].contains(&found.uid()) {
        let error = io::Error::other("it is a link, or another user's; remove it");
        return Err(error).context("give to the build", path);
    }
    if found.uid() == FIRST_ID {
        return Ok(());
    }
    // The folder itself comes last, and says that all below it was given.
    for entry in walkdir::WalkDir::new(path).follow_root_links(false).contents_first(true) {
        let entry = entry.map_err(io::Error::from).context("read", path)?;
        lchown(entry.path(), Some(FIRST_ID), Some(FIRST_ID))
            .context("give to the build", entry.path())?;
    }
    Ok(())
}

/// Makes the host's root the owner of the file `path`.
pub(crate) fn take_back(path: &Path) -> Result<(), Error> {
    lchown(path, Some(0), Some(0)).context("take back from the build", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let of = |errno: Errno, most: &str| {
            refused(&io::Error::from_raw_os_error(errno as i32), most).to_string()
        };
        let text = of(Errno::ENOSPC, "0");
        assert!(text.contains("sysctl -w user.max_user_namespaces=65536"), "{text}");
        assert!(of(Errno::ENOSPC, "7").contains("the 7 that"));
        let text = of(Errno::EPERM, "7");
        assert!(text.contains("Operation not permitted") && text.contains("seccomp"), "{text}");
    }

    #[test]
    #[ignore = "needs root"]
    fn its_root_is_nobody_on_the_host() {
        let namespace = make().expect("made");
        let mut command = Command::new("sh");
        command.args(["-c", "id -u; cat /proc/self/uid_map"]);
        // SAFETY: between fork and exec system calls are made that allocate nothing.
        unsafe {
            command.pre_exec(move || {
                nix::sched::setns(&namespace, CloneFlags::CLONE_NEWUSER)?;
                Ok(nix::unistd::setuid(0.into())?)
            });
        }
        let said = command.output().expect("runs").stdout;
        let said = String::from_utf8_lossy(&said);
        let words: Vec<_> = said.split_whitespace().collect();
        assert_eq!(words, ["0", "0", &FIRST_ID.to_string(), &IDS.to_string()]);
    }
}
