//! The sparse memory file that is the page cache of one image.
//!
//! Sealed against growing and shrinking, mode 0600 and owned by the pager's user: a VMM of another
//! user gets a read-only descriptor and can neither reopen it for writing nor add seals.
//! (`F_SEAL_FUTURE_WRITE` would also forbid punching holes, which eviction needs: fcntl(2),
//! `shmem_fallocate` in `mm/shmem.c`.)

use std::{
    fs::{File, OpenOptions},
    num::NonZero,
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, munmap},
        stat::{Mode, fchmod, fstat},
        uio::pwrite,
    },
    unistd::ftruncate,
};

/// Not in nix 0.31: memfd_create(2), since Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 0x0008;

/// The writable side of an image's page cache, with a read-only mapping of all of it for copies.
pub(crate) struct RamFile {
    file: OwnedFd,
    map: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the mapping is read-only, its address never changes, and it is unmapped only on drop.
unsafe impl Send for RamFile {}
// SAFETY: as above; concurrent reads of the mapping are what it is for.
unsafe impl Sync for RamFile {}

impl RamFile {
    /// Creates a file of `len` bytes, all holes.
    pub fn new(len: u64) -> nix::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let sealed = flags | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
        let file = match memfd_create("mayfly-page-cache", sealed) {
            Err(Errno::EINVAL) => memfd_create("mayfly-page-cache", flags)?,
            other => other?,
        };
        fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
        ftruncate(&file, i64::try_from(len).map_err(|_| Errno::EFBIG)?)?;
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(
                SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL,
            ),
        )?;
        let len = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
        let size = NonZero::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: a fresh read-only mapping at an address of the kernel's choice.
        let map =
            unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0)? };
        Ok(Self { file, map, len })
    }

    /// Returns a read-only descriptor for a VMM.
    pub fn read_only(&self) -> std::io::Result<File> {
        // Opened anew: a duplicate would share the writable open file description.
        OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns where byte `offset` is mapped in this process. Reading a hole there would allocate a
    /// page: read only what is resident and pinned.
    pub fn address(&self, offset: u64) -> *const u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(offset < self.len, "offset beyond the RAM file");
        // SAFETY: the offset is inside the mapping, as just checked.
        unsafe { self.map.as_ptr().cast::<u8>().add(offset) }
    }

    /// Places verified bytes. A page appears to the VMMs only when all of it has been written:
    /// `pwrite` fills the locked, not yet up-to-date folio and only then unlocks it
    /// (`shmem_write_begin`/`_end` in `mm/shmem.c`), while a store through a mapping would show a
    /// zero page first. `bytes` must be page-aligned resident memory, so that the kernel's copy of
    /// a page cannot stop half way.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> nix::Result<()> {
        debug_assert!(bytes.as_ptr().addr().is_multiple_of(4096) && offset.is_multiple_of(4096));
        let mut done = 0;
        while done < bytes.len() {
            let at = i64::try_from(offset + done as u64).map_err(|_| Errno::EFBIG)?;
            match pwrite(&self.file, &bytes[done..], at) {
                Ok(0) => return Err(Errno::ENOSPC),
                Ok(n) => done += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Turns a range back into a hole; pages of it that VMMs have mapped unmodified are unmapped
    /// and fault again.
    pub fn punch(&self, offset: u64, len: u64) -> nix::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(&self.file, flags, offset.cast_signed(), len.cast_signed()) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// Returns how many bytes the file holds in memory or swap.
    pub fn allocated(&self) -> nix::Result<u64> {
        Ok(u64::try_from(fstat(&self.file)?.st_blocks).unwrap_or(0) * 512)
    }
}

impl Drop for RamFile {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no pointer into it outlives the image that owns this
        // file.
        let _ = unsafe { munmap(self.map, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_pages_are_counted() {
        let file = RamFile::new(1 << 20).unwrap();
        assert_eq!(file.allocated().unwrap(), 0);
        let layout = std::alloc::Layout::from_size_align(8192, 4096).unwrap();
        // SAFETY: a non-zero layout; freed below with the same one.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        // SAFETY: 8192 zeroed bytes just allocated.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory, 8192) };
        bytes.fill(7);
        file.write(4096, bytes).unwrap();
        assert_eq!(file.allocated().unwrap(), 8192);
        // SAFETY: the page at 4096 has been written and the mapping is readable.
        assert_eq!(unsafe { *file.address(4096) }, 7);
        file.punch(4096, 8192).unwrap();
        assert_eq!(file.allocated().unwrap(), 0);
        // SAFETY: allocated above with this layout and not used after.
        unsafe { std::alloc::dealloc(memory, layout) };
    }

    #[test]
    fn the_file_can_be_neither_resized_nor_unsealed() {
        let file = RamFile::new(1 << 16).unwrap();
        assert_eq!(ftruncate(&file.file, 4096), Err(Errno::EPERM));
        assert_eq!(ftruncate(&file.file, 1 << 20), Err(Errno::EPERM));
        pwrite(file.read_only().unwrap(), b"x", 0).unwrap_err();
    }
}
