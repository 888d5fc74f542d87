//! Whether something grows.

use serde::Serialize;

/// Most points that are compared with each other: their number enters as a square.
const POINTS: usize = 1000;

/// A straight line through measured points that a few outliers do not move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Trend {
    /// Change of the value for each step of one of the other.
    pub slope: f64,
    /// First value, the median of the first tenth.
    pub first: f64,
    /// Last value, the median of the last tenth.
    pub last: f64,
    /// The largest value.
    pub max: f64,
    /// Number of points.
    pub n: usize,
}

impl Trend {
    /// Computes the trend of `points`, in the order they came: the median of the slopes between all
    /// pairs (Theil and Sen).
    pub fn of(points: &[(f64, f64)]) -> Self {
        let stride = points.len().div_ceil(POINTS).max(1);
        let kept: Vec<(f64, f64)> = points.iter().copied().step_by(stride).collect();
        let mut slopes = Vec::new();
        for (at, (x0, y0)) in kept.iter().enumerate() {
            let later = kept[at + 1..].iter().filter(|(x1, _)| x1 > x0);
            slopes.extend(later.map(|(x1, y1)| (y1 - y0) / (x1 - x0)));
        }
        let values = || points.iter().map(|p| p.1);
        let tenth = points.len().div_ceil(10);
        Self {
            slope: median(slopes),
            first: median(values().take(tenth).collect()),
            last: median(values().rev().take(tenth).collect()),
            max: values().fold(0.0, f64::max),
            n: points.len(),
        }
    }
}

/// The middle value; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_move_a_trend() {
        let mut points: Vec<(f64, f64)> =
            (0..50).map(|x| (f64::from(x), 100.0 + 2.0 * f64::from(x))).collect();
        points[10].1 = 1e6;
        let trend = Trend::of(&points);
        assert!((trend.slope - 2.0).abs() < 1e-9, "{trend:?}");
        assert_eq!((trend.first, trend.last, trend.max, trend.n), (104.0, 194.0, 1e6, 50));
        let flat = Trend::of(&[(1.0, 5.0), (1.0, 7.0)]);
        assert_eq!(flat.slope, 0.0, "points above each other have no slope");
        assert_eq!(Trend::of(&[]), Trend::default());
        let many: Vec<(f64, f64)> = (0..5000).map(|x| (f64::from(x), -f64::from(x))).collect();
        assert!((Trend::of(&many).slope + 1.0).abs() < 1e-9);
    }
}
