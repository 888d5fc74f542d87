//! The person's terminal in raw mode, restored whatever happens.

use std::os::fd::AsFd;

use mayfly_guest::channel::TtySize;
use nix::sys::termios::{self, SetArg, Termios};

/// Standard input in raw mode until dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn enter() -> nix::Result<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// Returns the size of the terminal of standard output; 24 by 80 when it does not say
/// (tty_ioctl(4)).
pub fn size() -> TtySize {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            TtySize { rows: size.ws_row, cols: size.ws_col }
        }
        _ => TtySize { rows: 24, cols: 80 },
    }
}
