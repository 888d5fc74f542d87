//! The configuration, read from the environment before `main`.

use std::{
    ffi::{CStr, c_char},
    sync::OnceLock,
};

use mayfly_vmm_contract::preload::{PAGED_MEMORY, PagedMemory, Source};

use crate::die::{die, die_saying, errno};

/// What the library is to do.
pub(crate) struct Config {
    /// Path of the RAM file, NUL-terminated, alive for ever.
    pub ram: &'static CStr,
    pub ram_fd: i32,
    pub uffd_device: i32,
    pub socket: i32,
    /// Socket on which the userfaultfd is sent to be kept.
    pub keeper: i32,
    /// Descriptor from which requests for forks come, or -1.
    pub zygote: i32,
    /// Guest memory is anonymous.
    pub copy: bool,
    /// Identity of the RAM file: `st_dev`, `st_ino`.
    pub identity: (u64, u64),
}

static CONFIG: OnceLock<Config> = OnceLock::new();

/// The configuration; `None` before it is read, and when there is none.
pub(crate) fn get() -> Option<&'static Config> {
    CONFIG.get()
}

/// Reads the environment. Runs before `main`, and before other threads exist.
extern "C" fn load() {
    // SAFETY: single-threaded; the string stays until `unsetenv`, and what is kept of it is copied.
    let spec = unsafe { libc::getenv(PAGED_MEMORY.as_ptr()) };
    if spec.is_null() {
        return;
    }
    // SAFETY: `getenv` gave a NUL-terminated string.
    let config = parse(unsafe { CStr::from_ptr(spec) }.to_bytes());
    for fd in [config.ram_fd, config.uffd_device, config.socket, config.keeper]
        .into_iter()
        .chain((config.zygote >= 0).then_some(config.zygote))
    {
        // SAFETY: changes a flag of a descriptor that is ours; a closed one fails.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            die("a descriptor named in MAYFLY_PRELOAD is not open", errno());
        }
    }
    // SAFETY: still single-threaded. A child QEMU may start has none of the descriptors.
    unsafe { libc::unsetenv(PAGED_MEMORY.as_ptr()) };
    let _ = CONFIG.set(config);
    // SAFETY: registers a function that lives as long as the process.
    unsafe { libc::atexit(crate::register::at_exit) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;

fn parse(spec: &[u8]) -> Config {
    let memory = PagedMemory::parse(spec)
        .unwrap_or_else(|why| die_saying(&[b"MAYFLY_PRELOAD", why.as_bytes()], 0));
    let PagedMemory { path, source, userfaultfd_device: uffd_device, socket, keeper, zygote } =
        memory;
    let (ram_fd, copy) = match source {
        Source::PageCache(fd) => (fd, false),
        Source::Copies(size) => (sized_file(size), true),
    };
    let identity = identity(ram_fd).unwrap_or_else(|| die("cannot stat the RAM file", errno()));
    // SAFETY: queries the flags of a descriptor.
    let flags = unsafe { libc::fcntl(ram_fd, libc::F_GETFL) };
    if !copy && flags & libc::O_ACCMODE != libc::O_RDONLY {
        die("the RAM file was handed over writable; it must be opened read-only", 0);
    }
    Config {
        ram: copy_of(path),
        ram_fd,
        uffd_device,
        socket,
        keeper,
        zygote: zygote.unwrap_or(-1),
        copy,
        identity,
    }
}

/// A NUL-terminated copy that is never freed: the environment's own string goes away.
fn copy_of(value: &[u8]) -> &'static CStr {
    // SAFETY: allocates `len + 1` bytes, zeroed, and copies `len` into them; the rest is the
    // terminator.
    unsafe {
        let copy = libc::calloc(value.len() + 1, 1).cast::<u8>();
        if copy.is_null() {
            die("out of memory", 0);
        }
        copy.copy_from_nonoverlapping(value.as_ptr(), value.len());
        CStr::from_ptr(copy.cast::<c_char>())
    }
}

/// In copy mode QEMU still wants a file of the right size to open; nothing is ever read from it.
fn sized_file(size: u64) -> i32 {
    let Ok(size) = libc::off_t::try_from(size) else { die("MAYFLY_PRELOAD: size is too large", 0) };
    if size == 0 {
        die("MAYFLY_PRELOAD: mode=copy needs size=BYTES", 0);
    }
    // SAFETY: a NUL-terminated name; the descriptor is used only when valid.
    unsafe {
        let fd = libc::memfd_create(c"mayfly-ram-size".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 || libc::ftruncate(fd, size) < 0 {
            die("cannot make a file of the guest's memory size", errno());
        }
        fd
    }
}

/// Device and inode of an open file.
pub(crate) fn identity(fd: i32) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `fstat` fills the struct when it returns 0, and only then is it read.
    unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return None;
        }
        let stat = stat.assume_init();
        Some((stat.st_dev, stat.st_ino))
    }
}
