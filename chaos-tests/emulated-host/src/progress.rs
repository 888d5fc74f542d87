//! Progress lines on standard error.

use std::time::{Duration, Instant};

/// How often a long step says how far it is.
const INTERVAL: Duration = Duration::from_secs(15);

/// Prints one line.
pub fn say(line: &str) {
    eprintln!("emulated host: {line}");
}

/// A step of a known number of parts. Says how far it is every 15 seconds.
#[derive(Debug)]
pub struct Counted {
    title: String,
    done: usize,
    total: usize,
    said: Instant,
}

impl Counted {
    /// Begins it.
    pub fn new(title: String, total: usize) -> Self {
        say(&title);
        Self { title, done: 0, total, said: Instant::now() }
    }

    /// Prints progress; to be called often; `one_more` when another part is done.
    pub fn tick(&mut self, one_more: bool) {
        self.done += usize::from(one_more);
        if self.said.elapsed() > INTERVAL {
            self.said = Instant::now();
            say(&format!("{} ({} of {})", self.title, self.done.min(self.total), self.total));
        }
    }
}
