//! Label values: few, short and plain, whatever callers pass.

use std::collections::HashSet;

use parking_lot::RwLock;

/// Longest label value in bytes.
const LONGEST: usize = 64;
/// Stands for every value beyond the bound.
const OTHER: &str = "other";

/// The values one label may take. Each new value is a new time series that lives as long as the
/// process, so their number is bounded: what comes after the bound is counted as `other`.
#[derive(Debug)]
pub(super) struct Values {
    most: usize,
    seen: RwLock<HashSet<String>>,
}

impl Values {
    pub(super) fn new(most: usize) -> Self {
        Self { most, seen: RwLock::default() }
    }

    /// `value` as a label value.
    pub(super) fn admit(&self, value: &str) -> String {
        let value = plain(value);
        if self.seen.read().contains(&value) {
            return value;
        }
        let mut seen = self.seen.write();
        if seen.len() < self.most {
            seen.insert(value.clone());
        }
        if seen.contains(&value) { value } else { OTHER.to_owned() }
    }
}

/// Letters, digits, `_`, `-` and `.`; anything else becomes `_`.
fn plain(value: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    value.chars().take(LONGEST).map(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_plain_and_bounded_in_length_and_number() {
        let values = Values::new(2);
        assert_eq!(values.admit("idle timeout\n\"x\""), "idle_timeout__x_");
        assert_eq!(values.admit(&"é".repeat(500)), "_".repeat(LONGEST));
        assert_eq!(values.admit("third"), OTHER);
        assert_eq!(values.admit("idle timeout\n\"x\""), "idle_timeout__x_", "a known value stays");
    }
}
