//! Resources that the guest has used and has left, from /proc (proc(5)).

use crate::health::meminfo;
use crate::wire::reply;
use mayfly_protocol::{GuestStats, Reply};

/// Reads all figures.
pub fn stats() -> Reply<GuestStats> {
    let read = |path: &str| reply(path, std::fs::read_to_string(path));
    let memory = read("/proc/meminfo")?;
    let (cpus, busy, idle) = processors(&read("/proc/stat")?);
    let disk = reply("statvfs /", nix::sys::statvfs::statvfs("/").map_err(Into::into))?;
    Ok(GuestStats {
        load_hundredths: load(&read("/proc/loadavg")?),
        cpus,
        cpu_busy_ms: ticks_to_ms(busy),
        cpu_idle_ms: ticks_to_ms(idle),
        memory_total: meminfo(&memory, "MemTotal"),
        memory_available: meminfo(&memory, "MemAvailable"),
        disk_total: disk.blocks().saturating_mul(disk.fragment_size()),
        disk_available: disk.blocks_available().saturating_mul(disk.fragment_size()),
        processes: reply("/proc", processes())?,
    })
}

/// The three averages of /proc/loadavg in hundredths, 0 where one is missing.
fn load(text: &str) -> [u32; 3] {
    let mut averages = [0; 3];
    for (average, word) in averages.iter_mut().zip(text.split_whitespace()) {
        // The kernel always prints two decimals.
        *average = word.replace('.', "").parse().unwrap_or(0);
    }
    averages
}

/// Processors, and their busy and idle time in ticks, from /proc/stat. Guest time is in user time
/// already.
fn processors(text: &str) -> (u32, u64, u64) {
    let cpus =
        text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let all = text.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = all.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    let sum = |fields: &[usize]| fields.iter().filter_map(|index| ticks.get(*index)).sum();
    // user nice system idle iowait irq softirq steal
    (u32::try_from(cpus).unwrap_or(u32::MAX), sum(&[0, 1, 2, 5, 6, 7]), sum(&[3, 4]))
}

fn ticks_to_ms(ticks: u64) -> u64 {
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    // Linux on x86 has had no other value.
    ticks.saturating_mul(1000)
        / hertz.and_then(|hertz| u64::try_from(hertz).ok()).unwrap_or(100).max(1)
}

fn processes() -> std::io::Result<u32> {
    let mut count = 0_u32;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        count += u32::from(name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_their_fields() {
        assert_eq!(load("0.52 1.00 12.34 2/345 6789\n"), [52, 100, 1234]);
        assert_eq!(load(""), [0; 3]);
        let text = "cpu  1 2 4 1000 100 8 16 32 64 128\ncpu0 1 2 4 1000 100 8 16 32 64 128\ncpu1 0 0 0\nintr 5\n";
        assert_eq!(processors(text), (2, 63, 1100));
        assert_eq!(processors("cpu  1 2\n"), (0, 3, 0));
    }

    #[test]
    fn this_system_has_figures() {
        let stats = stats().unwrap();
        assert!(stats.processes > 1 && stats.cpus > 0 && stats.cpu_busy_ms > 0, "{stats:?}");
        assert!(
            stats.disk_total >= stats.disk_available && stats.memory_total > stats.memory_available,
            "{stats:?}"
        );
    }
}
