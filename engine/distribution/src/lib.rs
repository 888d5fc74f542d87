//! Measured values as a distribution: p50, p90, p99, max, n. Nothing is averaged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A collection of measured values in one unit.
#[derive(Debug, Clone, Default)]
pub struct Distribution {
    values: Vec<f64>,
}

/// The figures of a [`Distribution`]. All 0 when nothing was measured (`n` says so).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Summary {
    /// Half of the values are at most this.
    pub p50: f64,
    /// Nine of ten values are at most this.
    pub p90: f64,
    /// 99 of 100 values are at most this.
    pub p99: f64,
    /// The largest value.
    pub max: f64,
    /// Number of values.
    pub n: usize,
}

impl Distribution {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Adds a duration in milliseconds.
    pub fn push_ms(&mut self, duration: Duration) {
        self.push(duration.as_secs_f64() * 1e3);
    }

    /// Returns the values in the order they came.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Returns the percentiles by the nearest-rank method: each is a value that was measured, none
    /// is interpolated.
    pub fn summary(&self) -> Summary {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length"
            )]
            let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Summary { p50: at(50.0), p90: at(90.0), p99: at(99.0), max: at(100.0), n: sorted.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let mut d = Distribution::default();
        assert_eq!(d.summary(), Summary { p50: 0.0, p90: 0.0, p99: 0.0, max: 0.0, n: 0 });
        (1..=200).rev().for_each(|v| d.push(f64::from(v)));
        assert_eq!(d.summary(), Summary { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0, n: 200 });
        let mut one = Distribution::default();
        one.push_ms(Duration::from_micros(1500));
        assert_eq!(one.summary(), Summary { p50: 1.5, p90: 1.5, p99: 1.5, max: 1.5, n: 1 });
    }
}
