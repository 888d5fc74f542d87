//! Root directory to disk image: a sparse raw file with an ext4 file system, made without mounting
//! anything.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::error::{DiskFullError, Error, IoContext as _};
use crate::key::BuildKey;
use crate::mmdebstrap::SOURCE_DATE_EPOCH;
use crate::progress::{Progress, Step};
use crate::sandbox::{Confinement, Sandbox};
use crate::userns;

/// Features of the file system (ext4(5)), from `none` up so that no default of the host's mke2fs
/// gets in.
///
/// No journal and no metadata checksums: a session's disk is thrown away, so both would only cost
/// writes and, under software emulation, checksum code. No lazily initialized inode tables either:
/// a kernel thread would write them into every session's overlay.
pub(crate) const FEATURES: &str = "none,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_index,dir_nlink,extra_isize,ext_attr";

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// mke2fs's default: one inode for so many bytes of disk.
const BYTES_PER_INODE: u64 = 16384;
/// Inodes for files that are made later, in the guest.
const SPARE_INODES: u64 = 65_536;
/// Free space that a root disk has at least, for logs and container layers.
const SPARE_BYTES: u64 = 64 << 20;

/// What a directory tree holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Usage {
    /// Bytes in whole blocks, hard links counted once.
    bytes: u64,
    inodes: u64,
}

fn usage(root: &Path) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.map_err(std::io::Error::from).context("read", root)?;
        let meta =
            entry.metadata().map_err(std::io::Error::from).context("look at", entry.path())?;
        if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
            continue;
        }
        usage.inodes += 1;
        // A recipe may make files of any length, with nothing in them.
        let bytes = match () {
            () if meta.is_dir() => BLOCK,
            () if meta.is_file() => meta.len().div_ceil(BLOCK).saturating_mul(BLOCK),
            () => 0,
        };
        usage.bytes = usage.bytes.saturating_add(bytes);
    }
    Ok(usage)
}

/// Writes the tree at `root` to a new disk image of `disk_mib` at `image`. The tree is one of the
/// build's user namespace, in which its owners and its files' capabilities are what they are in the
/// image; it is read there, too. `stage` is an empty folder.
pub(crate) fn write(
    root: &Path,
    stage: &Path,
    image: &Path,
    disk_mib: u64,
    key: BuildKey,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let size = disk_mib << 20;
    let usage = usage(root)?;
    let inodes = (size / BYTES_PER_INODE).max(usage.inodes * 2 + SPARE_INODES);
    // Extent trees, bitmaps and directories larger than a block take about one part in a hundred.
    let need = usage.bytes + usage.bytes / 100 + inodes * INODE + SPARE_BYTES;
    if need > size {
        return Err(Error::DiskTooSmall { need_mib: need.div_ceil(1 << 20), disk_mib });
    }
    let free_mib = crate::error::free_mib(image).unwrap_or(u64::MAX);
    if free_mib < usage.bytes >> 20 {
        return Err(DiskFullError::at(image, usage.bytes.div_ceil(1 << 20)).into());
    }
    File::create_new(image).and_then(|f| f.set_len(size)).context("create", image)?;
    userns::give(image)?;
    progress.started(Step::Disk, Some(usage.bytes));
    let uuid = uuid(key);
    let finished = Sandbox::confined("mke2fs", Confinement::new(stage, &[root, image])?)
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "mayfly", "-O",
            FEATURES,
        ])
        .args([
            "-N",
            &inodes.to_string(),
            "-U",
            &uuid,
            "-E",
            &format!("root_owner=0:0,nodiscard,hash_seed={uuid}"),
        ])
        .args([Path::new("-d"), root, image])
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("MKE2FS_CONFIG", "/dev/null")
        .run(cancel, |line| {
            if line.is_none() {
                let written = std::fs::metadata(image).map_or(0, |m| m.blocks() * 512);
                progress.advanced(Step::Disk, written.min(usage.bytes), Some(usage.bytes), "");
            }
        })?;
    if !finished.status.success() {
        if finished.tail.iter().any(|l| l.contains("No space left on device")) {
            return Err(DiskFullError::at(image, usage.bytes.div_ceil(1 << 20)).into());
        }
        if finished.tail.iter().any(|l| l.contains("Could not allocate")) {
            return Err(Error::DiskTooSmall {
                need_mib: (need + SPARE_BYTES).div_ceil(1 << 20),
                disk_mib,
            });
        }
        return Err(Error::Tool {
            program: "mke2fs",
            status: finished.status.to_string(),
            detail: finished.detail(),
        });
    }
    userns::take_back(image)?;
    progress.finished(Step::Disk);
    Ok(())
}

/// A file system UUID out of the build key, so that equal inputs make equal images (RFC 9562,
/// version 8: custom).
fn uuid(key: BuildKey) -> String {
    let mut b = [0; 16];
    b.copy_from_slice(&key.as_bytes()[..16]);
    b[6] = (b[6] & 0x0f) | 0x80;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::NoProgress;

    fn key() -> BuildKey {
        BuildKey::from_hex(&blake3::hash(b"disk").to_hex()).expect("hex")
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(dir.path().join("etc")).expect("made");
        std::fs::write(dir.path().join("etc/hostname"), "mayfly\n").expect("written");
        std::fs::write(dir.path().join("big"), vec![1; 5 << 20]).expect("written");
        std::fs::hard_link(dir.path().join("big"), dir.path().join("same")).expect("linked");
        std::os::unix::fs::symlink("etc/hostname", dir.path().join("link")).expect("linked");
        dir
    }

    #[test]
    fn hard_links_count_once() {
        let dir = tree();
        assert_eq!(
            usage(dir.path()).expect("readable"),
            Usage { bytes: (5 << 20) + 3 * BLOCK, inodes: 5 }
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn the_image_is_sparse_clean_and_has_the_content() {
        let (dir, out) = (tree(), tempfile::tempdir().expect("temp dir"));
        let (image, stage) = (out.path().join("disk.img"), out.path().join("stage"));
        std::fs::create_dir(&stage).expect("made");
        userns::give(dir.path()).expect("given");
        write(dir.path(), &stage, &image, 512, key(), &NoProgress, &AtomicBool::new(false))
            .expect("written");
        let meta = std::fs::metadata(&image).expect("there");
        assert_eq!(meta.len(), 512 << 20);
        assert!(meta.blocks() * 512 < 32 << 20, "{} bytes allocated", meta.blocks() * 512);
        let check =
            Command::new("/usr/sbin/e2fsck").args(["-n", "-f"]).arg(&image).output().expect("runs");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let cat = |file: &str| {
            let output = Command::new("/usr/sbin/debugfs")
                .args(["-R", &format!("cat {file}")])
                .arg(&image)
                .output();
            output.expect("runs").stdout
        };
        assert_eq!(cat("/etc/hostname"), b"mayfly\n");
        assert_eq!(cat("/big").len(), 5 << 20);
    }

    #[test]
    fn a_disk_that_is_too_small_says_how_much_is_needed() {
        let dir = tree();
        let error = write(
            dir.path(),
            dir.path(),
            &dir.path().join("x"),
            16,
            key(),
            &NoProgress,
            &AtomicBool::new(false),
        );
        assert!(
            matches!(error, Err(Error::DiskTooSmall { need_mib: 80..=200, disk_mib: 16 })),
            "{error:?}"
        );
    }
}
