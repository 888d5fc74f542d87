//! Finds the QEMU program of this host and its version.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::vmm::VmmError;

const PROGRAM: &str = "qemu-system-x86_64";
/// It boots a PVH kernel itself; SeaBIOS would need the option ROMs that are switched off.
pub(super) const FIRMWARE: &str = "qboot.rom";

/// The QEMU program: `MAYFLY_QEMU` when set, else the first one on `PATH`.
///
/// # Errors
/// [`VmmError::NotInstalled`].
pub fn find() -> Result<PathBuf, VmmError> {
    let named = std::env::var_os("MAYFLY_QEMU");
    let candidates: Vec<PathBuf> = match &named {
        Some(path) => vec![PathBuf::from(path)],
        None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|d| d.join(PROGRAM)).collect(),
    };
    let missing = || VmmError::NotInstalled {
        program: named.as_deref().unwrap_or(OsStr::new(PROGRAM)).to_string_lossy().into_owned(),
    };
    candidates.into_iter().find(|c| c.is_file()).ok_or_else(missing)
}

/// The version a QEMU program reports, such as `10.0.2 (Debian 1:10.0.2+ds-2)`: device state is only portable between equal
/// builds as far as we promise.
///
/// # Errors
/// [`VmmError::UnknownVersion`] when it cannot be run or says something else.
pub fn version(program: &Path) -> Result<String, VmmError> {
    let unknown = |reason: String| VmmError::UnknownVersion { program: program.display().to_string(), reason };
    let output = Command::new(program).arg("--version").output().map_err(|e| unknown(e.to_string()))?;
    parse_version(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| {
        unknown(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no output").to_owned())
    })
}

/// Path of the firmware of our machine, in the first of the folders that `program` looks for it in.
///
/// # Errors
/// [`VmmError::NoFirmware`].
pub fn firmware(program: &Path) -> Result<PathBuf, VmmError> {
    let missing = |reason: String| VmmError::NoFirmware { program: program.display().to_string(), reason };
    let output = Command::new(program).args(["-L", "help"]).output().map_err(|e| missing(e.to_string()))?;
    let folders = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut candidates = folders.lines().map(|folder| Path::new(folder.trim()).join(FIRMWARE));
    candidates.find(|path| path.is_file()).ok_or_else(|| missing(folders.lines().collect::<Vec<_>>().join(", ")))
}

fn parse_version(output: &str) -> Option<String> {
    let version = output.lines().next()?.strip_prefix("QEMU emulator version ")?.trim();
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright").as_deref(),
            Some("7.2.22 (Debian 1:7.2+dfsg-7)")
        );
        assert_eq!(parse_version("busybox v1.36"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn a_program_that_is_no_qemu_is_said_so() {
        let error = version(Path::new("/bin/true")).unwrap_err();
        assert!(error.to_string().contains("/bin/true"), "{error}");
    }
}
