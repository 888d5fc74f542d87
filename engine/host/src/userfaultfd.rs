//! `/dev/userfaultfd`: opened here as root and inherited by VMMs, which make their own descriptors
//! from it.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

/// The device (kernel `Documentation/admin-guide/mm/userfaultfd.rst`, Linux 6.1 or later).
pub const DEVICE: &str = "/dev/userfaultfd";

/// `/dev/userfaultfd` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {DEVICE}: {cause}; {}", advice(.cause))]
pub struct UffdError {
    cause: std::io::Error,
}

fn advice(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        std::io::ErrorKind::NotFound => {
            "sessions need Linux 6.1 or later with CONFIG_USERFAULTFD=y"
        }
        std::io::ErrorKind::PermissionDenied => "run mayfly as root",
        _ => "check that the device is the kernel's own",
    }
}

/// Opens the device for a VMM to inherit.
///
/// # Errors
/// [`UffdError`].
pub fn open() -> Result<OwnedFd, UffdError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device())
        .map(|file: File| file.into())
        .map_err(|cause| UffdError { cause })
}

/// `MAYFLY_USERFAULTFD` names another device, for hosts that keep it elsewhere.
fn device() -> std::path::PathBuf {
    std::env::var_os("MAYFLY_USERFAULTFD").map_or_else(|| DEVICE.into(), Into::into)
}
