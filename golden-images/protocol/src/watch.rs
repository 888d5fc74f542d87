//! Changes below a path of the guest.

use crate::{ByteString, FileKind, GuestError};
use serde::{Deserialize, Serialize};

/// Events of one frame at most; with the longest paths Linux has they stay below
/// [`crate::MAX_FRAME`].
pub const MAX_WATCH_BATCH: usize = 100;

/// Kind of change to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchKind {
    /// The path appeared, or was moved here from outside.
    Created,
    /// The path's content changed.
    Modified,
    /// The path was closed by one who had it open for writing: what was written is complete.
    Closed,
    /// The path's mode, owner, times, extended attributes or number of links changed.
    Attributes,
    /// The path is gone, or was moved outside. With an empty path: the watched path itself, and
    /// nothing follows.
    Removed,
    /// The path was moved here from [`WatchEvent::from`], both below the watched path.
    Renamed,
    /// Events were lost: look at everything again.
    Overflow,
}

/// Change below a watched path. A path that appears together with its directory may be told twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Kind of the change.
    pub kind: WatchKind,
    /// Path that changed, relative to the watched one; empty for the watched one itself.
    pub path: ByteString,
    /// The old path of a rename, relative to the watched one.
    pub from: Option<ByteString>,
    /// Type of the path, where it is known: a directory that is gone is known as one, anything else
    /// that is gone is not.
    pub entry: Option<FileKind>,
}

/// Engine to guest on a watch stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchInput {
    /// Asks for [`WatchOutput::Synced`] with this number, once everything that has happened by now
    /// was told.
    Sync(u64),
}

/// Guest to engine on a watch stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchOutput {
    /// Changes, 1 to [`MAX_WATCH_BATCH`].
    Events(Vec<WatchEvent>),
    /// Answer to [`WatchInput::Sync`].
    Synced(u64),
    /// The watched path is gone; nothing follows.
    Gone,
    /// The watch is lost; nothing follows.
    Failed(GuestError),
}

impl WatchEvent {
    /// Creates an event of a path whose type is not known.
    pub fn new(kind: WatchKind, path: impl Into<ByteString>) -> Self {
        Self { kind, path: path.into(), from: None, entry: None }
    }

    /// Returns whether its paths stay below the watched one: no absolute path, no `..`, no empty
    /// component, and an old path for renames alone.
    pub fn is_contained(&self) -> bool {
        let from = self.from.as_ref();
        from.is_some() == (self.kind == WatchKind::Renamed)
            && is_contained(&self.path)
            && from.is_none_or(|from| is_relative_path(from.as_bytes()))
    }
}

fn is_contained(path: &ByteString) -> bool {
    path.is_empty() || is_relative_path(path.as_bytes())
}

/// Returns whether these bytes are file names with one `/` between each two.
pub fn is_relative_path(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').all(is_file_name)
}

/// Returns whether these bytes can be the name of a directory entry other than `.` and `..`.
pub fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_FRAME, encode_frame};
    use proptest::prelude::*;

    fn event(kind: WatchKind, path: &str, from: Option<&str>) -> WatchEvent {
        WatchEvent { from: from.map(Into::into), ..WatchEvent::new(kind, path) }
    }

    #[test]
    fn only_paths_below_the_watched_one_are_contained() {
        for good in ["", "a", "a/b", "..a/b..", " "] {
            assert!(event(WatchKind::Created, good, None).is_contained(), "{good:?}");
        }
        for bad in ["/", "/a", "..", "a/..", "../a", "a//b", "a/", "./a", "nul\0"] {
            assert!(!event(WatchKind::Created, bad, None).is_contained(), "{bad:?}");
            assert!(!event(WatchKind::Renamed, "a", Some(bad)).is_contained(), "{bad:?}");
        }
        assert!(event(WatchKind::Renamed, "a", Some("b")).is_contained());
        assert!(!event(WatchKind::Renamed, "a", None).is_contained());
        assert!(!event(WatchKind::Renamed, "a", Some("")).is_contained());
        assert!(!event(WatchKind::Removed, "a", Some("b")).is_contained());
    }

    #[test]
    fn the_largest_batch_fits_a_frame() {
        let longest = "x".repeat(4096 + 256);
        let batch = vec![event(WatchKind::Renamed, &longest, Some(&longest)); MAX_WATCH_BATCH];
        assert!(encode_frame(&WatchOutput::Events(batch)).unwrap().len() <= MAX_FRAME);
    }

    proptest! {
        #[test]
        fn a_contained_path_joins_to_one_below(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..12)) {
            let event = WatchEvent::new(WatchKind::Created, path);
            if event.is_contained() {
                let joined = std::path::Path::new("/base").join(event.path.as_path());
                prop_assert!(joined.starts_with("/base"));
                prop_assert!(joined.components().all(|part| part != std::path::Component::ParentDir));
            }
        }
    }
}
