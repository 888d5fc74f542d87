//! The guest memory of a VMM: where the image is mapped in it, and the calls that map pages.
//!
//! A call that maps a page, and the end of a userfaultfd's last descriptor, wait for a lock of the
//! VMM's address space (`mmap_lock`), which the VMM can keep for long. Only the thread of the
//! session makes them. A wake waits for nothing (`userfaultfd_wake` in fs/userfaultfd.c), and so
//! any thread may.

use std::ops::Range;

use nix::errno::Errno;

use crate::{
    handshake::{Handshake, Region},
    ram_file::RamFile,
    uffd::{self, PAGE, Step, Uffd},
    watchdog::Beat,
};

/// The guest memory of one VMM.
pub(crate) struct GuestMemory {
    pub uffd: Uffd,
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Takes over what a VMM has handed over.
    pub fn new(handshake: Handshake) -> nix::Result<Self> {
        handshake.uffd.set_nonblocking()?;
        Ok(Self { uffd: handshake.uffd, regions: handshake.regions })
    }

    /// The byte of the image at `address` in the VMM, page-aligned.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let page = address / PAGE * PAGE;
        let region = self.regions.iter().find(|r| (r.base..r.end()).contains(&page))?;
        Some(page - region.base + region.offset)
    }

    /// Bytes of the image that the addresses of `range` hold.
    pub fn offsets(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.regions.iter().filter_map(move |r| {
            let (start, end) = (range.start.max(r.base), range.end.min(r.end()));
            (start < end).then(|| start - r.base + r.offset..end - r.base + r.offset)
        })
    }

    /// Where bytes of the image are in the VMM: address, length, byte of the image.
    fn segments(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
        let range = range.clone();
        self.regions.iter().filter_map(move |r| {
            let (start, end) = (range.start.max(r.offset), range.end.min(r.offset + r.size));
            (start < end).then(|| (r.base + (start - r.offset), end - start, start))
        })
    }

    /// Wakes whoever waits for a page of `range`, bytes of the image; who still finds none faults
    /// again. Does not wait.
    pub fn wake(&self, range: &Range<u64>) -> nix::Result<()> {
        self.segments(range).try_for_each(|(start, len, _)| self.uffd.wake(start, len))
    }

    /// As [`Self::wake`], for all of it.
    pub fn wake_all(&self) {
        for region in &self.regions {
            let _ = self.uffd.wake(region.base, region.size);
        }
    }

    /// Maps zero pages over `range`. `filled` gets the bytes of each call.
    pub fn zero(&self, range: &Range<u64>, beat: &Beat, filled: impl Fn(u64)) -> Result<(), Step> {
        for (start, len, _) in self.segments(range) {
            let mut done = 0;
            while done < len {
                let zero = || uffd::zero(&self.uffd, start + done, len - done);
                done += advance(beat.at_vmm(zero), &filled)?;
            }
        }
        Ok(())
    }

    /// Copies what `file` has at `range`, bytes of a chunk that is resident and pinned, but for the
    /// pages of which `skip` holds. `filled` gets the bytes of each call.
    pub fn copy(
        &self,
        range: &Range<u64>,
        file: &RamFile,
        beat: &Beat,
        skip: impl Fn(u64) -> bool,
        filled: impl Fn(u64),
    ) -> Result<(), Step> {
        for (start, len, offset) in self.segments(range) {
            let mut done = 0;
            while done < len {
                let at = offset + done;
                if skip(at) {
                    done += PAGE;
                    continue;
                }
                let run = crate::pages::extend(at..at + PAGE, PAGE, &(at..offset + len), |page| {
                    !skip(page)
                });
                // SAFETY: the chunk is resident and pinned, so its pages are mapped read-only for
                // the whole run.
                let copy = || unsafe {
                    let len = run.end - run.start;
                    uffd::copy(&self.uffd, file.address(run.start), start + done, len)
                };
                done += advance(beat.at_vmm(copy), &filled)?;
            }
        }
        Ok(())
    }

    /// Returns whether the VMM's address space is gone.
    pub fn is_gone(&self, beat: &Beat) -> bool {
        self.look(beat) == Step::Gone
    }

    /// Returns whether [`Self::is_gone`] will ever say so. It would not for addresses that no
    /// process can have, or with a userfaultfd that was never set up: the kernel looks at these
    /// before it looks for the address space.
    pub fn shows_its_end(&self, beat: &Beat) -> bool {
        self.look(beat) != Step::Failed(Errno::EINVAL)
    }

    /// Tries to map a page in none of the regions: the kernel looks whether there is an address
    /// space before it looks for the page.
    fn look(&self, beat: &Beat) -> Step {
        let lowest = self.regions.iter().map(|region| region.base).min().unwrap_or(PAGE);
        let outside = lowest.saturating_sub(PAGE);
        beat.at_vmm(|| uffd::zero(&self.uffd, outside, PAGE))
    }
}

/// Bytes that are done with after a step, which `filled` gets if the step mapped them. The step
/// itself when it was none ahead.
fn advance(step: Step, filled: impl Fn(u64)) -> Result<u64, Step> {
    match step {
        Step::Filled(n) => {
            filled(n);
            Ok(n.max(PAGE))
        }
        Step::Exists => Ok(PAGE),
        step => Err(step),
    }
}
