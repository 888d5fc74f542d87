//! Memory figures of processes.

use std::io;

/// Memory of process `pid` that no other process shares, in bytes: what one more session really costs.
/// Private clean and dirty pages of `/proc/PID/smaps_rollup` (proc(5)).
///
/// # Errors
/// When the process is gone.
pub fn private_bytes(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let rollup = procfs::process::Process::new(pid).and_then(|p| p.smaps_rollup()).map_err(io::Error::other)?;
    let sum = |map: &procfs::process::MemoryMap| {
        ["Private_Clean", "Private_Dirty"].iter().filter_map(|key| map.extension.map.get(*key)).sum::<u64>()
    };
    Ok(rollup.memory_map_rollup.iter().map(sum).sum())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_private_memory_and_sees_it_grow() {
        let before = super::private_bytes(std::process::id()).unwrap();
        let block = vec![1u8; 64 << 20];
        let after = super::private_bytes(std::process::id()).unwrap();
        assert!(after >= before + (60 << 20), "{before} -> {after}");
        drop(block);
        assert!(super::private_bytes(u32::MAX >> 2).is_err());
    }
}
