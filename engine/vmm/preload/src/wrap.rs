//! The libc functions QEMU finds here instead of in libc. What does not concern guest memory goes
//! to the kernel unchanged, by the system call itself where that is all libc does: no symbol
//! lookup, so these work at any time, also before this library's own start.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::{config, die::die, register};

/// `open*` of the RAM path: a duplicate of the read-only descriptor, whatever access was asked for.
fn ram_file(path: *const c_char, flags: c_int) -> Option<c_int> {
    let config = config::get()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller of open(2) passes a NUL-terminated string.
    let path = unsafe { CStr::from_ptr(path) };
    if path != config.ram {
        return None;
    }
    let command = if flags & libc::O_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
    // SAFETY: duplicates a descriptor of ours; failure is reported as open(2) would.
    Some(unsafe { libc::fcntl(config.ram_fd, command, 0) })
}

#[expect(clippy::cast_possible_truncation, reason = "openat(2) returns an int")]
fn open_any(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    if let Some(fd) = ram_file(path, flags) {
        return fd;
    }
    let creates = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    // The optional argument is whatever its register holds when the caller gave none.
    let mode = if creates { mode } else { 0 };
    // SAFETY: the caller's own arguments; errno is set by `syscall`.
    unsafe { libc::syscall(libc::SYS_openat, dir, path, flags, mode) as c_int }
}

// `open` is variadic in C; on x86-64 and arm64 Linux a variadic integer is passed like a named one.

/// open(2)
#[unsafe(no_mangle)]
extern "C" fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_any(libc::AT_FDCWD, path, flags, mode)
}

/// open(2) with large file offsets
#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_any(libc::AT_FDCWD, path, flags, mode)
}

/// openat(2)
#[unsafe(no_mangle)]
extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_any(dir, path, flags, mode)
}

/// openat(2) with large file offsets
#[unsafe(no_mangle)]
extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    open_any(dir, path, flags, mode)
}

/// open(2) as called by code built with `_FORTIFY_SOURCE` when the flags are no constant
#[unsafe(no_mangle)]
extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    open_any(libc::AT_FDCWD, path, flags, 0)
}

/// As `__open_2`, with large file offsets
#[unsafe(no_mangle)]
extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    open_any(libc::AT_FDCWD, path, flags, 0)
}

/// As `__open_2`, relative to a directory
#[unsafe(no_mangle)]
extern "C" fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    open_any(dir, path, flags, 0)
}

/// As `__openat_2`, with large file offsets
#[unsafe(no_mangle)]
extern "C" fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    open_any(dir, path, flags, 0)
}

/// The system call itself.
///
/// # Safety
/// As for mmap(2).
pub(crate) unsafe fn real_mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: passed on from the caller. -1, the error, is MAP_FAILED.
    unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot, flags, fd, offset) as *mut c_void }
}

fn map_any(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if fd >= 0
        && flags & libc::MAP_ANONYMOUS == 0
        && let Some(config) = config::get()
        && config::identity(fd) == Some(config.identity)
    {
        return register::map(config, addr, len, prot, flags, offset);
    }
    // SAFETY: the caller's own arguments.
    unsafe { real_mmap(addr, len, prot, flags, fd, offset) }
}

/// mmap(2)
#[unsafe(no_mangle)]
extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    map_any(addr, len, prot, flags, fd, offset)
}

/// mmap(2) with large file offsets
#[unsafe(no_mangle)]
extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    map_any(addr, len, prot, flags, fd, offset)
}

/// madvise(2). A zygote's memory must be in its children, also what QEMU would keep out of them.
#[unsafe(no_mangle)]
#[expect(clippy::cast_possible_truncation, reason = "madvise(2) returns an int")]
extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    if advice == libc::MADV_DONTFORK && config::get().is_some_and(|config| config.zygote >= 0) {
        return 0;
    }
    // SAFETY: the caller's own arguments; errno is set by `syscall`.
    unsafe { libc::syscall(libc::SYS_madvise, addr, len, advice) as c_int }
}

/// gnutls_rnd(3), from which QEMU takes what a guest's RDRAND and RDSEED return. GnuTLS's own
/// generator notices a fork through handlers that a zygote's fork does not run, and relatives would
/// draw equal numbers: here they come from the kernel.
#[unsafe(no_mangle)]
extern "C" fn gnutls_rnd(_level: c_int, data: *mut c_void, len: usize) -> c_int {
    const GNUTLS_E_RANDOM_FAILED: c_int = -206;
    let mut done = 0;
    while done < len {
        // SAFETY: the caller passes `len` writable bytes at `data`; what is left of them is filled.
        let count = unsafe { libc::getrandom(data.cast::<u8>().add(done).cast(), len - done, 0) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) if crate::die::errno() == libc::EINTR => {}
            Err(_) => return GNUTLS_E_RANDOM_FAILED,
        }
    }
    0
}

type SigAction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

/// sigaction(2). QEMU installs its SIGTERM handler once the machine is built and before its main
/// loop (`os_setup_signal_handling`, from `qemu_init`): the moment by which guest memory must be
/// mapped. Earlier signs are no good: `ppoll` is also called while disks are opened, before there
/// is any memory.
#[unsafe(no_mangle)]
extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    if signal == libc::SIGTERM && !new.is_null() {
        register::require_mapped();
        #[cfg(target_arch = "x86_64")]
        crate::confine::machine_built();
    }
    let mut real = REAL.load(Ordering::Relaxed);
    if real.is_null() {
        // SAFETY: a NUL-terminated name; the lookup is idempotent, so that a race stores the same
        // address twice.
        real = unsafe { libc::dlsym(libc::RTLD_NEXT, c"sigaction".as_ptr()) };
        if real.is_null() {
            die("libc has no sigaction", 0);
        }
        REAL.store(real, Ordering::Relaxed);
    }
    // SAFETY: libc's function of this name and type, with the caller's own arguments.
    unsafe { std::mem::transmute::<*mut c_void, SigAction>(real)(signal, new, old) }
}
