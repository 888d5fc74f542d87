//! How fast the queue moves, and thereby which requests wait in vain.

use std::time::{Duration, Instant};

/// What is older than this counts for half, as long as enough is left.
const WINDOW: Duration = Duration::from_secs(8);
/// Turns that must have been observed before anything is told from them.
const ENOUGH: f64 = 16.0;
/// How many times its deadline a request must seem to need: the observed rate may be that of a slow
/// moment.
const DOUBT: f64 = 1.5;

/// Turns since requests wait.
#[derive(Debug, Default)]
pub(super) struct Drain {
    since: Option<Instant>,
    turns: f64,
}

impl Drain {
    /// Takes note that a request begins to wait.
    pub fn waits(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Takes note of a turn.
    pub fn turn(&mut self, now: Instant) {
        let Some(since) = self.since else { return };
        self.turns += 1.0;
        let observed = now.saturating_duration_since(since);
        if observed > WINDOW && self.turns >= 2.0 * ENOUGH {
            self.since = Some(since + observed / 2);
            self.turns /= 2.0;
        }
    }

    /// Forgets what was observed: nobody waits for starts any more.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How long until `ahead` others and one more have had their turn. `None` when too little was
    /// observed to tell.
    pub fn wait(&self, ahead: usize, now: Instant) -> Option<Duration> {
        let observed = now.saturating_duration_since(self.since?).as_secs_f64();
        let enough = self.turns >= ENOUGH && observed > 0.0;
        let seconds = enough.then(|| (ahead + 1) as f64 * observed / self.turns)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// How long a request with `ahead` others before it would wait, when that is far more than the
    /// time it has `left`.
    pub fn in_vain(&self, ahead: usize, left: Duration, now: Instant) -> Option<Duration> {
        self.wait(ahead, now).filter(|wait| *wait > left.mul_f64(DOUBT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_told_from_the_turns_once_there_were_some() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut drain = Drain::default();
        assert_eq!(drain.wait(0, begun), None, "nobody waits");
        drain.waits(begun);
        drain.waits(at(500));
        // 20 turns a second.
        for n in 1..16 {
            drain.turn(at(50 * n));
            assert_eq!(drain.wait(0, at(50 * n)), None);
        }
        drain.turn(at(800));
        assert_eq!(drain.wait(39, at(800)), Some(Duration::from_secs(2)));
        assert_eq!(drain.in_vain(39, Duration::from_millis(1400), at(800)), None);
        let in_vain = drain.in_vain(39, Duration::from_millis(1300), at(800));
        assert_eq!(in_vain, Some(Duration::from_secs(2)));
        // Where it stands still, the wait grows.
        assert_eq!(drain.wait(39, at(1600)), Some(Duration::from_secs(4)));
        drain.reset();
        assert_eq!(drain.wait(0, at(1700)), None);
    }

    #[test]
    fn a_rate_that_has_changed_is_followed() {
        let begun = Instant::now();
        let mut drain = Drain::default();
        drain.waits(begun);
        let mut now = begun;
        for (turns, gap) in [(1200, 50), (200, 500)] {
            for _ in 0..turns {
                now += Duration::from_millis(gap);
                drain.turn(now);
            }
            let wait = drain.wait(0, now).unwrap().as_secs_f64() * 1e3;
            assert!((wait - gap as f64).abs() < 0.1 * gap as f64, "{wait} ms for one in {gap} ms");
        }
    }
}
