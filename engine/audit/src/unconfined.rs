//! An ordinary process of root, for controls: what it can do is what a VMM must not.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::options::AuditError;

/// Groups that no host gives to anybody: those before `nogroup`. Two, for a VMM has one under KVM.
static GROUPS: [libc::gid_t; 2] = [65533, 65532];

/// A sleeping child of this process, with its user, namespaces and rights. Its standard input is a
/// writable file that looks like a page cache, and it has groups beside its own. Killed when
/// dropped.
#[derive(Debug)]
pub(super) struct Unconfined(Child);

impl Unconfined {
    pub fn start() -> Result<Self, AuditError> {
        let failed = || AuditError::host("start a process for a control");
        let input = memfd_create("mayfly-page-cache", MFdFlags::MFD_CLOEXEC).map(File::from);
        let input = input.map_err(|errno| failed()(errno.into()))?;
        input.set_len(64 << 10).map_err(failed())?;
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: setgroups(2) only, which reads static numbers.
        unsafe {
            command.pre_exec(|| match libc::setgroups(GROUPS.len(), GROUPS.as_ptr()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        command.spawn().map(Self).map_err(failed())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Unconfined {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
