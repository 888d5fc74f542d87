//! The last output of a guest's serial console, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mayfly_protocol::is_printable;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Bytes kept of a console.
pub const TAIL_BYTES: usize = 16 << 10;

/// A shared view of the last [`TAIL_BYTES`] a console has printed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    printed: Arc<AtomicU64>,
}

impl ConsoleTail {
    /// Starts a task that drains `stream` until it closes. However much a hostile guest prints,
    /// only the tail is kept.
    pub fn follow(mut stream: UnixStream) -> Self {
        let tail = Self::default();
        let writer = tail.clone();
        tokio::spawn(async move {
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                writer.push(&buffer[..n]);
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
}
