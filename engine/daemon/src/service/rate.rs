//! Smoothed rate of events.

use std::time::{Duration, Instant};

/// Events per second, each event fading with the time constant: an exponentially weighted moving
/// average.
#[derive(Debug, Clone)]
pub(super) struct DecayingRate {
    constant: Duration,
    value: f64,
    at: Option<Instant>,
}

impl DecayingRate {
    pub fn new(constant: Duration) -> Self {
        Self { constant, value: 0.0, at: None }
    }

    pub fn record(&mut self, now: Instant) {
        self.value = self.per_second(now) + 1.0 / self.constant.as_secs_f64();
        self.at = Some(now);
    }

    pub fn per_second(&self, now: Instant) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.value * (-age.as_secs_f64() / self.constant.as_secs_f64()).exp()
    }
}

/// A value that follows its samples: each new one counts for `WEIGHT`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Smoothed(Option<f64>);

impl Smoothed {
    const WEIGHT: f64 = 0.2;

    pub fn add(&mut self, sample: f64) {
        self.0 = Some(self.0.map_or(sample, |value| value + Self::WEIGHT * (sample - value)));
    }

    pub fn get(&self) -> Option<f64> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_and_fades() {
        let mut rate = DecayingRate::new(Duration::from_secs(10));
        let begun = Instant::now();
        // 20 per second for 60 s.
        for n in 0..1200 {
            rate.record(begun + Duration::from_millis(50 * n));
        }
        let end = begun + Duration::from_secs(60);
        assert!((rate.per_second(end) - 20.0).abs() < 1.0, "{}", rate.per_second(end));
        assert!(rate.per_second(end + Duration::from_secs(60)) < 0.1);
        assert_eq!(DecayingRate::new(Duration::from_secs(1)).per_second(begun), 0.0);
    }

    #[test]
    fn a_smoothed_value_moves_toward_its_samples() {
        let mut value = Smoothed::default();
        assert_eq!(value.get(), None);
        value.add(10.0);
        assert_eq!(value.get(), Some(10.0));
        (0..50).for_each(|_| value.add(20.0));
        assert!(value.get().is_some_and(|v| (19.9..=20.0).contains(&v)));
    }
}
