//! What of the host weakens the isolation of sessions, though they run: sharing of memory and
//! processors, unmitigated processors, and where memory may end up on a disk.
//!
//! See [Firecracker's production host setup][guide], whose demands on a host these are.
//!
//! [guide]: https://github.com/firecracker-microvm/firecracker/blob/main/docs/prod-host-setup.md

use std::path::Path;

use mayfly_host::core_scheduling::{self, CoreScheduling};
use mayfly_vmm::hardening;

use super::{Check, Outcome};

pub(super) fn checks() -> Vec<Check> {
    let sys = Path::new("/sys");
    let (own_cores, mut checks) = match hardening::from_env() {
        Ok(hardening) => (hardening.own_cores, Vec::new()),
        Err(error) => {
            let advice = "set it to such a word, or unset it";
            (true, vec![Check::missing("hardening", error.to_string(), advice)])
        }
    };
    let cores = if own_cores { Some(core_scheduling::look()) } else { None };
    checks.extend([
        page_merging(sys),
        simultaneous_threads(sys, cores),
        scheduling(cores),
        vulnerabilities(sys),
        swap(sys, &std::fs::read_to_string("/proc/swaps").unwrap_or_default()),
        core_dumps(
            &std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default(),
            may_limit_dumps(),
        ),
    ]);
    checks
}

fn limited(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check::new(subject, Outcome::Limited, found, advice)
}

/// A value in sysfs(5) without its newline; `None` when there is none.
fn value(sys: &Path, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(sys.join(file)).ok()?.trim().to_owned())
}

/// Kernel `admin-guide/mm/ksm.rst`.
fn page_merging(sys: &Path) -> Check {
    const SUBJECT: &str = "page merging";
    match value(sys, "kernel/mm/ksm/run").as_deref() {
        Some("1") => limited(
            SUBJECT,
            "on (KSM) for programs that ask for it; VMMs do not",
            "unless another program needs it: stop ksmtuned, and `echo 2 >/sys/kernel/mm/ksm/run`",
        ),
        Some(_) => Check::ok(SUBJECT, "off"),
        None => Check::ok(SUBJECT, "not in this kernel"),
    }
}

/// Kernel `ABI/testing/sysfs-devices-system-cpu`.
fn simultaneous_threads(sys: &Path, cores: Option<CoreScheduling>) -> Check {
    const SUBJECT: &str = "SMT";
    if value(sys, "devices/system/cpu/smt/active").as_deref() != Some("1") {
        return Check::ok(SUBJECT, "off");
    }
    if cores == Some(CoreScheduling::Available) {
        return Check::ok(SUBJECT, "on; the threads of a core run one VMM at a time");
    }
    limited(
        SUBJECT,
        "on; threads of different sessions share a core, and may learn of each other by its timing",
        "where sessions distrust each other: boot with `nosmt`, or `echo off >/sys/devices/system/cpu/smt/control`",
    )
}

fn scheduling(cores: Option<CoreScheduling>) -> Check {
    const SUBJECT: &str = "core scheduling";
    match cores {
        None => Check::ok(SUBJECT, format!("off, by {}", hardening::CORES_VARIABLE)),
        Some(CoreScheduling::Available) => Check::ok(SUBJECT, "used for each VMM"),
        Some(CoreScheduling::Pointless) => Check::ok(SUBJECT, "not needed: SMT is off"),
        Some(CoreScheduling::Missing) => {
            Check::ok(SUBJECT, "not in this kernel (CONFIG_SCHED_CORE, Linux 5.14)")
        }
    }
}

/// Kernel `admin-guide/hw-vuln/`. A line may name several mitigations, some of which are missing.
fn vulnerabilities(sys: &Path) -> Check {
    const SUBJECT: &str = "vulnerabilities";
    let Ok(entries) = std::fs::read_dir(sys.join("devices/system/cpu/vulnerabilities")) else {
        return Check::ok(SUBJECT, "the kernel does not say");
    };
    let mut open: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            text.contains("Vulnerable").then(|| format!("{name} ({})", text.trim()))
        })
        .collect();
    open.sort();
    if open.is_empty() {
        return Check::ok(SUBJECT, "of the CPU: none, or mitigated");
    }
    limited(
        SUBJECT,
        format!("of the CPU without mitigation: {}", open.join(", ")),
        "install microcode and kernel updates, and boot without `mitigations=off`; a virtual machine gets them from its host",
    )
}

/// proc_swaps(5). Areas in memory (zram) and encrypted ones keep nothing that could be read later.
fn swap(sys: &Path, swaps: &str) -> Check {
    const SUBJECT: &str = "swap";
    let areas: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return Check::ok(SUBJECT, "none");
    }
    let in_clear: Vec<&str> =
        areas.iter().copied().filter(|area| !keeps_nothing(sys, area)).collect();
    if in_clear.is_empty() {
        return Check::ok(SUBJECT, format!("{}: encrypted, or in memory", areas.join(", ")));
    }
    limited(
        SUBJECT,
        format!("{}: memory of guests may be left there in clear", in_clear.join(", ")),
        "`swapoff --all`, or encrypt it (crypttab(5), `swap`)",
    )
}

fn keeps_nothing(sys: &Path, area: &str) -> bool {
    let device = area.strip_prefix("/dev/").unwrap_or_default();
    let uuid = value(sys, &format!("block/{device}/dm/uuid"));
    device.starts_with("zram") || uuid.is_some_and(|uuid| uuid.starts_with("CRYPT-"))
}

/// Whether VMMs get the one limit on core dumps at which no helper is started: a hard limit of 0 is
/// raised with CAP_SYS_RESOURCE only.
fn may_limit_dumps() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE);
    let status = procfs::process::Process::myself().and_then(|own| own.status());
    hard.map_or(0, |(_, hard)| hard) >= 1
        || status.is_ok_and(|status| status.capeff & CAP_SYS_RESOURCE != 0)
}

/// core(5), "Piping core dumps to a program".
fn core_dumps(pattern: &str, may_limit: bool) -> Check {
    const SUBJECT: &str = "core dumps";
    let pattern = pattern.trim();
    let Some(command) = pattern.strip_prefix('|') else {
        return Check::ok(SUBJECT, format!("`{pattern}`, written for no VMM"));
    };
    let helper = command.split_whitespace().next().unwrap_or_default();
    if may_limit {
        return Check::ok(SUBJECT, format!("handled by {helper}, which runs for no VMM"));
    }
    limited(
        SUBJECT,
        format!("handled by {helper}; the limit that keeps it from running for a VMM is refused"),
        "give this process CAP_SYS_RESOURCE, or a hard limit on core dumps of at least 1 (`LimitCORE=1`)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs with these files.
    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[track_caller]
    fn assert_limited(check: &Check, found: &str, advice: &str) {
        assert_eq!(check.outcome, Outcome::Limited, "{check:?}");
        assert!(check.found.contains(found) && check.advice.contains(advice), "{check:?}");
    }

    #[track_caller]
    fn assert_ok(check: &Check) {
        assert_eq!((check.outcome, &*check.advice), (Outcome::Ok, ""), "{check:?}");
    }

    #[test]
    fn pages_that_are_merged_are_told() {
        assert_limited(&page_merging(sys(&[("kernel/mm/ksm/run", "1\n")]).path()), "on", "ksm/run");
        for run in ["0\n", "2\n"] {
            assert_ok(&page_merging(sys(&[("kernel/mm/ksm/run", run)]).path()));
        }
        assert_ok(&page_merging(sys(&[]).path()));
    }

    #[test]
    fn threads_of_a_core_that_run_different_sessions_are_told() {
        let (on, off) = ("devices/system/cpu/smt/active", "devices/system/cpu/smt/active");
        let (on, off) = (sys(&[(on, "1\n")]), sys(&[(off, "0\n")]));
        for cores in [None, Some(CoreScheduling::Missing)] {
            assert_limited(&simultaneous_threads(on.path(), cores), "share a core", "nosmt");
            assert_ok(&simultaneous_threads(off.path(), cores));
        }
        assert_ok(&simultaneous_threads(on.path(), Some(CoreScheduling::Available)));
        assert!(scheduling(None).found.contains("MAYFLY_CORE_SCHEDULING"));
    }

    #[test]
    fn what_the_processor_does_wrong_is_told_with_its_name() {
        const FOLDER: &str = "devices/system/cpu/vulnerabilities";
        let file = |name: &str| format!("{FOLDER}/{name}");
        let fine = sys(&[
            (&*file("meltdown"), "Not affected\n"),
            (&*file("mds"), "Mitigation: Clear CPU buffers; SMT vulnerable\n"),
        ]);
        assert_ok(&vulnerabilities(fine.path()));
        let bad = sys(&[
            (&*file("meltdown"), "Vulnerable\n"),
            (&*file("spectre_v2"), "Mitigation: Retpolines; BHI: Vulnerable\n"),
            (&*file("l1tf"), "Mitigation: PTE Inversion\n"),
        ]);
        let check = vulnerabilities(bad.path());
        assert_limited(&check, "meltdown (Vulnerable), spectre_v2 (Mitigation:", "microcode");
        assert!(!check.found.contains("l1tf"), "{check:?}");
    }

    #[test]
    fn swap_on_a_disk_in_clear_is_told() {
        const HEAD: &str = "Filename\tType\tSize\tUsed\tPriority\n";
        let sys = sys(&[
            ("block/dm-0/dm/uuid", "CRYPT-PLAIN-swap\n"),
            ("block/dm-1/dm/uuid", "LVM-abc\n"),
        ]);
        let swap = |areas: &str| swap(sys.path(), &format!("{HEAD}{areas}"));
        assert_ok(&swap(""));
        assert_ok(&swap("/dev/zram0 partition 8 0 100\n/dev/dm-0 partition 8 0 -2\n"));
        let check =
            swap("/dev/dm-0 partition 8 0 -2\n/dev/dm-1 partition 8 0 -3\n/swap file 8 0 -4\n");
        assert_limited(&check, "/dev/dm-1, /swap: memory", "swapoff");
    }

    #[test]
    fn a_helper_of_core_dumps_is_told_where_it_cannot_be_kept_from_running() {
        assert_ok(&core_dumps("core\n", false));
        assert_ok(&core_dumps("|/lib/systemd/systemd-coredump %P\n", true));
        let check = core_dumps("|/usr/share/apport/apport %p\n", false);
        assert_limited(&check, "/usr/share/apport/apport;", "CAP_SYS_RESOURCE");
    }
}
