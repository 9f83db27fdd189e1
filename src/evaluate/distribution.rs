//! Mean and quantiles of a metric over samples.

use serde::{Deserialize, Serialize};

/// Mean and quantiles of a metric over samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Distribution {
    /// The mean.
    pub mean: f64,
    /// The quantile at 5 %.
    pub q05: f64,
    /// The quantile at 25 %.
    pub q25: f64,
    /// The median.
    pub median: f64,
    /// The quantile at 75 %.
    pub q75: f64,
    /// The quantile at 95 %.
    pub q95: f64,
}

impl Distribution {
    /// Computes mean and quantiles of these values. Quantiles are interpolated linearly, as in NumPy. `None` if there
    /// are no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let quantile = |share: f64| {
            let place = share * last as f64;
            let (below, part) = (place.floor() as usize, place.fract());
            let above = (below + 1).min(last);
            values[below] + (values[above] - values[below]) * part
        };
        Some(Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            q05: quantile(0.05),
            q25: quantile(0.25),
            median: quantile(0.5),
            q75: quantile(0.75),
            q95: quantile(0.95),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quantiles_are_interpolated_between_values() {
        let of = Distribution::of((0..=10).rev().map(f64::from).collect()).unwrap();
        assert_eq!([of.mean, of.q05, of.q25, of.median, of.q75, of.q95], [5.0, 0.5, 2.5, 5.0, 7.5, 9.5]);
        assert_eq!(Distribution::of(vec![3.0]).unwrap().q95, 3.0);
        assert_eq!(Distribution::of(Vec::new()), None);
    }
}
