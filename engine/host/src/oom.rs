//! Protection of this process from the kernel's OOM killer.

use std::io;

/// The file of this process; see proc_pid_oom_score_adj(5).
const FILE: &str = "/proc/self/oom_score_adj";
/// What the shipped units set, too: killed last, but not never.
const PROTECTED: &str = "-900";

/// Has the kernel kill this process after all others when memory is short: with the daemon or the
/// pager every session ends. Somebody's own choice (systemd.exec(5), `OOMScoreAdjust=`) stays.
///
/// Children inherit it. The programs that `mayfly-vmm` starts reset it before they begin.
///
/// # Errors
/// The kernel's; without CAP_SYS_RESOURCE it refuses.
pub fn protect() -> io::Result<()> {
    let now = std::fs::read_to_string(FILE)?;
    if now.trim() != "0" {
        return Ok(());
    }
    std::fs::write(FILE, PROTECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn this_process_is_protected_unless_somebody_has_chosen() {
        let before = std::fs::read_to_string(FILE).unwrap();
        let protected = |own: &str| {
            std::fs::write(FILE, own)?;
            protect()?;
            std::fs::read_to_string(FILE)
        };
        let outcome = [protected("0"), protected("-500"), protected("300")];
        let _ = std::fs::write(FILE, before);
        match outcome {
            [Ok(usual), Ok(less), Ok(more)] => {
                assert_eq!([usual.trim(), less.trim(), more.trim()], ["-900", "-500", "300"]);
            }
            refused => mayfly_skip::skip(format_args!(
                "this root may not set its OOM score (CAP_SYS_RESOURCE): {refused:?}"
            )),
        }
    }
}
