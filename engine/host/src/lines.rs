//! Lines of a log that others can cause at will: few for each of them, so that nobody pushes lines
//! of others out of a log that is bounded itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// How many lines there are after a pause, and how many come back in a second.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// After a pause.
    pub burst: f64,
    /// In a second.
    pub per_second: f64,
}

/// A bucket that fills again with time.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
    }

    fn has_one(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= 1.0
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.rate.burst
    }
}

/// Leave to write a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    /// Lines of the same key that were left out before it, where some were.
    pub left_out: Option<u64>,
}

/// Answer to whoever wants to write a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<K> {
    /// Leave, unless there were many a moment ago.
    pub leave: Option<Leave>,
    /// Keys that were forgotten, with how many lines of each were left out since its last one. Its
    /// next one does not say so any more.
    pub forgotten: Vec<(K, u64)>,
}

/// Rates of lines, of each key and of all together.
#[derive(Debug)]
pub struct Lines<K> {
    of_each: Rate,
    all: Option<Bucket>,
    most: usize,
    entries: HashMap<K, Entry>,
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    left_out: u64,
}

impl<K: Eq + Hash> Lines<K> {
    /// Creates them for at most `most` keys that are told apart.
    pub fn new(of_each: Rate, most: usize) -> Self {
        Self { of_each, all: None, most, entries: HashMap::new() }
    }

    /// Bounds all keys together, too.
    #[must_use]
    pub fn with_all(mut self, rate: Rate, now: Instant) -> Self {
        self.all = Some(Bucket::new(rate, now));
        self
    }

    /// Gives leave to write a line, unless there were many a moment ago. Where there are too many
    /// keys it is one of `others`.
    ///
    /// A key is forgotten only when that gives it nothing: its bucket is full.
    pub fn admit(&mut self, now: Instant, mut key: K, others: K) -> Answer<K> {
        let mut forgotten = Vec::new();
        if self.entries.len() >= self.most && !self.entries.contains_key(&key) {
            let quiet = self.entries.extract_if(|_, entry| entry.bucket.is_full(now));
            let quiet = quiet.map(|(key, entry)| (key, entry.left_out));
            forgotten.extend(quiet.filter(|(_, left_out)| *left_out > 0));
            if self.entries.len() >= self.most {
                key = others;
            }
        }
        let new = || Entry { bucket: Bucket::new(self.of_each, now), left_out: 0 };
        let entry = self.entries.entry(key).or_insert_with(new);
        let all_have_one = self.all.as_mut().is_none_or(|all| all.has_one(now));
        if !(entry.bucket.has_one(now) && all_have_one) {
            entry.left_out += 1;
            return Answer { leave: None, forgotten };
        }
        entry.bucket.left -= 1.0;
        if let Some(all) = &mut self.all {
            all.left -= 1.0;
        }
        let left_out = std::mem::take(&mut entry.left_out);
        let leave = Leave { left_out: (left_out > 0).then_some(left_out) };
        Answer { leave: Some(leave), forgotten }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FIRST: Option<Leave> = Some(Leave { left_out: None });

    fn after(left_out: u64) -> Leave {
        Leave { left_out: Some(left_out) }
    }

    fn few(most: usize) -> Lines<String> {
        Lines::new(Rate { burst: 30.0, per_second: 1.0 }, most)
    }

    fn admit(lines: &mut Lines<String>, now: Instant, key: &str) -> Answer<String> {
        lines.admit(now, key.to_owned(), "others".to_owned())
    }

    #[test]
    fn each_has_few_lines_and_is_told_how_many_were_left_out() {
        let begun = Instant::now();
        let mut lines = few(10);
        let written = (0..10_000).filter(|_| admit(&mut lines, begun, "a").leave.is_some());
        assert_eq!(written.count(), 30);
        // Another has its own.
        assert_eq!(admit(&mut lines, begun, "b").leave, FIRST);
        let later = begun + Duration::from_millis(1001);
        assert_eq!(admit(&mut lines, later, "a").leave, Some(after(9970)));
        assert_eq!(admit(&mut lines, later, "a").leave, None);
        let later = begun + Duration::from_secs(3);
        assert_eq!(admit(&mut lines, later, "a").leave, Some(after(1)));
    }

    #[test]
    fn any_number_of_keys_has_a_rate_together_and_is_bounded() {
        let begun = Instant::now();
        let all = Rate { burst: 1000.0, per_second: 50.0 };
        let mut lines = few(1024).with_all(all, begun);
        let mut written = 0;
        for millisecond in 0..30_000 {
            let now = begun + Duration::from_millis(millisecond);
            let key = (millisecond % 5000).to_string();
            written += u32::from(admit(&mut lines, now, &key).leave.is_some());
            written += u32::from(admit(&mut lines, now, &format!("also {key}")).leave.is_some());
        }
        assert!((1000..=2600).contains(&written), "{written}");
        assert!(lines.entries.len() <= 1024 + 1, "{}", lines.entries.len());
        // Who has been quiet is forgotten, and a new one has lines of its own again.
        let later = begun + Duration::from_secs(100);
        for n in 0..900 {
            assert_eq!(admit(&mut lines, later, &format!("new {n}")).leave, FIRST, "{n}");
        }
        assert!(lines.entries.len() <= 1024, "{}", lines.entries.len());
    }

    #[test]
    fn what_was_left_out_is_told_when_its_key_is_forgotten() {
        let begun = Instant::now();
        let mut lines = few(2);
        for _ in 0..40 {
            admit(&mut lines, begun, "a");
        }
        admit(&mut lines, begun, "b");
        // Not while it would have more lines for it than otherwise.
        let soon = begun + Duration::from_secs(29);
        assert_eq!(admit(&mut lines, soon, "c"), Answer { leave: FIRST, forgotten: vec![] });
        for _ in 0..30 {
            assert_eq!(admit(&mut lines, soon, "d").leave, FIRST);
        }
        assert_eq!(admit(&mut lines, soon, "d").leave, None);
        let later = begun + Duration::from_secs(30);
        let told = Answer { leave: FIRST, forgotten: vec![("a".to_owned(), 10)] };
        assert_eq!(admit(&mut lines, later, "e"), told);
    }
}
