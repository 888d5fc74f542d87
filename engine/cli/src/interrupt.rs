//! Ctrl-C and termination.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask us to stop.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    /// Takes the signals over: from here on they do not end the process by themselves.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal, and returns its number.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hangup.recv() => libc::SIGHUP,
        }
    }

    /// Turns the first signal into a raised flag, for work that is not async. `raise` is called
    /// then: the work may take a while to end.
    pub fn into_flag(mut self, raise: impl FnOnce() + Send + 'static) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(false));
        let raised = flag.clone();
        tokio::spawn(async move {
            self.next().await;
            raised.store(true, Ordering::Relaxed);
            raise();
        });
        flag
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn the_first_signal_raises_the_flag_and_is_answered_at_once() {
        let (told, answered) = tokio::sync::oneshot::channel();
        let flag = Interrupts::install().unwrap().into_flag(move || told.send(()).unwrap());
        assert!(!flag.load(Ordering::Relaxed));
        raise(Signal::SIGHUP).unwrap();
        answered.await.unwrap();
        assert!(flag.load(Ordering::Relaxed));
    }
}
