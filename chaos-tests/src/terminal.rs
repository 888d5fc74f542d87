//! A program on a pseudoterminal, as a person at a keyboard has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mayfly_host::time_scale::scaled;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

/// Longest wait for a piece of output or the end. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A program whose controlling terminal is a pseudoterminal of ours. Killed when dropped.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    keyboard: File,
    /// Our own copy of the program's side, so that its settings can be looked at after its end.
    screen: OwnedFd,
    seen: Vec<u8>,
}

impl OnTerminal {
    /// Starts `command` on a terminal of this many rows and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a pseudoterminal");
        // The program must not hold our side: its hang-up would never come.
        nix::fcntl::fcntl(&master, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
            .expect("close-on-exec");
        nix::fcntl::fcntl(&slave, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
            .expect("close-on-exec");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and all the closure does; descriptor
        // 0 is the terminal then.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("a program on a terminal");
        Self { child, keyboard: File::from(master), screen: slave, seen: Vec::new() }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the terminal's settings.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.screen).expect("the settings of a terminal")
    }

    /// Types.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("keys");
    }

    /// Waits until `text` was on the screen, and returns all that was so far.
    pub fn until(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if seen.contains(text) {
                return seen;
            }
            assert!(begun.elapsed() < scaled(LIMIT), "{text:?} did not come: {seen:?}");
            assert!(
                self.read_some() || self.child.try_wait().expect("a status").is_none(),
                "it ended: {seen:?}"
            );
        }
    }

    /// Waits for its end; returns its exit code and all that was on the screen.
    pub fn wait(&mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            let more = self.read_some();
            match self.child.try_wait().expect("a status") {
                Some(status) if !more => break status,
                _ => assert!(
                    begun.elapsed() < scaled(LIMIT),
                    "it hangs: {:?}",
                    String::from_utf8_lossy(&self.seen)
                ),
            }
        };
        (status.code(), String::from_utf8_lossy(&self.seen).into_owned())
    }

    /// Reads what is on the screen now, waiting a moment for it.
    fn read_some(&mut self) -> bool {
        let mut fds = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(50u8)).unwrap_or(0);
        let mut buffer = [0; 4096];
        match (ready > 0).then(|| self.keyboard.read(&mut buffer)) {
            Some(Ok(n @ 1..)) => {
                self.seen.extend_from_slice(&buffer[..n]);
                true
            }
            _ => false,
        }
    }

    /// Takes the terminal away, as closing its window does: the program gets a hang-up.
    pub fn hang_up(mut self) -> (Option<i32>, u32) {
        let null = File::options().read(true).write(true).open("/dev/null").expect("/dev/null");
        debug_assert!(self.keyboard.as_raw_fd() >= 0);
        drop(std::mem::replace(&mut self.keyboard, null));
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                break status;
            }
            assert!(
                begun.elapsed() < scaled(LIMIT),
                "it does not end although its terminal is gone"
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        (status.code(), self.child.id())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
