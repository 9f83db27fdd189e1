//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// The change of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum RateSchedule {
    /// Constant.
    #[default]
    Constant,
    /// Cosine decay to zero (Loshchilov and Hutter, "SGDR", 2017).
    Cosine,
    /// Linear decay to zero.
    Linear,
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// The maximum learning rate.
    pub peak: f64,
    /// The change after the warm-up.
    pub schedule: RateSchedule,
    /// The number of warm-up steps, over which the learning rate grows linearly from zero.
    pub warmup: u64,
    /// The number of steps of the run.
    pub steps: u64,
}

impl Rate {
    /// Returns the learning rate of step `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let after = self.steps.saturating_sub(self.warmup).max(1) as f64;
        // The first step after the warm-up has the peak.
        let share = ((step - self.warmup - 1) as f64 / after).min(1.0);
        self.peak
            * match self.schedule {
                RateSchedule::Constant => 1.0,
                RateSchedule::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * share).cos()),
                RateSchedule::Linear => 1.0 - share,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_warm_up_and_fall() {
        let rate = |schedule| Rate { peak: 2.0, schedule, warmup: 4, steps: 104 };
        for schedule in [RateSchedule::Constant, RateSchedule::Cosine, RateSchedule::Linear] {
            assert_eq!((rate(schedule).at(1), rate(schedule).at(4), rate(schedule).at(5)), (0.5, 2.0, 2.0));
        }
        assert_eq!(rate(RateSchedule::Constant).at(104), 2.0);
        assert!((rate(RateSchedule::Linear).at(55) - 1.0).abs() < 1e-12);
        assert!((rate(RateSchedule::Cosine).at(55) - 1.0).abs() < 1e-12);
        assert!(rate(RateSchedule::Cosine).at(104) < 0.001);
        let none = Rate { warmup: 0, ..rate(RateSchedule::Linear) };
        assert_eq!(none.at(1), 2.0);
    }
}
