//! The thread that sees whether the threads of the sessions come back.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{fatal, protocol::FailureKind, session::Session, threads::Threads};

/// How many looks a limit is divided into.
const LOOKS: u32 = 10;
/// Looks after which a session is failed whose thread waits for its VMM.
const PATIENCE: u32 = 3;

/// What a thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It waits for something to do.
    Nothing = 0,
    /// The pager's own work.
    Work = 1,
    /// A system call that waits for a lock of the VMM's address space.
    Call = 2,
}

/// What a watched thread says about itself: how often it has begun something else, and what it is
/// doing, in the low two bits. Only that thread writes it.
#[derive(Default)]
pub(crate) struct Beat(AtomicU64);

impl Beat {
    fn go(&self, doing: Doing) {
        let count = self.0.load(Ordering::Relaxed) >> 2;
        self.0.store((count + 1) << 2 | doing as u64, Ordering::Relaxed);
    }

    /// The thread has something to do, which must not take long.
    pub fn begin(&self) {
        self.go(Doing::Work);
    }

    /// It has done it.
    pub fn end(&self) {
        self.go(Doing::Nothing);
    }

    /// Makes a call that may wait for the VMM, as a part of the work.
    pub fn at_vmm<T>(&self, call: impl FnOnce() -> T) -> T {
        self.go(Doing::Call);
        let result = call();
        self.go(Doing::Work);
        result
    }

    fn look(&self) -> (u64, Doing) {
        let beat = self.0.load(Ordering::Relaxed);
        let doing = match beat & 3 {
            0 => Doing::Nothing,
            1 => Doing::Work,
            _ => Doing::Call,
        };
        (beat, doing)
    }
}

/// The thread. Ends when dropped.
pub(crate) struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Ends the process when one of `threads` is at one piece of the pager's own work for `limit`.
    /// When it is for long at a call that waits for its VMM, its session fails, and nobody else's:
    /// the VMM is killed then, and the call returns.
    pub fn start(threads: Arc<Threads>, limit: Duration) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let _guard = fatal::EndOnPanic("watchdog");
            if watch(&threads, limit / LOOKS, &stopped) {
                fatal::end(&format!("a thread that serves faults has not come back for {limit:?}"));
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Looks every `pause` until a thread is stuck, which is `true`, or until the end is asked for.
/// Looks are counted and no clock is read, so that a process which was stopped for a while, or had
/// no processor, is not taken for a stuck one.
fn watch(threads: &Threads, pause: Duration, stop: &AtomicBool) -> bool {
    let mut watched: HashMap<u64, Looks> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(pause);
        let running = threads.running();
        let mut last = std::mem::take(&mut watched);
        for session in running {
            let mut looks = last.remove(&session.id).unwrap_or_default();
            match looks.see(session.beat.look()) {
                Verdict::Fine => {}
                Verdict::AtVmm => blame(&session),
                Verdict::Stuck => return true,
            }
            watched.insert(session.id, looks);
        }
    }
    false
}

fn blame(session: &Session) {
    session.fail(
        FailureKind::Protocol,
        "the VMM holds up the pager: mapping a page for it does not return",
    );
}

/// What the looks at a thread have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// It waits for its VMM.
    AtVmm,
    /// It does not come back, and not for its VMM.
    Stuck,
}

/// The beat that was seen last, and how often in a row after the first time.
#[derive(Default)]
struct Looks {
    beat: u64,
    again: u32,
}

impl Looks {
    fn see(&mut self, (beat, doing): (u64, Doing)) -> Verdict {
        let same = doing != Doing::Nothing && beat == self.beat;
        *self = Self { beat, again: if same { self.again.saturating_add(1) } else { 0 } };
        match doing {
            Doing::Call if self.again >= PATIENCE => Verdict::AtVmm,
            Doing::Work if self.again >= LOOKS => Verdict::Stuck,
            _ => Verdict::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(beat: &Beat, times: u32) -> Vec<Verdict> {
        let mut looks = Looks::default();
        (0..times).map(|_| looks.see(beat.look())).collect()
    }

    #[test]
    fn long_work_is_found_and_much_short_work_or_a_long_rest_is_not() {
        let beat = Beat::default();
        let rest = seen(&beat, LOOKS * 3);
        assert!(rest.iter().all(|verdict| *verdict == Verdict::Fine));
        let mut looks = Looks::default();
        for _ in 0..20 {
            beat.begin();
            assert!((0..LOOKS).all(|_| looks.see(beat.look()) == Verdict::Fine), "short work");
            beat.end();
        }
        beat.begin();
        let stuck = seen(&beat, LOOKS + 1);
        assert_eq!(
            stuck.iter().position(|verdict| *verdict == Verdict::Stuck),
            Some(LOOKS as usize)
        );
    }

    #[test]
    fn a_long_call_is_the_vmms_and_never_the_pagers() {
        let beat = Beat::default();
        beat.begin();
        let verdicts = beat.at_vmm(|| seen(&beat, LOOKS * 3));
        let (before, after) = verdicts.split_at(PATIENCE as usize);
        assert!(before.iter().all(|verdict| *verdict == Verdict::Fine));
        assert!(after.iter().all(|verdict| *verdict == Verdict::AtVmm));
        let mut looks = Looks::default();
        for _ in 0..LOOKS * 3 {
            assert_eq!(beat.at_vmm(|| looks.see(beat.look())), Verdict::Fine, "many short ones");
        }
    }
}
