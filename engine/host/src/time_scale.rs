//! The one setting for slow hosts: a factor for every bound on a step of the machinery.
//!
//! A bound such as "QEMU answers within 10 s" is there to end what hangs. It is generous on a usual
//! host, and too short on one that is many times slower: an emulated one, or one that is
//! overcommitted. [`scaled`] multiplies it there. What somebody chose as a policy (how long a
//! session may live or a request may wait) and the bounds of network protocols stay as they are.

use std::sync::OnceLock;
use std::time::Duration;

use mayfly_protocol::{MAX_TIME_SCALE, parse_time_scale};

/// The variable that holds the factor. A pager that is started by an engine inherits it, and a
/// golden image that is built with it has it in its guest.
pub const VARIABLE: &str = "MAYFLY_TIME_SCALE";

/// The variable holds something else than a factor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE} is `{value}`: it takes a whole number from 1 to {MAX_TIME_SCALE}, by which bounds on steps are multiplied"
)]
pub struct BadTimeScale {
    value: String,
}

/// Reads the factor from the environment; 1 when there is none.
///
/// # Errors
/// [`BadTimeScale`].
pub fn from_env() -> Result<u32, BadTimeScale> {
    std::env::var_os(VARIABLE).map_or(Ok(1), |value| parse(&value.to_string_lossy()))
}

fn parse(value: &str) -> Result<u32, BadTimeScale> {
    parse_time_scale(value).ok_or_else(|| BadTimeScale { value: value.to_owned() })
}

/// Returns the factor that this process goes by. One that [`from_env`] refuses counts as 1; engines
/// do not open with it.
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| from_env().unwrap_or(1))
}

/// Scales `limit` by the factor of this process.
pub fn scaled(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_factor_is_refused_with_the_variable_and_what_it_takes() {
        assert_eq!(parse("8"), Ok(8));
        for bad in ["", "0", "101", "2.5", "slow"] {
            let error = parse(bad).unwrap_err().to_string();
            for part in ["MAYFLY_TIME_SCALE", &format!("`{bad}`"), "from 1 to 100"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
