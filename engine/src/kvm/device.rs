//! Access to `/dev/kvm`, and the remedy when there is none.

use std::fs::File;
use std::io;

/// The device of KVM.
pub const DEVICE: &str = "/dev/kvm";

/// Opens the device as a VMM does.
///
/// # Errors
/// What stands in the way, and what helps.
pub fn look() -> Result<(), (String, &'static str)> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => Err((reason(&error), remedy(&error))),
    }
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => format!("this host has no {DEVICE}"),
        Some(libc::EACCES | libc::EPERM) => format!("no permission to open {DEVICE}: {error}"),
        Some(libc::ENXIO | libc::ENODEV) => {
            format!("{DEVICE} is there, and no driver behind it: {error}")
        }
        _ => format!("cannot open {DEVICE}: {error}"),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "turn hardware virtualization on in the firmware (for a virtual machine: nested virtualization on its host) and \
             modprobe kvm_intel or kvm_amd; in a container pass the device on (--device /dev/kvm)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "run mayfly as root (to look only, the group kvm is enough); in a container pass the device on (--device /dev/kvm)"
        }
        Some(libc::ENXIO | libc::ENODEV) => {
            "modprobe kvm_intel or kvm_amd; when that is refused, dmesg says why, such as `disabled by BIOS`"
        }
        _ => "dmesg may say why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_has_a_remedy_of_its_own() {
        let said = |number| {
            let error = io::Error::from_raw_os_error(number);
            (reason(&error), remedy(&error))
        };
        for (number, part, help) in [
            (libc::ENOENT, "has no /dev/kvm", "firmware"),
            (libc::EACCES, "no permission", "as root"),
            (libc::EPERM, "no permission", "--device /dev/kvm"),
            (libc::ENXIO, "no driver", "modprobe"),
            (libc::ENODEV, "no driver", "modprobe"),
            (libc::EMFILE, "Too many open files", "dmesg"),
        ] {
            let (reason, remedy) = said(number);
            assert!(reason.contains(part) && remedy.contains(help), "{reason}; {remedy}");
        }
    }
}
