//! The last start latencies, for the status and the page.

use std::collections::VecDeque;
use std::time::Duration;

use mayfly_api::{Tier, TierLatency};
use mayfly_distribution::Distribution;
use parking_lot::Mutex;

/// Values kept for each tier.
pub(super) const KEPT: usize = 512;

/// Every tier, from the fastest to the slowest.
pub(super) const TIERS: [Tier; 4] = [Tier::Standby, Tier::Fork, Tier::Shell, Tier::Cold];

/// A ring of values for each tier.
#[derive(Debug, Default)]
pub(super) struct Recent {
    rings: [Mutex<VecDeque<f64>>; TIERS.len()],
}

impl Recent {
    pub(super) fn push(&self, tier: Tier, latency: Duration) {
        // Whole microseconds: more digits would say nothing and make the status long.
        let milliseconds = latency.as_micros() as f64 / 1e3;
        for (ring, _) in self.rings.iter().zip(TIERS).filter(|(_, of)| *of == tier) {
            let mut ring = ring.lock();
            if ring.len() == KEPT {
                ring.pop_front();
            }
            ring.push_back(milliseconds);
        }
    }

    /// One entry for each tier that was used.
    pub(super) fn latency(&self) -> Vec<TierLatency> {
        let entry = |(ring, tier): (&Mutex<VecDeque<f64>>, Tier)| {
            let mut values = Distribution::default();
            ring.lock().iter().for_each(|value| values.push(*value));
            TierLatency { tier, summary: values.summary(), recent_ms: values.values().to_vec() }
        };
        self.rings.iter().zip(TIERS).map(entry).filter(|entry| entry.summary.n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_values_are_kept_by_tier() {
        let recent = Recent::default();
        assert!(recent.latency().is_empty());
        (1..=KEPT as u64 + 3).for_each(|ms| recent.push(Tier::Standby, Duration::from_millis(ms)));
        recent.push(Tier::Cold, Duration::from_nanos(1_234_567));
        let latency = recent.latency();
        assert_eq!(latency.iter().map(|l| l.tier).collect::<Vec<_>>(), [Tier::Standby, Tier::Cold]);
        assert_eq!(latency[0].recent_ms.len(), KEPT);
        assert_eq!((latency[0].recent_ms[0], latency[0].summary.max), (4.0, KEPT as f64 + 3.0));
        assert_eq!(latency[1].recent_ms, [1.234]);
    }
}
