//! The host's kernel: its release, userfaultfd, user namespaces.

use mayfly_host::{namespaces, userfaultfd};

use super::{Check, Outcome};

pub(super) fn release() -> Check {
    let release = nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    Check::ok("kernel", release)
}

pub(super) fn userfaultfd() -> Check {
    match userfaultfd::open() {
        Ok(_) => Check::ok("userfaultfd", userfaultfd::DEVICE),
        Err(error) => Check::missing(
            "userfaultfd",
            error.to_string(),
            "use a kernel with CONFIG_USERFAULTFD=y, as root",
        ),
    }
}

/// Whether an ordinary process may make a user namespace, which a fork of a zygote has to.
pub(super) fn user_namespaces() -> Check {
    const SUBJECT: &str = "user namespaces";
    match namespaces::check() {
        Ok(()) => Check::ok(SUBJECT, "a zygote can be forked"),
        Err(refusal) => Check::new(SUBJECT, Outcome::Limited, refusal.found, refusal.remedy),
    }
}
