//! Ending the process with one clear line.

/// Exit status of every failure (`EX_OSERR` of sysexits.h).
pub(crate) const STATUS: i32 = 71;

/// Writes `mayfly-preload: WHAT: ERRNO` to stderr, without allocating, and ends the process at
/// once.
pub(crate) fn die(what: &str, errno: i32) -> ! {
    die_saying(&[what.as_bytes()], errno)
}

/// As [`die`], with what it says in pieces.
pub(crate) fn die_saying(what: &[&[u8]], errno: i32) -> ! {
    let mut line = Line { bytes: [0; 400], len: 0 };
    line.push(b"mayfly-preload: ");
    what.iter().for_each(|piece| line.push(piece));
    if errno != 0 {
        line.push(b": ");
        // SAFETY: strerror returns a NUL-terminated string for every number; the process ends here,
        // so that a buffer shared with other threads does not matter.
        line.push(unsafe { std::ffi::CStr::from_ptr(libc::strerror(errno)) }.to_bytes());
    }
    line.push(b"\n");
    // SAFETY: writes from a valid buffer and ends the process without running handlers.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(STATUS)
    }
}

/// The errno of the last failed libc call.
pub(crate) fn errno() -> i32 {
    // SAFETY: the thread's errno location is always valid.
    unsafe { *libc::__errno_location() }
}

struct Line {
    bytes: [u8; 400],
    len: usize,
}

impl Line {
    fn push(&mut self, more: &[u8]) {
        // The last byte is kept for the newline.
        let room = self.bytes.len() - usize::from(more != b"\n") - self.len;
        let n = more.len().min(room);
        self.bytes[self.len..self.len + n].copy_from_slice(&more[..n]);
        self.len += n;
    }
}
