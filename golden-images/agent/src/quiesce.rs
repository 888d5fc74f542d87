//! Makes a guest small and still before its snapshot.
//!
//! The work runs in a process of its own: its memory is gone with it, the channel goes on
//! meanwhile, and if the guest has too little memory after all, the kernel kills that process and
//! not dockerd.

use crate::context::Context;
use crate::health::meminfo;
use crate::port::write_file;
use mayfly_protocol::{GuestError, QuiesceReport, Reply};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Instant;

/// Free memory left alone, in bytes: below this the kernel starts to reclaim what is in use.
const MARGIN: u64 = 32 << 20;
const PIECE: usize = 16 << 20;

/// `struct fstrim_range` of <linux/fs.h>.
#[repr(C)]
struct FstrimRange {
    start: u64,
    len: u64,
    minlen: u64,
}

nix::ioctl_readwrite!(fitrim, b'X', 121, FstrimRange); // FITRIM, <linux/fs.h>

/// Runs `mayfly-agent quiesce` and hands on its report.
pub async fn run(context: &Context) -> Reply<QuiesceReport> {
    if !context.guest {
        return Err(GuestError::new("quiesce works in a guest only"));
    }
    let output = crate::exec::output(["/proc/self/exe", "quiesce"]).await?;
    postcard::from_bytes(&output)
        .map_err(|error| GuestError::new(format!("quiesce sent no report: {error}")))
}

/// Runs the `quiesce` role: does the work, writes the report to stdout.
pub fn main() -> ExitCode {
    use io::Write;
    let report = postcard::to_stdvec(&work()).unwrap_or_default();
    match io::stdout().write_all(&report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work() -> QuiesceReport {
    let begin = Instant::now();
    let mut report = QuiesceReport::default();
    step(&mut report, "write back", |_| {
        nix::unistd::sync();
        Ok(())
    });
    step(&mut report, "trim /", |report| match trim_root() {
        Ok(bytes) => {
            report.trimmed = Some(bytes);
            Ok(())
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    });
    step(&mut report, "be the first to be killed", |_| {
        write_file("/proc/self/oom_score_adj", "1000")
    });
    step(&mut report, "drop caches", |_| write_file("/proc/sys/vm/drop_caches", "3"));
    step(&mut report, "compact memory", |_| write_file("/proc/sys/vm/compact_memory", "1"));
    step(&mut report, "zero free memory", |report| {
        report.zeroed = zero_free_memory(room)?;
        Ok(())
    });
    report.memory_free = free_memory();
    report.elapsed_ms = milliseconds(begin);
    report
}

/// Runs one step; a failure is noted and passed over.
fn step(
    report: &mut QuiesceReport,
    what: &str,
    work: impl FnOnce(&mut QuiesceReport) -> io::Result<()>,
) {
    let begin = Instant::now();
    if let Err(error) = work(report) {
        report.skipped.push(format!("{what}: {error}"));
    }
    report.steps_ms.push((what.into(), milliseconds(begin)));
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn trim_root() -> io::Result<u64> {
    let root = std::fs::File::open("/")?;
    let mut range = FstrimRange { start: 0, len: u64::MAX, minlen: 0 };
    // SAFETY: `range` is a valid fstrim_range that the kernel reads and writes back.
    unsafe { fitrim(root.as_raw_fd(), &raw mut range) }?;
    Ok(range.len)
}

fn free_memory() -> u64 {
    std::fs::read_to_string("/proc/meminfo").map_or(0, |text| meminfo(&text, "MemFree"))
}

/// Bytes that can be allocated without taking from what is in use. Of free memory the kernel keeps
/// a part for itself, which it leaves out of what it calls available (proc_meminfo(5)): in a guest
/// with little to reclaim, an allocation of that part has no answer but the OOM killer.
fn room() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo(&text, "MemFree").saturating_sub(MARGIN).min(meminfo(&text, "MemAvailable"))
}

/// Allocates memory as long as there is `room` in bytes, and frees it: the kernel clears each page
/// when it hands it out, and does not touch it when it takes it back. Cheaper in sessions than
/// booting with `init_on_free=1`, which clears at every free for ever.
fn zero_free_memory(room: impl Fn() -> u64) -> io::Result<u64> {
    let mut pieces = Vec::new();
    let mut zeroed = 0;
    let size = NonZeroUsize::new(PIECE).unwrap_or(NonZeroUsize::MIN);
    while room() >= PIECE as u64 {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice touches no
        // other memory.
        let piece = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: `piece` is the mapping just made, of PIECE bytes; the advice only says how to
        // back it. Huge pages take one fault for 2 MiB, and under emulation the faults are what
        // takes the time; where there are none, small ones do.
        let _ = unsafe { madvise(piece, PIECE, MmapAdvise::MADV_HUGEPAGE) };
        // SAFETY: `piece` is the mapping just made, of PIECE bytes; MADV_POPULATE_WRITE faults its
        // pages in as zeros.
        let populated = unsafe { madvise(piece, PIECE, MmapAdvise::MADV_POPULATE_WRITE) };
        pieces.push(piece);
        if populated.is_err() {
            break;
        }
        zeroed += PIECE as u64;
    }
    for piece in pieces {
        // SAFETY: each piece is a mapping of PIECE bytes made above, and nothing refers into it.
        unsafe { munmap(piece, PIECE) }?;
    }
    Ok(zeroed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroing_is_counted_in_whole_pieces() {
        let zeroed_of = |bytes: u64| {
            let left = std::cell::Cell::new(bytes + PIECE as u64);
            zero_free_memory(|| {
                left.set(left.get().saturating_sub(PIECE as u64));
                left.get()
            })
        };
        assert_eq!(zeroed_of(PIECE as u64 * 2 + 1).unwrap(), PIECE as u64 * 2);
        assert_eq!(zeroed_of(1).unwrap(), 0);
    }
}
