//! Progress where there is no terminal: a line at the end of each step, and one now and then while
//! it goes on.

use std::io::Write;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use mayfly_engine::progress::{Progress, Unit};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::bars::Shown;

/// Time between two lines about a step that goes on.
const PERIOD: Duration = Duration::from_secs(15);

/// Writer of lines, those of steps that go on from a thread of its own.
pub struct Lines {
    period: Duration,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    out: Box<dyn Write + Send>,
    step: Option<Step>,
    ended: bool,
}

struct Step {
    name: String,
    unit: Unit,
    total: Option<u64>,
    done: u64,
    begun: Instant,
    /// When the next line is due.
    due: Instant,
}

impl Lines {
    /// Creates a writer of lines to standard error.
    pub fn new() -> Self {
        Self::with(PERIOD, Box::new(std::io::stderr()))
    }

    fn with(period: Duration, out: Box<dyn Write + Send>) -> Self {
        let state = Mutex::new(State { out, step: None, ended: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        // Without the thread only the ends of steps are told.
        let thread = std::thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || of_thread.run(period))
            .ok();
        Self { period, shared, thread }
    }

    fn replace(&self, next: Option<Step>) {
        let mut state = self.shared.lock();
        if let Some(step) = std::mem::replace(&mut state.step, next) {
            // Progress that nobody reads is no error.
            let _ = writeln!(
                state.out,
                "{}: done in {}",
                step.name,
                super::bars::seconds(step.begun.elapsed())
            );
        }
        self.shared.changed.notify_one();
    }

    fn with_step(&self, change: impl FnOnce(&mut Step)) {
        if let Some(step) = &mut self.shared.lock().step {
            change(step);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn run(&self, period: Duration) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            let wait = state.step.as_ref().map(|step| step.due.saturating_duration_since(now));
            match wait {
                None => self.changed.wait(&mut state),
                Some(Duration::ZERO) => state.tell(now + period),
                Some(wait) => drop(self.changed.wait_for(&mut state, wait)),
            }
        }
    }
}

impl State {
    fn tell(&mut self, next: Instant) {
        if let Some(step) = &mut self.step {
            step.due = next;
            let _ = writeln!(self.out, "{}", step.line());
        }
    }
}

impl Step {
    fn line(&self) -> String {
        let Self { name, done, .. } = self;
        let so_far = match (self.total, self.unit) {
            (None, _) => String::new(),
            (Some(total), Unit::Items) => format!("{done} of {total}, "),
            (Some(total), Unit::Bytes) => {
                format!("{} of {}, ", HumanBytes(*done), HumanBytes(total))
            }
        };
        format!("{name}: {so_far}{} s", self.begun.elapsed().as_secs())
    }
}

impl Progress for Lines {
    fn begin(&self, step: &str, total: Option<u64>, unit: Unit) {
        let begun = Instant::now();
        self.replace(Some(Step {
            name: step.to_owned(),
            unit,
            total,
            done: 0,
            begun,
            due: begun + self.period,
        }));
    }

    fn total(&self, total: Option<u64>) {
        self.with_step(|step| step.total = total.or(step.total));
    }

    fn advance(&self, done: u64) {
        self.with_step(|step| step.done = done);
    }

    fn detail(&self, _: &str) {}

    fn end(&self) {
        self.replace(None);
    }
}

impl Shown for Lines {
    fn say(&self, line: &str) {
        let _ = writeln!(self.shared.lock().out, "{line}");
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written so far.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }

        fn wait_for(&self, line: &str) {
            for _ in 0..6000 {
                if self.text().lines().any(|written| written.starts_with(line)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("no line {line:?} within a minute: {}", self.text());
        }
    }

    #[test]
    fn a_step_that_goes_on_says_how_far_it_is_again_and_again() {
        let written = Written::default();
        let lines = Lines::with(Duration::from_millis(5), Box::new(written.clone()));
        lines.begin("unpack", Some(10), Unit::Items);
        lines.advance(3);
        written.wait_for("unpack: 3 of 10, ");
        lines.total(Some(20));
        lines.total(None);
        written.wait_for("unpack: 3 of 20, ");
        lines.begin("store", Some(4 << 20), Unit::Bytes);
        lines.advance(1 << 20);
        written.wait_for("unpack: done in ");
        written.wait_for("store: 1.00 MiB of 4.00 MiB, ");
        lines.begin("boot", None, Unit::Items);
        written.wait_for("boot: 0 s");
        drop(lines);
        assert!(!written.text().contains("boot: done"), "a step that was cut off is not done");
        assert_eq!(Arc::strong_count(&written.0), 1, "the thread has ended");
    }

    #[test]
    fn a_line_of_its_own_comes_at_once() {
        let written = Written::default();
        let lines = Lines::with(PERIOD, Box::new(written.clone()));
        lines.begin("unpack", Some(10), Unit::Items);
        lines.say("stopping the build ...");
        assert_eq!(written.text(), "stopping the build ...\n");
    }

    #[test]
    fn a_quick_step_is_one_line() {
        let written = Written::default();
        let lines = Lines::with(PERIOD, Box::new(written.clone()));
        lines.begin("probe", None, Unit::Items);
        lines.end();
        drop(lines);
        assert!(
            written.text().starts_with("probe: done in ") && written.text().lines().count() == 1
        );
    }
}
