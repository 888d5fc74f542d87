//! The factor by which bounds on steps are multiplied on a slow host, as host and guest understand
//! it.

/// Kernel parameter through which a guest is told: `mayfly.time_scale=8`. Without it the factor is
/// 1.
pub const TIME_SCALE_PARAMETER: &str = "mayfly.time_scale";
/// Largest factor by which limits are scaled.
pub const MAX_TIME_SCALE: u32 = 100;

/// Reads a factor: a whole number from 1 to [`MAX_TIME_SCALE`]. `None` for anything else.
pub fn parse_time_scale(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|factor| (1..=MAX_TIME_SCALE).contains(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_from_1_to_100_are_factors() {
        let read = |text| parse_time_scale(text);
        assert_eq!([read("1"), read(" 8\n"), read("100")], [Some(1), Some(8), Some(100)]);
        for bad in ["", "0", "101", "-1", "1.5", "fast", "99999999999"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
