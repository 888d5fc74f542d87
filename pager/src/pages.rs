//! Sets and ranges of pages of an image.

use std::ops::Range;

use crate::uffd::PAGE;

/// A set of pages of the image; takes no memory while empty.
#[derive(Default)]
pub(crate) struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    pub fn insert(&mut self, range: Range<u64>, image: u64) {
        if self.words.is_empty() {
            self.words = vec![0; usize::try_from(image / PAGE / 64 + 1).unwrap_or(0)];
        }
        // By words of 64 pages: a guest may give back all of its memory at once.
        let (mut page, end) = (range.start / PAGE, range.end.div_ceil(PAGE));
        while page < end {
            let count = (64 - page % 64).min(end - page);
            let Some(word) = self.words.get_mut((page / 64) as usize) else { return };
            *word |= (u64::MAX >> (64 - count)) << (page % 64);
            page += count;
        }
    }

    pub fn contains(&self, offset: u64) -> bool {
        let page = offset / PAGE;
        self.words.get((page / 64) as usize).is_some_and(|word| word & (1 << (page % 64)) != 0)
    }
}

/// Grows `range` in steps of `unit` both ways inside `bounds` while `holds` for the unit added.
pub(crate) fn extend(
    mut range: Range<u64>,
    unit: u64,
    bounds: &Range<u64>,
    holds: impl Fn(u64) -> bool,
) -> Range<u64> {
    while range.end < bounds.end && holds(range.end) {
        range.end = (range.end + unit).min(bounds.end);
    }
    while range.start >= bounds.start + unit && holds(range.start - unit) {
        range.start -= unit;
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_only_where_they_may() {
        let bounds = 0..10 * PAGE;
        let grown =
            extend(4 * PAGE..5 * PAGE, PAGE, &bounds, |at| (2 * PAGE..7 * PAGE).contains(&at));
        assert_eq!(grown, 2 * PAGE..7 * PAGE);
        assert_eq!(extend(0..PAGE, PAGE, &bounds, |_| true), bounds);
        assert_eq!(
            extend(0..4 * PAGE, 4 * PAGE, &bounds, |_| true),
            bounds,
            "a short last unit stops at the end"
        );
    }

    #[test]
    fn pages_are_members_after_insertion_only() {
        let mut set = PageSet::default();
        assert!(!set.contains(0));
        set.insert(63 * PAGE..66 * PAGE, 100 * PAGE);
        let members: Vec<u64> = (0..100).filter(|p| set.contains(p * PAGE)).collect();
        assert_eq!(members, [63, 64, 65]);
        set.insert(99 * PAGE..10_000 * PAGE, 100 * PAGE);
        assert!(set.contains(99 * PAGE) && !set.contains(9_999 * PAGE));
        let mut all = PageSet::default();
        all.insert(0..200 * PAGE, 200 * PAGE);
        assert!((0..200).all(|page| all.contains(page * PAGE)));
    }
}
