//! Frequency of this host's time stamp counter, which guests under software emulation read
//! directly: a golden made there counts seconds rightly only on hosts of the same frequency.

use std::sync::OnceLock;

use mayfly_golden_images::cmdline::host_tsc_khz;

/// Returns the frequency of the time stamp counter in kHz, measured once per process; 0 when it has
/// none.
pub fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| host_tsc_khz().unwrap_or(0))
}

/// Returns whether two frequencies are the same within the error of their measurement (0.1 %).
pub fn same(a: u64, b: u64) -> bool {
    a.abs_diff(b) <= a.max(b) / 1000
}

#[cfg(test)]
mod tests {
    #[test]
    fn frequencies_are_compared_with_tolerance() {
        assert!(super::same(2_300_000, 2_300_900));
        assert!(!super::same(2_300_000, 2_400_000));
    }
}
