//! Output of processes that a command has left behind: servers that a shell has started with `&` go
//! on after it, and must not die of a pipe that nobody reads (SIGPIPE in signal(7)).
//!
//! A thread of its own reads such pipes and forgets what comes, so that it costs the event loop
//! nothing. It ends with the last pipe.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Pipes that are read at a time. One more is closed, and who writes to it ends.
const MOST: usize = 1024;

/// Between two looks. Who writes without an end gets 64 KiB in this time, and others the processor.
const PAUSE: Duration = Duration::from_millis(2);

/// All that a pipe holds (pipe(7)).
const READ: usize = 64 * 1024;

/// Bytes of stack of the thread; what it reads is elsewhere.
const STACK: usize = 128 * 1024;

/// Pipes that looks find ready at a time.
const EVENTS: usize = 64;

/// What the wake-up is known by; no descriptor has so high a number.
const WAKE: u64 = u64::MAX;

/// Reads pipes that nobody asks for any more.
#[derive(Default)]
pub struct Left(OnceCell<Arc<Shared>>);

struct Shared {
    epoll: Epoll,
    wake: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pipes: HashMap<RawFd, OwnedFd>,
    /// Whether the thread is there.
    read: bool,
    thread: Option<JoinHandle<()>>,
}

impl Left {
    /// Reads `pipe`, which is not blocking, until nobody has its other end. Where that is not
    /// possible it is closed.
    pub fn read(&self, pipe: OwnedFd) {
        let shared = match self.0.get() {
            Some(shared) => shared,
            None => match Shared::new() {
                Ok(shared) => self.0.get_or_init(|| Arc::new(shared)),
                Err(_) => return,
            },
        };
        let _ = shared.add(pipe);
    }

    /// Closes all pipes, and waits until the thread is gone.
    pub fn clear(&self) {
        let Some(shared) = self.0.get() else { return };
        let thread = {
            let mut state = shared.state();
            state.pipes.clear();
            state.thread.take()
        };
        let _ = shared.wake.write(1);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self { epoll, wake, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: &Arc<Self>, pipe: OwnedFd) -> io::Result<()> {
        let mut state = self.state();
        if state.pipes.len() >= MOST {
            return Ok(());
        }
        if !state.read {
            let shared = Arc::clone(self);
            let thread = thread::Builder::new().name("left-behind".into()).stack_size(STACK);
            state.thread = Some(thread.spawn(move || shared.run())?);
            state.read = true;
        }
        let number = pipe.as_raw_fd();
        let key = u64::from(number.unsigned_abs());
        self.epoll.add(&pipe, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        state.pipes.insert(number, pipe);
        Ok(())
    }

    /// Reads until there is nothing left to read.
    fn run(&self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; READ];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(_) => {
                    *self.state() = State::default();
                    return;
                }
            };
            let mut state = self.state();
            for event in &events[..count] {
                let Ok(number) = RawFd::try_from(event.data()) else {
                    let _ = self.wake.read();
                    continue;
                };
                // One that was closed meanwhile is not there any more.
                let Some(pipe) = state.pipes.get(&number) else { continue };
                match nix::unistd::read(pipe, &mut buffer) {
                    Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Ok(0) | Err(_) => drop(state.pipes.remove(&number)),
                }
            }
            if state.pipes.is_empty() {
                state.read = false;
                return;
            }
            drop(state);
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::{PipeWriter, Write};

    fn pipe() -> (OwnedFd, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (reader.into(), writer)
    }

    fn wait_for(left: &Left, is: impl Fn(&State) -> bool) {
        while !is(&left.0.get().unwrap().state()) {
            thread::sleep(PAUSE);
        }
    }

    #[test]
    fn what_is_written_goes_nowhere_and_the_thread_ends_with_the_last_writer() {
        let left = Left::default();
        for _ in 0..2 {
            let (first, second) = (pipe(), pipe());
            left.read(first.0);
            left.read(second.0);
            let mut writers = [first.1, second.1];
            for writer in &mut writers {
                writer.write_all(&vec![7; 10 * READ]).unwrap();
            }
            drop(writers);
            wait_for(&left, |state| state.pipes.is_empty() && !state.read);
        }
    }

    #[test]
    fn pipes_are_bounded_and_closed_when_they_are_to_be() {
        let left = Left::default();
        let (readers, mut writers): (Vec<_>, Vec<_>) = (0..=MOST).map(|_| pipe()).unzip();
        readers.into_iter().for_each(|reader| left.read(reader));
        assert_eq!(left.0.get().unwrap().state().pipes.len(), MOST);
        let closed = writers.last_mut().unwrap().write(b"x").unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe);
        writers[0].write_all(b"x").unwrap();
        left.clear();
        assert_eq!(writers[0].write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        wait_for(&left, |state| !state.read);
    }
}
