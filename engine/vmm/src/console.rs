//! The last output of a guest's serial console, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mayfly_protocol::is_printable;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// Bytes kept of a console.
pub const TAIL_BYTES: usize = 16 << 10;
/// Bytes taken of one stream in each [`WINDOW`]: many times what a kernel prints that boots.
pub(crate) const MOST_BYTES: usize = 1 << 20;
pub(crate) const WINDOW: Duration = Duration::from_secs(1);

/// Bounds what it costs to listen to a VMM, which may send without end once it was taken over. Of
/// consoles and of QMP.
#[derive(Debug)]
pub(crate) struct Throttle {
    begun: Instant,
    taken: usize,
}

impl Throttle {
    pub fn new(now: Instant) -> Self {
        Self { begun: now, taken: 0 }
    }

    /// Counts bytes that were taken; says until when to take no more, when it was too much.
    pub fn count(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        if now >= self.begun + WINDOW {
            *self = Self::new(now);
        }
        self.taken += bytes;
        (self.taken >= MOST_BYTES).then(|| {
            let end = self.begun + WINDOW;
            *self = Self::new(end);
            end
        })
    }
}

/// A shared view of the last [`TAIL_BYTES`] a console has printed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    printed: Arc<AtomicU64>,
}

impl ConsoleTail {
    /// Starts a task that drains `stream` until it closes. However much a hostile guest prints,
    /// only the tail is kept; and what it prints faster than 1 MiB a second waits in the VMM.
    pub fn follow(mut stream: UnixStream) -> Self {
        let tail = Self::default();
        let writer = tail.clone();
        tokio::spawn(async move {
            let mut buffer = [0u8; 4096];
            let mut throttle = Throttle::new(Instant::now());
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                writer.push(&buffer[..n]);
                if let Some(then) = throttle.count(n, Instant::now()) {
                    tokio::time::sleep_until(then).await;
                }
            }
        });
        tail
    }

    fn push(&self, new: &[u8]) {
        let mut bytes = self.bytes.lock();
        bytes.extend(new);
        let excess = bytes.len().saturating_sub(TAIL_BYTES);
        bytes.drain(..excess);
        self.printed.fetch_add(new.len() as u64, Ordering::Relaxed);
    }

    /// Returns the number of bytes that it has printed in all.
    pub fn printed(&self) -> u64 {
        self.printed.load(Ordering::Relaxed)
    }

    /// Returns the last `count` lines, printable characters only (a console must not be able to
    /// steer the terminal that shows it).
    pub fn last_lines(&self, count: usize) -> String {
        let bytes: Vec<u8> = {
            let bytes = self.bytes.lock();
            bytes.iter().copied().collect()
        };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| is_printable(*c) || *c == '\t').collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_the_tail_and_no_control_characters() {
        let tail = ConsoleTail::default();
        tail.push(&vec![b'x'; 3 * TAIL_BYTES]);
        tail.push("\nfirst\n\x1b[31msec\u{202e}ond\r\n\n".as_bytes());
        assert_eq!(tail.bytes.lock().len(), TAIL_BYTES);
        assert_eq!(tail.printed(), 3 * TAIL_BYTES as u64 + 24);
        assert_eq!(tail.last_lines(2), "first\n[31msecond");
    }

    #[test]
    fn a_console_that_prints_without_end_is_drained_at_a_bounded_rate() {
        let begun = Instant::now();
        let (mut throttle, mut now, mut taken) = (Throttle::new(begun), begun, 0);
        // As fast as it can: no time passes but what it has to wait.
        while taken < 100 * MOST_BYTES {
            taken += 4096;
            now = throttle.count(4096, now).unwrap_or(now);
        }
        assert_eq!(now - begun, 100 * WINDOW);
    }

    #[test]
    fn a_console_that_prints_as_kernels_do_never_waits() {
        let begun = Instant::now();
        let mut throttle = Throttle::new(begun);
        for tenth in 0..1000 {
            let now = begun + tenth * WINDOW / 10;
            assert_eq!(throttle.count(64 << 10, now), None);
        }
    }
}
