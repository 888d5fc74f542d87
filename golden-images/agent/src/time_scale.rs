//! Bounds on steps of the guest, for the speed of its host.

use mayfly_protocol::{TIME_SCALE_PARAMETER, parse_time_scale};
use std::sync::OnceLock;
use std::time::Duration;

/// Scales `limit` by the factor that this guest was booted with.
pub fn scaled(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let read = || factor(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    limit * *FACTOR.get_or_init(read)
}

fn factor(cmdline: &str) -> u32 {
    let value = |parameter: &str| {
        parse_time_scale(parameter.strip_prefix(TIME_SCALE_PARAMETER)?.strip_prefix('=')?)
    };
    cmdline.split_whitespace().find_map(value).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_command_line_has_the_factor() {
        assert_eq!(factor("console=ttyS0 mayfly.time_scale=8 quiet\n"), 8);
        for none in
            ["", "quiet", "mayfly.time_scale", "mayfly.time_scale=0", "mayfly.time_scales=3"]
        {
            assert_eq!(factor(none), 1, "{none}");
        }
    }
}
