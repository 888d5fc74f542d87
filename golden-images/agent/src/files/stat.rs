//! What a path is.

use super::names::Names;
use super::{Place, kind_of, xattrs};
use crate::wire::reply;
use mayfly_protocol::{ByteString, Followed, Metadata, Reply, StatOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Describes a path, as lstat(2) does.
pub fn stat(place: &Place, options: StatOptions) -> Reply<Metadata> {
    describe(place.path.clone(), options, &Names::read())
}

/// Describes an absolute path.
pub fn describe(path: ByteString, options: StatOptions, names: &Names) -> Reply<Metadata> {
    let found = reply(format_args!("stat {path}"), std::fs::symlink_metadata(path.as_path()))?;
    let link = found.file_type().is_symlink();
    let target = match link {
        true => Some(
            reply(format_args!("read link {path}"), std::fs::read_link(path.as_path()))?.into(),
        ),
        false => None,
    };
    Ok(Metadata {
        target,
        owner: names.user(found.uid()),
        group: names.group(found.gid()),
        followed: if options.follow && link { follow(path.as_path()) } else { None },
        xattrs: options.xattrs.then(|| xattrs::read(path.as_path())).transpose()?,
        ..metadata_of(path, &found)
    })
}

/// What inode(7) has, without names.
pub fn metadata_of(path: ByteString, metadata: &std::fs::Metadata) -> Metadata {
    Metadata {
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        ..Metadata::new(path, kind_of(metadata.file_type()))
    }
}

/// What a link leads to; nothing when it leads nowhere, or the user may not look.
fn follow(link: &Path) -> Option<Followed> {
    let path = link.canonicalize().ok()?;
    let metadata = std::fs::symlink_metadata(&path).ok()?;
    Some(Followed {
        kind: kind_of(metadata.file_type()),
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        path: path.into(),
    })
}
