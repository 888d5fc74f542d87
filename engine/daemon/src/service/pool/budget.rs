//! The processor time that refilling may take: a token bucket of seconds, charged with what a
//! standby really cost.

use std::time::{Duration, Instant};

/// A token bucket of processor seconds. May be overdrawn by what a standby cost more than expected;
/// refilling then waits longer.
#[derive(Debug)]
pub(super) struct CpuBudget {
    /// Processor seconds gained per second.
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl CpuBudget {
    pub fn new(rate: f64, burst: Duration, now: Instant) -> Self {
        let burst = burst.as_secs_f64();
        Self { rate, burst, tokens: burst, at: now }
    }

    fn gain(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Reserves `expected` processor time, to be settled with [`CpuBudget::settle`]; or says how
    /// long to wait for it.
    pub fn reserve(&mut self, now: Instant, expected: Duration) -> Result<(), Duration> {
        self.gain(now);
        // What costs more than a full bucket is let through when it is full.
        let needed = expected.as_secs_f64().min(self.burst);
        if self.tokens >= needed {
            self.tokens -= expected.as_secs_f64();
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((needed - self.tokens) / self.rate)
            .unwrap_or(Duration::MAX))
    }

    /// Takes `expected` processor time that will not wait, to be settled as well; the bucket may be
    /// overdrawn by it.
    pub fn charge(&mut self, now: Instant, expected: Duration) {
        self.gain(now);
        self.tokens -= expected.as_secs_f64();
    }

    /// Replaces what was reserved by what it really was.
    pub fn settle(&mut self, now: Instant, expected: Duration, real: Duration) {
        self.gain(now);
        self.tokens = (self.tokens + expected.as_secs_f64() - real.as_secs_f64()).min(self.burst);
    }
}

/// Processor time that the threads of a process have taken so far. `None` when it is gone.
pub(super) fn cpu_time_of(pid: u32) -> Option<Duration> {
    let process = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?;
    let tasks = process.tasks().ok()?.flatten();
    let precise: Option<u64> =
        tasks.map(|task| task.schedstat().ok().map(|stat| stat.sum_exec_runtime)).sum();
    if let Some(nanos) = precise {
        return Some(Duration::from_nanos(nanos));
    }
    // A kernel without scheduler statistics counts in clock ticks.
    let stat = process.stat().ok()?;
    Some(Duration::from_secs_f64(
        (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let begun = Instant::now();
        let mut budget = CpuBudget::new(0.5, SECOND * 2, begun);
        assert_eq!(budget.reserve(begun, SECOND), Ok(()));
        assert_eq!(budget.reserve(begun, SECOND), Ok(()));
        assert_eq!(budget.reserve(begun, SECOND), Err(SECOND * 2));
        assert_eq!(budget.reserve(begun + SECOND * 2, SECOND), Ok(()));
        // Cheaper than expected: the rest comes back.
        budget.settle(begun + SECOND * 2, SECOND, SECOND / 2);
        assert_eq!(budget.reserve(begun + SECOND * 2, SECOND / 2), Ok(()));
        // Dearer than a full bucket: when it is full, and the debt is paid off after.
        let full = begun + SECOND * 100;
        assert_eq!(budget.reserve(full, SECOND * 4), Ok(()));
        assert_eq!(budget.reserve(full, SECOND), Err(SECOND * 6));
    }

    proptest! {
        /// Over any time, no more is let through than the burst, the rate and one overdraft.
        #[test]
        fn never_more_than_the_rate(
            steps in prop::collection::vec((0u64..2000, 1u64..3000), 1..200),
        ) {
            let begun = Instant::now();
            let (rate, burst) = (0.75, 2.0);
            let mut budget = CpuBudget::new(rate, Duration::from_secs_f64(burst), begun);
            let (mut now, mut spent, mut largest) = (begun, 0.0, 0.0f64);
            for (wait, cost) in steps {
                now += Duration::from_millis(wait);
                let cost = Duration::from_millis(cost);
                if budget.reserve(now, cost).is_ok() {
                    spent += cost.as_secs_f64();
                    largest = largest.max(cost.as_secs_f64());
                }
                let passed = (now - begun).as_secs_f64();
                prop_assert!(spent <= burst + rate * passed + largest + 1e-6);
            }
        }
    }

    #[test]
    fn our_own_processor_time_grows() {
        let before = cpu_time_of(std::process::id()).unwrap();
        let mut x = 1u64;
        while cpu_time_of(std::process::id()).unwrap() <= before {
            for n in 0..1_000_000 {
                x = std::hint::black_box(x.wrapping_mul(n | 1));
            }
        }
        assert_eq!(cpu_time_of(u32::MAX >> 2), None);
    }
}
