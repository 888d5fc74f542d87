//! The search for holes.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::map::{BLOCK, Extent, MAX_EXTENTS, Map};

/// Extents that are looked for at most; what follows them is taken for data.
const MOST_FOUND: usize = 1 << 20;

impl Map {
    /// Finds the data in the first `size` bytes of a regular file (SEEK_DATA in lseek(2)); `None`
    /// when there are no holes, or its file system does not tell of them. The file's position is 0
    /// afterwards.
    ///
    /// Holes smaller than others are taken for data where there would be more than
    /// [`MAX_EXTENTS`] extents.
    ///
    /// # Errors
    /// When the file cannot be sought in.
    pub fn of(file: &File, size: u64) -> io::Result<Option<Self>> {
        let found = find(file, size);
        seek(file, SeekFrom::Start(0))?;
        let Some(extents) = found? else { return Ok(None) };
        let map = Self::new(fewer(extents, MAX_EXTENTS), size);
        Ok(Some(map).filter(|map| map.data() < size))
    }
}

fn find(file: &File, size: u64) -> io::Result<Option<Vec<Extent>>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // There is no more.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        at = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) if extents.len() < MOST_FOUND => end.min(size),
            // The file has become shorter, or the rest is as it is.
            Ok(_) | Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        let start = start - start % BLOCK;
        let end = at.next_multiple_of(BLOCK).min(size);
        match extents.last_mut() {
            Some(last) if last.end() >= start => last.length = end - last.offset,
            _ => extents.push(Extent { offset: start, length: end - start }),
        }
    }
    Ok(Some(extents))
}

/// At most `most` extents, with the largest holes between them.
fn fewer(extents: Vec<Extent>, most: usize) -> Vec<Extent> {
    if extents.len() <= most {
        return extents;
    }
    let gap = |pair: &[Extent]| pair[1].offset - pair[0].end();
    let mut gaps: Vec<u64> = extents.windows(2).map(gap).collect();
    let kept = most - 1;
    let (larger, least, _) = gaps.select_nth_unstable_by(kept - 1, |a, b| b.cmp(a));
    let least = *least;
    let mut of_least = kept - larger.iter().filter(|gap| **gap > least).count();
    let mut fewer: Vec<Extent> = Vec::with_capacity(most);
    for extent in extents {
        let Some(last) = fewer.last_mut() else {
            fewer.push(extent);
            continue;
        };
        let gap = extent.offset - last.end();
        let apart = gap > least || (gap == least && of_least > 0);
        if apart {
            of_least -= usize::from(gap == least);
            fewer.push(extent);
        } else {
            last.length = extent.end() - last.offset;
        }
    }
    fewer
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_found_and_the_data_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 100_000], 500_000_000).unwrap();
        file.write_all_at(b"end", (1 << 30) - 3).unwrap();
        let map = Map::of(&file, 1 << 30).unwrap().expect("a file system that knows of holes");
        assert!(map.data() < 1 << 20, "{} bytes", map.data());
        assert_eq!(file.stream_position().unwrap(), 0);
        let mut content = Vec::new();
        map.content(&file).read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, map.data());
        let mut at = 0;
        for extent in map.extents() {
            let mut wanted = vec![0; usize::try_from(extent.length).unwrap()];
            file.read_exact_at(&mut wanted, extent.offset).unwrap();
            assert!(content[at..].starts_with(&wanted));
            at += wanted.len();
        }
        // All of the data, the rest being zeros.
        assert_eq!(content.iter().filter(|byte| **byte == 7).count(), 100_000);
        // What goes meanwhile is zeros.
        file.set_len(10).unwrap();
        content.clear();
        map.content(&file).read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, map.data());

        let mut dense = tempfile::tempfile().unwrap();
        dense.write_all(&[1; 10_000]).unwrap();
        assert_eq!(Map::of(&dense, 10_000).unwrap(), None);
        assert_eq!(Map::of(&tempfile::tempfile().unwrap(), 0).unwrap(), None);
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(1 << 20).unwrap();
        assert_eq!(Map::of(&hole, 1 << 20).unwrap(), Some(Map::new(Vec::new(), 1 << 20)));
    }

    #[test]
    fn the_smallest_holes_go_first() {
        let at = |offset, length| Extent { offset, length };
        let extents = vec![at(0, 10), at(20, 10), at(31, 9), at(60, 10), at(80, 5)];
        assert_eq!(fewer(extents.clone(), 5), extents);
        assert_eq!(fewer(extents.clone(), 4), [at(0, 10), at(20, 20), at(60, 10), at(80, 5)]);
        assert_eq!(fewer(extents.clone(), 3), [at(0, 10), at(20, 20), at(60, 25)].map(|e| e));
        assert_eq!(fewer(extents, 2), [at(0, 40), at(60, 25)]);
    }
}
