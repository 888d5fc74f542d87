//! Whether an unprivileged process may make a user namespace, in which every fork of a zygote
//! begins.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Any user without privileges: `nobody`.
const UNPRIVILEGED: u32 = 65_534;

/// Settings that forbid it, where the kernel has them: the value that does, and how to undo it.
/// `max_user_namespaces`: namespaces(7); `unprivileged_userns_clone`: Debian's kernels;
/// `apparmor_restrict_unprivileged_userns`: Ubuntu's, and AppArmor's since Linux 6.7.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("user.max_user_namespaces", "0", "65536"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
];

/// Reason why user namespaces cannot be made, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Finding, in words.
    pub found: String,
    /// Remedy that helps.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found, self.remedy)
    }
}

/// Makes a user namespace as a zygote's fork does, in a process of its own that ends at once.
///
/// # Errors
/// Why that cannot be done.
pub fn check() -> Result<(), Refusal> {
    attempt().map_err(|error| explain(&error, |name| std::fs::read_to_string(path_of(name)).ok()))
}

/// `user.max_user_namespaces` is `/proc/sys/user/max_user_namespaces` (sysctl(8)).
fn path_of(setting: &str) -> String {
    format!("/proc/sys/{}", setting.replacen('.', "/", 1))
}

fn explain(error: &io::Error, read: impl Fn(&str) -> Option<String>) -> Refusal {
    const WITHOUT: &str = "standbys are restored one by one instead of forked from a zygote";
    let setting =
        SETTINGS.iter().find(|(name, bad, _)| read(name).is_some_and(|value| value.trim() == *bad));
    match setting {
        Some((name, bad, good)) => {
            Refusal { found: format!("{name}={bad}: {WITHOUT}"), remedy: format!("sysctl -w {name}={good}") }
        }
        None => Refusal {
            found: format!("unprivileged processes may make no user namespaces ({error}): {WITHOUT}"),
            remedy: "a security module or the seccomp profile of a container forbids it: allow it there for mayfly"
                .into(),
        },
    }
}

fn attempt() -> io::Result<()> {
    fn check(result: libc::c_int) -> io::Result<()> {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
    let root = nix::unistd::geteuid().is_root();
    // Never executed: the child ends before.
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Those of a fork (engine/vmm/preload/src/filter.rs).
    let own = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let flags = libc::CLONE_NEWUSER | own;
    // SAFETY: the closure runs between fork and exec and makes plain system calls on the child,
    // which has one thread; setgroups reads no entry, the string is static and NUL-terminated.
    unsafe {
        command.pre_exec(move || {
            if root {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setresgid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED))?;
                check(libc::setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED))?;
            }
            check(libc::unshare(flags))?;
            // A security module may let the namespace be made, and deny what one is for.
            let (none, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
            check(libc::mount(none, c"/".as_ptr(), none, private, std::ptr::null()))?;
            libc::_exit(0)
        });
    }
    command.status().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_forbids_it_is_named_with_its_remedy() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        for (setting, bad, good) in SETTINGS {
            let refusal = explain(&error, |name| {
                Some(if name == setting { format!("{bad}\n") } else { "7\n".into() })
            });
            assert!(
                refusal.found.starts_with(&format!("{setting}={bad}: standbys are restored")),
                "{refusal}"
            );
            assert_eq!(refusal.remedy, format!("sysctl -w {setting}={good}"));
        }
    }

    #[test]
    fn without_such_a_setting_the_kernels_word_is_passed_on() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        let refusal =
            explain(&error, |name| (name == "user.max_user_namespaces").then(|| "100".into()));
        assert!(
            refusal.found.contains("Operation not permitted") && refusal.remedy.contains("seccomp"),
            "{refusal}"
        );
    }

    #[test]
    fn a_setting_is_a_file() {
        assert_eq!(path_of("user.max_user_namespaces"), "/proc/sys/user/max_user_namespaces");
        assert!(std::fs::exists(path_of(SETTINGS[0].0)).unwrap());
    }
}
