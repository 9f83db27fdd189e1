//! The memory that a run needs, itemised, so that it can be reported before the run starts.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::memory::{gibibytes, refuse_beyond};
use crate::error::Error;

/// Memory in bytes by purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    parts: Vec<(&'static str, u64)>,
}

impl Demand {
    /// Adds a part, unless it is zero.
    #[must_use]
    pub fn with(mut self, what: &'static str, bytes: u64) -> Self {
        if bytes > 0 {
            self.parts.push((what, bytes));
        }
        self
    }

    /// Returns the parts.
    pub fn parts(&self) -> &[(&'static str, u64)] {
        &self.parts
    }

    /// Returns the total in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Formats the total and all parts: `about 1.2 GiB: weights 0.4 GiB, ...`.
    pub fn describe(&self) -> String {
        let parts: Vec<String> =
            self.parts.iter().map(|(what, bytes)| format!("{what} {}", gibibytes(*bytes))).collect();
        format!("about {}: {}", gibibytes(self.total()), parts.join(", "))
    }

    /// Returns an error if a run needs more than `available`. `None`: not known. `what` is the subject of the message.
    ///
    /// # Errors
    /// The total exceeds `available`. The hint lists all parts.
    pub fn refuse_beyond(&self, available: Option<u64>, what: &str) -> Result<(), Error> {
        refuse_beyond(available, self.total(), what).map_err(|error| {
            let parts = self.describe();
            error.hint(format!("it needs {parts}"))
        })
    }

    /// Returns the error of a run that does not fit into memory, with all parts and `advice` as its hint.
    pub fn refusal(&self, available: Option<u64>, what: &str, advice: &str) -> Error {
        let error = match self.refuse_beyond(available, what) {
            Ok(()) => Error::unmet(format!("{what} does not fit into memory")),
            Err(error) => error,
        };
        let parts = error.advice().unwrap_or_default().to_owned();
        error.hint(format!("{parts}; {advice}"))
    }
}

impl Serialize for Demand {
    /// Serialises the parts and their `total` as a map.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.parts.len() + 1))?;
        for (what, bytes) in &self.parts {
            map.serialize_entry(&what.replace(' ', "_"), bytes)?;
        }
        map.serialize_entry("total", &self.total())?;
        map.end()
    }
}

/// Describes a run with this number of samples: `training with runs of one sample`.
pub fn runs_of(what: &str, samples: usize) -> String {
    match samples {
        1 => format!("{what} of one sample"),
        count => format!("{what} of {count} samples"),
    }
}

/// Divides items of these sizes into the fewest runs of consecutive items with at most `most` bytes each. Returns
/// `None` if a single item is larger.
pub fn divided(sizes: &[u64], most: u64) -> Option<Vec<std::ops::Range<usize>>> {
    let mut parts = Vec::new();
    let (mut start, mut sum) = (0, 0_u64);
    for (at, size) in sizes.iter().enumerate() {
        if *size > most {
            return None;
        }
        if sum.saturating_add(*size) > most {
            parts.push(start..at);
            (start, sum) = (at, 0);
        }
        sum += size;
    }
    parts.push(start..sizes.len());
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_are_named() {
        let demand = Demand::default().with("weights", 1 << 30).with("sums", 0).with("two moments", 1 << 29);
        assert_eq!(demand.total(), 3 << 29);
        assert_eq!(demand.describe(), "about 1.5 GiB: weights 1.0 GiB, two moments 0.5 GiB");
        let json = serde_json::to_value(&demand).unwrap();
        assert_eq!(json, serde_json::json!({"weights": 1 << 30, "two_moments": 1 << 29, "total": 3_u64 << 29}));
        assert!(demand.refuse_beyond(Some(3 << 29), "a run").is_ok());
        assert!(demand.refuse_beyond(Some(1 << 30), "a run").is_err());
    }

    #[test]
    fn consecutive_items_share_a_run_while_they_fit() {
        assert_eq!(divided(&[3, 3, 4, 9, 1], 10), Some(vec![0..3, 3..5]));
        assert_eq!(divided(&[3, 3, 4, 9, 1], 9), Some(vec![0..2, 2..3, 3..4, 4..5]));
        assert_eq!(divided(&[3, 11], 10), None);
        assert_eq!(divided(&[1, 2], 10).map(|parts| parts.len()), Some(1));
    }
}
