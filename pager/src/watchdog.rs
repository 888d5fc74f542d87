//! The thread that sees whether the fault thread comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::fatal;

/// How many looks a limit is divided into.
const LOOKS: u32 = 10;

/// What the watched thread says about itself.
#[derive(Default)]
pub(crate) struct Beat {
    /// Steps begun and ended: odd while the thread is in one.
    steps: AtomicU64,
    stop: AtomicBool,
}

impl Beat {
    /// The thread begins or ends a step, which must not take long.
    pub fn toggle(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread has ended one step and begins another.
    pub fn next(&self) {
        self.steps.fetch_add(2, Ordering::Relaxed);
    }

    fn step(&self) -> Option<u64> {
        Some(self.steps.load(Ordering::Relaxed)).filter(|steps| steps % 2 == 1)
    }
}

/// The thread. Ends when dropped.
pub(crate) struct Watchdog {
    beat: Arc<Beat>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Ends the process when one step of `beat` takes `limit`.
    pub fn start(beat: Arc<Beat>, limit: Duration) -> std::io::Result<Self> {
        let watched = Arc::clone(&beat);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let _guard = fatal::EndOnPanic("watchdog");
            if watch(&watched, limit / LOOKS) {
                fatal::end(&format!(
                    "the thread that serves faults has not come back for {limit:?}"
                ));
            }
        })?;
        Ok(Self { beat, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.beat.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Looks every `pause` until the same step has been seen more than [`LOOKS`] times in a row: true;
/// or until the end is asked for. Looks are counted and no clock is read, so that a process which
/// was stopped for a while, or had no processor, is not taken for a stuck one.
fn watch(beat: &Beat, pause: Duration) -> bool {
    let mut seen = (None, 0);
    while !beat.stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(pause);
        let step = beat.step();
        seen = if step.is_some() && step == seen.0 { (step, seen.1 + 1) } else { (step, 0) };
        if seen.1 >= LOOKS {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_step_is_found_and_many_short_ones_or_a_long_rest_are_not() {
        let beat = Arc::new(Beat::default());
        let (watched, pause) = (Arc::clone(&beat), Duration::from_millis(1));
        let rest = std::thread::spawn(move || watch(&watched, pause));
        std::thread::sleep(pause * LOOKS * 3);
        beat.toggle();
        for _ in 0..LOOKS * 20 {
            beat.next();
            std::thread::sleep(pause / 2);
        }
        beat.toggle();
        assert!(!rest.is_finished());
        beat.toggle();
        assert!(rest.join().unwrap());
    }
}
