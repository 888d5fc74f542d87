//! What a client is told of a path.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mayfly_guest::channel::{ByteString, FileKind, Metadata, Xattrs};
use serde::Serialize;

/// Where clients keep labels of a file, among its extended attributes.
pub(super) const LABELS: &str = "user.e2b.";

/// Description of a path.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryInfo {
    name: String,
    r#type: &'static str,
    path: String,
    /// A number, as text.
    size: String,
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    modified_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    is_symlink: bool,
}

impl EntryInfo {
    /// Of what is at a path: type and mode are those behind a last symbolic link.
    pub fn of(metadata: Metadata) -> Self {
        let is_symlink = metadata.kind == FileKind::Symlink;
        let followed = metadata.followed.as_ref().filter(|_| is_symlink);
        let kind = followed.map_or(metadata.kind, |followed| followed.kind);
        let mode = followed.map_or(metadata.mode, |followed| followed.mode);
        let target = || followed.map(|followed| &followed.path).or(metadata.target.as_ref());
        let path = text(&metadata.path);
        Self {
            name: path.rsplit('/').next().unwrap_or_default().to_owned(),
            r#type: match kind {
                FileKind::File => "FILE_TYPE_FILE",
                FileKind::Directory => "FILE_TYPE_DIRECTORY",
                // A link that leads nowhere, or is not followed.
                FileKind::Symlink => "FILE_TYPE_SYMLINK",
                FileKind::Other => "FILE_TYPE_UNSPECIFIED",
            },
            size: metadata.size.to_string(),
            mode: mode & 0o777,
            permissions: permissions(metadata.kind, metadata.mode),
            owner: metadata.owner.unwrap_or_else(|| metadata.uid.to_string()),
            group: metadata.group.unwrap_or_else(|| metadata.gid.to_string()),
            modified_time: time(metadata.mtime_ns),
            symlink_target: is_symlink.then(|| target().map(text)).flatten(),
            metadata: metadata.xattrs.as_ref().map(labels).unwrap_or_default(),
            is_symlink,
            path,
        }
    }
}

fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(bytes.as_bytes()).into_owned()
}

fn labels(xattrs: &Xattrs) -> BTreeMap<String, String> {
    let labels = xattrs.attributes.iter().filter_map(|xattr| {
        let name = xattr.name.as_bytes().strip_prefix(LABELS.as_bytes())?;
        Some((String::from_utf8(name.to_vec()).ok()?, text(&xattr.value)))
    });
    labels.collect()
}

/// As Go writes a mode: what it is and its special bits as letters, or `-`, and then the rights.
fn permissions(kind: FileKind, mode: u32) -> String {
    let mut letters = String::new();
    let kind = match kind {
        FileKind::File => None,
        FileKind::Directory => Some('d'),
        FileKind::Symlink => Some('L'),
        FileKind::Other => Some('?'),
    };
    letters.extend(kind);
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')] {
        letters.extend((mode & bit != 0).then_some(letter));
    }
    if letters.is_empty() {
        letters.push('-');
    }
    let rights = "rwxrwxrwx".chars().enumerate();
    letters.extend(rights.map(|(at, letter)| if mode & (0o400 >> at) == 0 { '-' } else { letter }));
    letters
}

/// A guest may say any time; JSON has those from 1970 on.
fn time(nanos: i64) -> String {
    let since = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    humantime::format_rfc3339_nanos(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Bytes that something takes in memory, by what it takes in JSON; its strings, and the room around
/// each.
pub(super) fn held_bytes(item: &impl Serialize) -> usize {
    serde_json::to_vec(item).map_or(0, |json| 512 + 4 * json.len())
}

#[cfg(test)]
mod tests {
    use mayfly_guest::channel::{Followed, Xattr};

    use super::*;

    fn metadata(kind: FileKind, mode: u32) -> Metadata {
        Metadata {
            path: "/home/user/x".into(),
            kind,
            size: 5,
            mode,
            uid: 1000,
            gid: 1000,
            owner: Some("user".into()),
            group: None,
            mtime_ns: 1_767_322_445_000_000_001,
            target: None,
            followed: None,
            xattrs: None,
        }
    }

    #[test]
    fn a_mode_is_written_as_go_does() {
        for (kind, mode, text) in [
            (FileKind::File, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o755, "drwxr-xr-x"),
            (FileKind::Directory, 0o1777, "dtrwxrwxrwx"),
            (FileKind::File, 0o4755, "urwxr-xr-x"),
            (FileKind::Symlink, 0o777, "Lrwxrwxrwx"),
        ] {
            assert_eq!(permissions(kind, mode), text);
        }
    }

    #[test]
    fn a_link_is_told_by_what_it_leads_to() {
        let followed =
            Followed { path: "/srv".into(), kind: FileKind::Directory, size: 1, mode: 0o2750 };
        let link = Metadata {
            target: Some("../../srv".into()),
            followed: Some(followed),
            ..metadata(FileKind::Symlink, 0o777)
        };
        let info = EntryInfo::of(link);
        assert_eq!((info.r#type, info.mode, info.is_symlink), ("FILE_TYPE_DIRECTORY", 0o750, true));
        assert_eq!(info.symlink_target.as_deref(), Some("/srv"));
        assert_eq!(info.permissions, "Lrwxrwxrwx");
        let broken =
            Metadata { target: Some("nowhere".into()), ..metadata(FileKind::Symlink, 0o777) };
        let info = EntryInfo::of(broken);
        assert_eq!(
            (info.r#type, info.symlink_target.as_deref()),
            ("FILE_TYPE_SYMLINK", Some("nowhere"))
        );
    }

    #[test]
    fn labels_and_times_are_told_and_no_time_of_a_guest_does_harm() {
        let xattr = |name: &str, value: &str| Xattr { name: name.into(), value: value.into() };
        let attributes = vec![xattr("user.e2b.k", "v"), xattr("user.other", "x")];
        let file = Metadata {
            xattrs: Some(Xattrs { attributes, more: false }),
            ..metadata(FileKind::File, 0o600)
        };
        let info = EntryInfo::of(file);
        assert_eq!(info.metadata, [("k".to_owned(), "v".to_owned())].into());
        assert_eq!((info.name.as_str(), info.group.as_str()), ("x", "1000"));
        assert_eq!(info.modified_time, "2026-01-02T02:54:05.000000001Z");
        assert_eq!(time(i64::MIN), "1970-01-01T00:00:00.000000000Z");
        assert!(time(i64::MAX).starts_with("2262-"));
    }
}
