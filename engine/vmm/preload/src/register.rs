//! Maps guest memory, registers it with a userfaultfd and sends the handshake.

use std::{
    ffi::c_void,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use linux_raw_sys::{
    general::{
        _UFFDIO_COPY, _UFFDIO_WAKE, _UFFDIO_ZEROPAGE, UFFD_API, UFFD_FEATURE_EVENT_REMOVE,
        UFFD_FEATURE_MISSING_SHMEM, UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_range,
        uffdio_register,
    },
    ioctl::{UFFDIO_API, UFFDIO_REGISTER},
};

use crate::{
    config::{self, Config},
    die::{STATUS, die, errno},
};

/// `_IO(0xAA, 0)` of `<linux/userfaultfd.h>`. Its argument is the flags of the new descriptor.
pub(crate) const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xAA00;
const FEATURES: u32 = UFFD_FEATURE_MISSING_SHMEM;
/// What the pager needs on the range.
const NEEDED_IOCTLS: u64 = 1 << _UFFDIO_WAKE | 1 << _UFFDIO_COPY | 1 << _UFFDIO_ZEROPAGE;
const PAGE: u64 = 4096;

/// The RAM file has been mapped and handed over.
static MAPPED: AtomicBool = AtomicBool::new(false);

/// The mapping of the RAM file.
pub(crate) struct Mapping {
    start: u64,
    len: u64,
    offset: i64,
    /// To the pager, which learns of the end of the process by its end.
    pub socket: i32,
}

impl Mapping {
    /// Returns its first address and its length in bytes.
    #[cfg(target_arch = "x86_64")]
    #[expect(clippy::cast_possible_truncation, reason = "both came from a call that mapped them")]
    pub fn range(&self) -> (usize, usize) {
        (self.start as usize, self.len as usize)
    }
}

static MAPPING: OnceLock<Mapping> = OnceLock::new();

/// Whether the pager hears of memory that is given back, which ends a session. A zygote gives back
/// what it has only read, before it is forked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removals {
    Reported,
    Silent,
}

/// The mapping of the RAM file, once it is made.
#[cfg(target_arch = "x86_64")]
pub(crate) fn mapping() -> Option<&'static Mapping> {
    MAPPING.get()
}

/// Ends the process when it is about to run without its guest memory.
pub(crate) fn require_mapped() {
    if config::get().is_some() && !MAPPED.load(Ordering::Acquire) {
        die(
            "the VMM starts to run but has not mapped the RAM file: is its mem-path the one in MAYFLY_PRELOAD?",
            0,
        );
    }
}

/// At a normal exit: one more line, and the status of a failure, when the RAM file was never
/// mapped. QEMU's own message about what went wrong has been printed by then.
pub(crate) extern "C" fn at_exit() {
    if !MAPPED.load(Ordering::Acquire) {
        die("the VMM ends and has never mapped the RAM file", 0);
    }
}

/// Serves the `mmap` of the RAM file.
pub(crate) fn map(
    config: &Config,
    addr: *mut c_void,
    len: usize,
    prot: i32,
    flags: i32,
    offset: i64,
) -> *mut c_void {
    const MAP_TYPE: i32 = 0x0f;
    if flags & MAP_TYPE != libc::MAP_PRIVATE {
        die(
            "the RAM file is mapped shared: guest writes would be lost or leak, give the memory backend share=off",
            0,
        );
    }
    if MAPPED.swap(true, Ordering::AcqRel) {
        die("the RAM file is mapped a second time, which cannot be served", 0);
    }
    if flags & (libc::MAP_POPULATE | libc::MAP_LOCKED) != 0 {
        die(
            "the RAM file is mapped with prefault or lock: holes would become zero pages, give prealloc=off",
            0,
        );
    }
    let (flags, fd, file_offset) = if config.copy {
        (flags | libc::MAP_ANONYMOUS, -1, 0)
    } else {
        (flags, config.ram_fd, offset)
    };
    // SAFETY: the call QEMU asked for, with the file replaced by equal or anonymous memory.
    let start = unsafe { crate::wrap::real_mmap(addr, len, prot, flags, fd, file_offset) };
    if start == libc::MAP_FAILED {
        die("cannot map the RAM file", errno());
    }
    let len = (len as u64).next_multiple_of(PAGE);
    let mapping = Mapping { start: start as u64, len, offset, socket: config.socket };
    let removals = if config.zygote >= 0 { Removals::Silent } else { Removals::Reported };
    hand_over(&mapping, removals, config.uffd_device, config.socket, config.keeper);
    let _ = MAPPING.set(mapping);
    // They have done their work. The socket to the pager stays open.
    // SAFETY: closes descriptors handed over to this library alone.
    unsafe {
        libc::close(config.uffd_device);
        libc::close(config.keeper);
    }
    start
}

/// Makes an open `/dev/null` of every descriptor of the RAM file: it is mapped, and a second
/// mapping would not be registered with the userfaultfd. QEMU keeps its number, and closes it at
/// its end.
#[cfg(target_arch = "x86_64")]
pub(crate) fn let_go_of_the_file(config: &Config) {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        die("cannot list the descriptors", errno())
    };
    let numbers: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|n| config::identity(*n) == Some(config.identity)) {
        if !null_at(number) {
            die("cannot let go of the RAM file", errno());
        }
    }
    // QEMU asks for huge pages. khugepaged would fill the holes of the file with zeros to make one,
    // before Linux 6.4 also where a userfaultfd waits for them (mm/khugepaged.c, `collapse_file`).
    if let Some(mapping) = mapping().filter(|_| !config.copy) {
        // SAFETY: advice for a mapping of this library's own, which changes no content.
        let done = unsafe {
            libc::syscall(
                libc::SYS_madvise,
                mapping.start,
                mapping.len,
                libc::c_long::from(libc::MADV_NOHUGEPAGE),
            )
        };
        // EINVAL: a kernel without huge pages.
        if done != 0 && errno() != libc::EINVAL {
            die("cannot forbid huge pages of guest memory", errno());
        }
    }
}

/// Makes number `at` an open `/dev/null` of its own. Allocates nothing. False when that fails.
#[cfg(target_arch = "x86_64")]
pub(crate) fn null_at(at: i32) -> bool {
    // SAFETY: system calls on numbers, and a static NUL-terminated path.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        null >= 0 && libc::dup3(null, at, libc::O_CLOEXEC) == at && libc::close(null) == 0
    }
}

/// In a forked child: registers the inherited mapping anew, and hands it over on other sockets. A
/// userfaultfd belongs to the address space it was made in; fork(2) takes the registration away.
#[cfg(target_arch = "x86_64")]
pub(crate) fn again(uffd_device: i32, socket: i32, keeper: i32) {
    let Some(mapping) = mapping() else { die("guest memory is not mapped", 0) };
    hand_over(mapping, Removals::Reported, uffd_device, socket, keeper);
}

/// Registers a mapping with a new userfaultfd, which goes to the pager, and to the owner to be
/// kept. This process keeps none, see the crate's documentation: a descriptor that waits in a
/// socket whose other end is open stays open.
fn hand_over(mapping: &Mapping, removals: Removals, uffd_device: i32, socket: i32, keeper: i32) {
    let uffd = register(uffd_device, removals, mapping.start, mapping.len);
    if crate::rights::send(keeper, b"u", uffd) != 1 {
        die("cannot send the userfaultfd to the owner", errno());
    }
    handshake(socket, uffd, mapping.start, mapping.len, mapping.offset);
    // SAFETY: closes a descriptor that `register` made, and nothing else knows.
    unsafe { libc::close(uffd) };
}

fn register(uffd_device: i32, removals: Removals, start: u64, len: u64) -> i32 {
    // SAFETY: a number is passed, and a descriptor comes back.
    let uffd = unsafe {
        libc::ioctl(uffd_device, USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK)
    };
    if uffd < 0 {
        die("cannot make a userfaultfd from the inherited /dev/userfaultfd", errno());
    }
    let removed = if removals == Removals::Reported { UFFD_FEATURE_EVENT_REMOVE } else { 0 };
    let features = u64::from(FEATURES | removed);
    let mut api = uffdio_api { api: UFFD_API.into(), features, ioctls: 0 };
    // SAFETY: the struct the ioctl expects.
    if unsafe { libc::ioctl(uffd, UFFDIO_API.into(), &raw mut api) } < 0 {
        die(
            "the kernel's userfaultfd lacks remove events or missing faults on shared memory",
            errno(),
        );
    }
    let mut range = uffdio_register {
        range: uffdio_range { start, len },
        mode: UFFDIO_REGISTER_MODE_MISSING.into(),
        ioctls: 0,
    };
    // SAFETY: the struct the ioctl expects; the range is the mapping just made.
    if unsafe { libc::ioctl(uffd, UFFDIO_REGISTER.into(), &raw mut range) } < 0 {
        die("cannot register guest memory with userfaultfd", errno());
    }
    if range.ioctls & NEEDED_IOCTLS != NEEDED_IOCTLS {
        die("userfaultfd cannot wake, copy and zero on this kind of memory", 0);
    }
    uffd
}

/// Sends `[{"base_host_virt_addr":..,"size":..,"offset":..,"page_size":4096}]` with the
/// userfaultfd.
fn handshake(socket: i32, uffd: i32, start: u64, len: u64, offset: i64) {
    let mut json = [0_u8; 256];
    let mut at = 0;
    {
        let mut put = |text: &[u8]| {
            json[at..at + text.len()].copy_from_slice(text);
            at += text.len();
        };
        let mut digits = [0; 20];
        put(b"[{\"base_host_virt_addr\":");
        put(decimal(start, &mut digits));
        put(b",\"size\":");
        put(decimal(len, &mut digits));
        put(b",\"offset\":");
        put(decimal(offset.cast_unsigned(), &mut digits));
        put(b",\"page_size\":4096}]");
    }
    let sent = crate::rights::send(socket, &json[..at], uffd);
    if usize::try_from(sent) != Ok(at) {
        die("cannot send the handshake to the pager", errno());
    }
}

fn decimal(mut value: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[at..];
        }
    }
}

const _: () = assert!(STATUS == 71);

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_are_written_as_rust_does() {
        for value in [0, 7, 10, 4096, 0x7fff_ffff_f000, u64::MAX] {
            assert_eq!(decimal(value, &mut [0; 20]), value.to_string().as_bytes());
        }
    }
}
