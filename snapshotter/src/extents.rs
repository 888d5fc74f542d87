//! The parts of a sparse file that hold data, found with `SEEK_DATA`/`SEEK_HOLE` (lseek(2)).

use crate::CHUNK_SIZE;
use crate::chunk::chunk_count;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::ops::Range;

/// Byte ranges of `file` below `len` that may hold non-zero data, ascending and disjoint.
///
/// A file system without hole support reports everything as data (lseek(2)). Moves the file's
/// offset.
pub(crate) fn data_extents(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match lseek(file, offset(at)?, Whence::SeekData) {
            Ok(start) => start.cast_unsigned(),
            // No data behind `at`.
            Err(Errno::ENXIO) => break,
            // Not a file that knows holes.
            Err(Errno::EINVAL) => at,
            Err(e) => return Err(e.into()),
        };
        if start >= len {
            break;
        }
        let end = match lseek(file, offset(start)?, Whence::SeekHole) {
            Ok(end) => end.cast_unsigned().min(len),
            Err(Errno::EINVAL) => len,
            Err(e) => return Err(e.into()),
        };
        // A file that shrinks meanwhile could give an empty extent; never loop on it.
        if end <= start {
            break;
        }
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

fn offset(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// Rounds extents to whole chunks, merges what touches, and cuts the result into runs of at most
/// `max` chunk indexes.
pub(crate) fn chunk_runs(extents: &[Range<u64>], len: u64, max: u64) -> Vec<Range<u64>> {
    let size = CHUNK_SIZE as u64;
    let step = usize::try_from(max).unwrap_or(usize::MAX);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        let run = extent.start / size..extent.end.div_ceil(size).min(chunk_count(len));
        match merged.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push(run),
        }
    }
    merged
        .into_iter()
        .flat_map(|run| {
            run.clone()
                .step_by(step)
                .map(move |start| start..run.end.min(start.saturating_add(max)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_skipped() {
        let file = tempfile::tempfile().unwrap();
        let len = 64 << 20;
        file.set_len(len).unwrap();
        assert_eq!(data_extents(&file, len).unwrap(), []);
        file.write_all_at(b"x", 10 << 20).unwrap();
        file.write_all_at(b"y", len - 1).unwrap();
        let extents = data_extents(&file, len).unwrap();
        let covers = |at: u64| extents.iter().any(|e| e.contains(&at));
        assert!(covers(10 << 20) && covers(len - 1));
        assert!(!covers(30 << 20), "{extents:?}");
    }

    #[test]
    fn runs_are_whole_merged_and_bounded() {
        let size = CHUNK_SIZE as u64;
        let len = 10 * size + 5;
        let extents = [1..2, size - 1..size + 1, 4 * size..9 * size, 10 * size + 4..len];
        assert_eq!(chunk_runs(&extents, len, 3), [0..2, 4..7, 7..9, 10..11]);
        assert_eq!(chunk_runs(&extents, len, u64::MAX), [0..2, 4..9, 10..11]);
    }
}
