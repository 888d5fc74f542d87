//! Memory figures of processes.

use std::io;

/// Returns the memory that process `pid` has written and no other process shares, in bytes: what
/// one more session really costs.
///
/// Private dirty pages of `/proc/PID/smaps_rollup` (proc(5)). Clean pages of files (the golden's
/// page cache, program text) are left out: they count as private while only one session maps them,
/// and are shared as soon as a second one does.
///
/// # Errors
/// When the process is gone.
pub fn private_bytes(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let rollup = procfs::process::Process::new(pid)
        .and_then(|p| p.smaps_rollup())
        .map_err(io::Error::other)?;
    let dirty = |map: &procfs::process::MemoryMap| {
        map.extension.map.get("Private_Dirty").copied().unwrap_or(0)
    };
    Ok(rollup.memory_map_rollup.iter().map(dirty).sum())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_private_memory_and_sees_it_grow() {
        let before = super::private_bytes(std::process::id()).unwrap();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = super::private_bytes(std::process::id()).unwrap();
        assert!(after >= before + (60 << 20), "{before} -> {after}");
        drop(block);
        super::private_bytes(u32::MAX >> 2).unwrap_err();
    }
}
