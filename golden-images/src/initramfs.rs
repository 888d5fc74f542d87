//! The initramfs: the static agent as `/init`, the boot modules, and the list that says in which
//! order to load them.
//!
//! Uncompressed `newc` cpio: decompressing in an emulated guest costs more than the host's page
//! cache. Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

use cpio::newc;

/// Directories of the initramfs; the agent mounts over the first four.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "newroot", "etc", "etc/mayfly", "modules"];
/// File type bits of `st_mode`.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// A kernel module to put into the initramfs.
pub(crate) struct Module {
    /// File name, e.g. `virtio_blk.ko`.
    pub name: String,
    /// Uncompressed bytes.
    pub bytes: Vec<u8>,
}

/// Writes an initramfs with `agent` as `/init` and `modules` listed in `/etc/mayfly/modules` in the
/// given order.
pub(crate) fn write(mut out: impl Write, agent: &[u8], modules: &[Module]) -> io::Result<()> {
    let mut inode = 0;
    let mut next = || {
        inode += 1;
        inode
    };
    for dir in DIRECTORIES {
        entry(&mut out, dir, next(), S_IFDIR | 0o755, &[])?;
    }
    for module in modules {
        entry(
            &mut out,
            &format!("modules/{}", module.name),
            next(),
            S_IFREG | 0o644,
            &module.bytes,
        )?;
    }
    let list: String = modules.iter().map(|m| format!("/modules/{}\n", m.name)).collect();
    entry(&mut out, "etc/mayfly/modules", next(), S_IFREG | 0o644, list.as_bytes())?;
    entry(&mut out, "init", next(), S_IFREG | 0o755, agent)?;
    newc::trailer(&mut out)?;
    out.flush()
}

fn entry(out: &mut impl Write, name: &str, inode: u32, mode: u32, data: &[u8]) -> io::Result<()> {
    let size =
        u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut writer = newc::Builder::new(name).ino(inode).mode(mode).nlink(1).write(out, size);
    writer.write_all(data)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_reads_back() {
        let modules = vec![
            Module { name: "a.ko".into(), bytes: b"first".to_vec() },
            Module { name: "b.ko".into(), bytes: vec![7; 4097] },
        ];
        let mut archive = Vec::new();
        write(&mut archive, b"agent", &modules).expect("in memory");
        let mut found = std::collections::BTreeMap::new();
        let mut rest = &archive[..];
        loop {
            let mut reader = newc::Reader::new(rest).expect("valid entry");
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut data = Vec::new();
            reader.read_to_end(&mut data).expect("in memory");
            rest = reader.finish().expect("valid padding");
            found.insert(name, (mode, data));
        }
        assert_eq!(found["init"], (0o100_755, b"agent".to_vec()));
        assert_eq!(found["modules/b.ko"].1.len(), 4097);
        assert_eq!(found["etc/mayfly/modules"].1, b"/modules/a.ko\n/modules/b.ko\n");
        assert_eq!(found["newroot"].0, 0o040_755);
    }
}
