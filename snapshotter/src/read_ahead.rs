//! Having the kernel read records of chunks before they are asked for.

use std::ops::Range;

use crate::StreamReader;

/// Two records that are no farther apart are read in one piece: what is read in vain costs less
/// than another request.
const GAP: u64 = 32 << 10;

/// The kernel is asked for so much at once. It cuts a longer request to what the disk takes in one,
/// and forgets the rest; and disks that are billed by requests count one for so much at least.
const REQUEST: u64 = 256 << 10;

impl StreamReader {
    /// Asks the kernel to read the chunks `indexes` into its page cache, in few large pieces, and
    /// does not wait for it. A chunk is still read and verified by
    /// [`read_chunk`](Self::read_chunk), which then finds its bytes in memory. Without effect for
    /// zeros, for chunks that are in memory, and where the file system does not take the advice.
    ///
    /// The caller bounds how much memory that takes: a chunk is at most
    /// [`chunk_size`](Self::chunk_size) and a few bytes.
    pub fn read_ahead(&self, indexes: &[u32]) {
        let records = indexes.iter().filter_map(|index| self.record(*index as usize)).collect();
        for (place, piece) in pieces(records) {
            let Some(pack) = self.pack(place) else { continue };
            let mut start = piece.start;
            while start < piece.end {
                let len = REQUEST.min(piece.end - start);
                pack.read_ahead(start, len);
                start += len;
            }
        }
    }
}

/// Joins the records, each a place of a pack and a range of it, to pieces: sorted, none closer to
/// another than [`GAP`].
fn pieces(mut records: Vec<(u32, Range<u64>)>) -> Vec<(u32, Range<u64>)> {
    records.sort_unstable_by_key(|(pack, range)| (*pack, range.start));
    let mut pieces: Vec<(u32, Range<u64>)> = Vec::new();
    for (pack, range) in records {
        match pieces.last_mut() {
            Some((last, piece))
                if *last == pack && range.start <= piece.end.saturating_add(GAP) =>
            {
                piece.end = piece.end.max(range.end);
            }
            _ => pieces.push((pack, range)),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_in_a_row_in_any_order_are_one_piece_and_a_gap_parts_them() {
        let records = vec![(0, 30..40), (0, 10..20), (1, 40..50), (0, 20..30)];
        assert_eq!(pieces(records), [(0, 10..40), (1, 40..50)]);
        let records = vec![(0, 0..10), (0, 10 + GAP..11 + GAP), (0, 12 + 2 * GAP..13 + 2 * GAP)];
        assert_eq!(pieces(records), [(0, 0..11 + GAP), (0, 12 + 2 * GAP..13 + 2 * GAP)]);
        assert_eq!(pieces(vec![(0, u64::MAX - 5..u64::MAX)]).len(), 1);
    }

    proptest! {
        #[test]
        fn pieces_cover_each_record_once_and_not_much_more(
            starts in prop::collection::vec((0..3u32, 0..4_000_000u64, 1..70_000u64), 0..60),
        ) {
            let records: Vec<_> =
                starts.into_iter().map(|(pack, start, len)| (pack, start..start + len)).collect();
            let pieces = pieces(records.clone());
            for (pack, range) in &records {
                let covering = pieces
                    .iter()
                    .filter(|(p, r)| p == pack && r.start <= range.start && range.end <= r.end);
                prop_assert_eq!(covering.count(), 1);
            }
            for pair in pieces.windows(2) {
                let ((before, left), (after, right)) = (&pair[0], &pair[1]);
                prop_assert!(before < after || left.end + GAP < right.start);
            }
            let wanted: u64 = records.iter().map(|(_, r)| r.end - r.start + GAP).sum();
            prop_assert!(pieces.iter().map(|(_, r)| r.end - r.start).sum::<u64>() <= wanted);
        }
    }
}
