//! Unmaps the guest memory that a zygote has only read.
//!
//! fork(2) copies the page tables of a private mapping in which anything has been written, entry by
//! entry, and the end of the fork takes each entry away again. Pages that were only read are in the
//! page cache as they are: a fork that reads one maps it then, with its neighbours. Zero pages that
//! the pager has placed (`UFFDIO_ZEROPAGE`) look like written ones, and stay.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use super::park;
use crate::die::errno;
use crate::register;

/// Entry of `/proc/self/pagemap` (kernel documentation, admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
/// The page is one of a file; one that was written in a private mapping is not.
const OF_FILE: u64 = 1 << 61;
const PAGE: usize = 4096;
/// Entries that are read at a time.
const ENTRIES: usize = 8192;

static PAGEMAP: AtomicI32 = AtomicI32::new(-1);

/// Opens what tells pages that were read from those that were written. To be called while the
/// process is dumpable: afterwards the file is root's (proc(5)).
pub(crate) fn prepare() {
    // SAFETY: opens a static path; a failure is seen when the descriptor is used.
    let opened =
        unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    PAGEMAP.store(opened, Ordering::Release);
}

/// Returns the number of the descriptor that [`prepare`] has opened, which no fork may have.
pub(super) fn descriptor() -> Option<RawFd> {
    Some(PAGEMAP.load(Ordering::Acquire)).filter(|number| *number >= 0)
}

/// Unmaps all clean pages of guest memory while every other thread is parked; once, for the
/// descriptor is closed by it. Returns their number.
pub(super) fn all() -> Result<u64, &'static str> {
    const UNTOLD: &str = "the kernel does not say which pages were written (/proc/self/pagemap)";
    if descriptor().is_none() {
        return Err(UNTOLD);
    }
    let mapping = register::mapping().ok_or("guest memory is not mapped")?;
    // Nobody may write a page between the look at it and its end. Allocated before: a parked thread
    // may hold a lock of the allocator.
    let mut entries = vec![0_u64; ENTRIES];
    let _parked = park::at_rest()?;
    let number = PAGEMAP.swap(-1, Ordering::AcqRel);
    if number < 0 {
        return Err(UNTOLD);
    }
    // SAFETY: `prepare` opened it, and nothing else has taken the number out.
    let pagemap = unsafe { OwnedFd::from_raw_fd(number) };
    let (start, len) = mapping.range();
    clean(start, len, &pagemap, &mut entries)
}

/// Unmaps the clean pages of a private mapping of a file.
fn clean(
    start: usize,
    len: usize,
    pagemap: &OwnedFd,
    entries: &mut [u64],
) -> Result<u64, &'static str> {
    let mut unmapped = 0;
    let (mut at, end) = (start / PAGE, (start + len) / PAGE);
    while at < end {
        let count = entries.len().min(end - at);
        read(pagemap, &mut entries[..count], at)?;
        let mut rest = &entries[..count];
        while let Some(first) = rest.iter().position(|entry| is_clean(*entry)) {
            let run = rest[first..].iter().take_while(|entry| is_clean(**entry)).count();
            let page = at + count - rest.len() + first;
            // SAFETY: pages of the mapping that hold what the file holds, and will again when they
            // are touched.
            let done = unsafe {
                libc::syscall(libc::SYS_madvise, page * PAGE, run * PAGE, libc::MADV_DONTNEED)
            };
            if done != 0 {
                return Err("cannot unmap guest memory (madvise)");
            }
            unmapped += run as u64;
            rest = &rest[first + run..];
        }
        at += count;
    }
    Ok(unmapped)
}

fn is_clean(entry: u64) -> bool {
    entry & (PRESENT | OF_FILE) == PRESENT | OF_FILE
}

/// Reads the entries from page `at` on.
fn read(pagemap: &OwnedFd, entries: &mut [u64], at: usize) -> Result<(), &'static str> {
    const FAILED: &str = "cannot read which pages were written (/proc/self/pagemap)";
    let size = size_of_val(entries);
    let offset = i64::try_from(at * size_of::<u64>()).map_err(|_| FAILED)?;
    loop {
        // SAFETY: fills memory of `entries`, of which any bytes are entries.
        let got =
            unsafe { libc::pread(pagemap.as_raw_fd(), entries.as_mut_ptr().cast(), size, offset) };
        match usize::try_from(got) {
            Ok(got) if got == size => return Ok(()),
            Err(_) if errno() == libc::EINTR => {}
            _ => return Err(FAILED),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_pages_that_were_read_are_unmapped_and_all_keep_their_content() {
        const PAGES: usize = 3 * ENTRIES / 2;
        // SAFETY: makes a file of its own, and a private mapping of it, which is used below alone.
        let (file, memory) = unsafe {
            let file = File::from_raw_fd(libc::memfd_create(c"unmap".as_ptr(), libc::MFD_CLOEXEC));
            file.set_len((PAGES * PAGE) as u64).unwrap();
            file.write_all_at(&vec![7; PAGES * PAGE], 0).unwrap();
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            let length = PAGES * PAGE;
            let map = libc::mmap(std::ptr::null_mut(), length, prot, flags, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED);
            libc::madvise(map, length, libc::MADV_NOHUGEPAGE);
            (file, std::slice::from_raw_parts_mut(map.cast::<u8>(), length))
        };
        let written = |page: usize| page.is_multiple_of(3) || (100..140).contains(&page);
        for page in 0..PAGES {
            if written(page) {
                memory[page * PAGE] = 9;
            } else {
                assert_eq!(std::hint::black_box(&memory)[page * PAGE], 7);
            }
        }
        let pagemap = OwnedFd::from(File::open("/proc/self/pagemap").unwrap());
        let start = memory.as_ptr() as usize;
        let mut entries = vec![0; ENTRIES];
        let unmapped = clean(start, memory.len(), &pagemap, &mut entries).unwrap();
        assert_eq!(unmapped, (0..PAGES).filter(|page| !written(*page)).count() as u64);
        let mut left = vec![0; PAGES];
        read(&pagemap, &mut left, start / PAGE).unwrap();
        for (page, entry) in left.iter().enumerate() {
            assert_eq!(entry & PRESENT != 0, written(page), "page {page}");
        }
        for page in 0..PAGES {
            assert_eq!(memory[page * PAGE], if written(page) { 9 } else { 7 }, "page {page}");
            assert_eq!(memory[page * PAGE + 1], 7, "page {page}");
        }
        drop(file);
    }
}
