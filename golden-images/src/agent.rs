//! Checks that the guest agent can run as the first process of an initramfs.

use std::path::Path;

use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

use crate::error::{Error, IoContext as _};

/// Reads the agent binary and checks that it is a static x86-64 executable.
///
/// # Errors
/// [`Error::AgentMissing`], [`Error::AgentUnusable`] with the reason, or [`Error::Io`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if !path.is_file() {
        return Err(Error::AgentMissing { path: path.to_owned() });
    }
    let bytes = std::fs::read(path).context("read", path)?;
    match unusable(&bytes) {
        None => Ok(bytes),
        Some(reason) => Err(Error::AgentUnusable { path: path.to_owned(), reason }),
    }
}

/// Why `bytes` cannot be the guest's first process; `None` when it can. (ELF specification, program
/// header types.)
fn unusable(bytes: &[u8]) -> Option<String> {
    let header = match FileHeader64::<Endianness>::parse(bytes) {
        Ok(header) => header,
        Err(error) => return Some(format!("it is no 64-bit ELF file ({error})")),
    };
    let endian = match header.endian() {
        Ok(endian) => endian,
        Err(error) => return Some(error.to_string()),
    };
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Some("it is not built for x86-64".into());
    }
    match header.program_headers(endian, bytes) {
        Err(error) => Some(format!("its program headers are damaged ({error})")),
        Ok(headers) if headers.iter().any(|h| h.p_type(endian) == PT_INTERP) => {
            Some("it is dynamically linked (it has a PT_INTERP header) and the initramfs has no libraries".into())
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_binary_is_refused_with_the_build_command() {
        let error = read(Path::new("/bin/sh")).expect_err("the host's shell is dynamic");
        let text = error.to_string();
        assert!(text.contains("dynamically linked") && text.contains("crt-static"), "{text}");
    }

    #[test]
    fn a_missing_or_garbage_binary_is_refused() {
        assert!(matches!(read(Path::new("/nonexistent/agent")), Err(Error::AgentMissing { .. })));
        assert!(unusable(b"#!/bin/sh\n").is_some());
        assert!(unusable(b"").is_some());
    }

    #[test]
    fn a_truncated_binary_never_panics() {
        let bytes = std::fs::read("/bin/sh").expect("the host has a shell");
        for len in (0..bytes.len().min(4096)).step_by(7) {
            let _ = unusable(&bytes[..len]);
        }
    }
}
