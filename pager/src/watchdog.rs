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
/// Looks after which the session is failed that the thread is at.
const PATIENCE: u32 = 3;

/// What the watched thread says about itself.
#[derive(Default)]
pub(crate) struct Beat {
    /// Steps begun and ended: odd while the thread is in one.
    steps: AtomicU64,
    /// The session that the step is for.
    session: AtomicU64,
    stop: AtomicBool,
}

impl Beat {
    /// The thread begins or ends a step, which must not take long.
    pub fn toggle(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The step is for this session.
    pub fn serve(&self, session: u64) {
        self.session.store(session, Ordering::Relaxed);
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
    ///
    /// Before that, `blame` gets the session that the step is for.
    pub fn start(
        beat: Arc<Beat>,
        limit: Duration,
        blame: impl Fn(u64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let watched = Arc::clone(&beat);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let _guard = fatal::EndOnPanic("watchdog");
            if watch(&watched, limit / LOOKS, &blame) {
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

/// Looks every `pause` until a step has taken too long, which is `true`, or until the end is asked
/// for. Looks are counted and no clock is read, so that a process which was stopped for a while, or
/// had no processor, is not taken for a stuck one.
fn watch(beat: &Beat, pause: Duration, blame: &dyn Fn(u64)) -> bool {
    let mut looks = Looks::default();
    while !beat.stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(pause);
        if looks.see(beat.step()) {
            return true;
        }
        if looks.again == PATIENCE {
            blame(beat.session.load(Ordering::Relaxed));
        }
    }
    false
}

/// The step that was seen last, and how often in a row after the first time.
#[derive(Default)]
struct Looks {
    step: Option<u64>,
    again: u32,
}

impl Looks {
    /// Takes note of the step that the thread is in; returns whether it was the same for [`LOOKS`]
    /// looks.
    fn see(&mut self, step: Option<u64>) -> bool {
        let same = step.is_some() && step == self.step;
        *self = Self { step, again: if same { self.again + 1 } else { 0 } };
        self.again >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_step_is_found_and_many_short_ones_or_a_long_rest_are_not() {
        let (beat, mut looks) = (Beat::default(), Looks::default());
        assert!((0..LOOKS * 3).all(|_| !looks.see(beat.step())), "a rest");
        beat.toggle();
        for _ in 0..20 {
            assert!((0..LOOKS).all(|_| !looks.see(beat.step())), "a short step");
            beat.next();
        }
        beat.toggle();
        assert!(!looks.see(beat.step()));
        beat.toggle();
        let seen: Vec<bool> = (0..=LOOKS).map(|_| looks.see(beat.step())).collect();
        assert_eq!(seen.iter().position(|stuck| *stuck), Some(LOOKS as usize));
    }

    #[test]
    fn the_watch_ends_at_a_step_that_does_not() {
        let (beat, blamed) = (Beat::default(), parking_lot::Mutex::new(Vec::new()));
        beat.toggle();
        beat.serve(7);
        let pause = Duration::from_millis(1);
        assert!(watch(&beat, pause, &|session| blamed.lock().push(session)));
        beat.stop.store(true, Ordering::Relaxed);
        assert!(!watch(&beat, pause, &|_| ()));
        assert_eq!(blamed.into_inner(), [7]);
    }
}
