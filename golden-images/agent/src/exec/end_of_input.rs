//! The end of input on a terminal. A pipe ends for whoever reads it, now and later. A terminal has a
//! character for it (VEOF in termios(3)), which ends one read: after an unfinished line it only hands
//! that line over, and after Ctrl-V it is a character like others.
//!
//! So it is typed, and typed again whenever all that was typed before has been read. Where the
//! terminal is not in canonical mode, it means what its program makes of it, such as a line editor
//! that ends: it is typed once each time the terminal changes to that mode.

use nix::errno::Errno;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;
use tokio::time::Instant;

/// Pauses between two looks: the first after something was typed, and the longest.
const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(320);

/// The value of a character that is switched off (_POSIX_VDISABLE in termios(3)).
const DISABLED: u8 = 0;

/// Types the end of input until its command has ended.
pub struct EndOfInput {
    next: Instant,
    pause: Duration,
    begun: bool,
    /// Whether it was typed since the terminal left canonical mode.
    typed_raw: bool,
}

impl EndOfInput {
    /// Begins at once.
    pub fn new() -> Self {
        Self { next: Instant::now(), pause: FIRST, begun: false, typed_raw: false }
    }

    /// Returns when to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks at the terminal behind `master`, which is not blocking, and types where it is time.
    pub fn look(&mut self, master: BorrowedFd) {
        if self.type_where_it_is_time(master).unwrap_or(false) {
            self.pause = FIRST;
        } else {
            self.pause = (2 * self.pause).min(LONGEST);
        }
        self.next = Instant::now() + self.pause;
    }

    fn type_where_it_is_time(&mut self, master: BorrowedFd) -> nix::Result<bool> {
        let settings = tcgetattr(master)?;
        let raw = !settings.local_flags.contains(LocalFlags::ICANON);
        let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        self.typed_raw &= raw;
        if end == DISABLED || self.typed_raw || (self.begun && has_unread(master)?) {
            return Ok(false);
        }
        // What is full is read first.
        nix::unistd::write(master, &[end])?;
        (self.begun, self.typed_raw) = (true, raw);
        Ok(true)
    }
}

/// Whether somebody still has to read what was typed.
fn has_unread(master: BorrowedFd) -> nix::Result<bool> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags of open(2), and returns a descriptor that nobody else has
    // (ioctl_tty(2)). It is not kept: the master would never tell of the end.
    let slave = unsafe {
        let number = Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        OwnedFd::from_raw_fd(number)
    };
    let mut polled = [nix::poll::PollFd::new(slave.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO)?;
    Ok(polled[0].any().unwrap_or(false))
}
