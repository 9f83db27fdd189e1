//! What a run needs of memory, part by part, so that it can be said before the run starts.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::memory::{gibibytes, refuse_beyond};
use crate::error::Error;

/// Bytes of memory by what takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    parts: Vec<(&'static str, u64)>,
}

impl Demand {
    /// Adds a part; one that takes nothing is left out.
    #[must_use]
    pub fn with(mut self, what: &'static str, bytes: u64) -> Self {
        if bytes > 0 {
            self.parts.push((what, bytes));
        }
        self
    }

    /// The parts.
    pub fn parts(&self) -> &[(&'static str, u64)] {
        &self.parts
    }

    /// The bytes of all parts.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// All parts in words: `about 1.2 GiB: weights 0.4 GiB, ...`.
    pub fn describe(&self) -> String {
        let parts: Vec<String> =
            self.parts.iter().map(|(what, bytes)| format!("{what} {}", gibibytes(*bytes))).collect();
        format!("about {}: {}", gibibytes(self.total()), parts.join(", "))
    }

    /// Refuses a run that needs more than `available`; `None` where that is not known. `what` begins the message.
    ///
    /// # Errors
    /// See above; the message has all parts.
    pub fn refuse_beyond(&self, available: Option<u64>, what: &str) -> Result<(), Error> {
        refuse_beyond(available, self.total(), what).map_err(|error| {
            let parts = self.describe();
            error.hint(format!("it needs {parts}"))
        })
    }

    /// The error of a run that does not fit, with all parts and `advice` in its hint.
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
    /// A map of the parts and their `total`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.parts.len() + 1))?;
        for (what, bytes) in &self.parts {
            map.serialize_entry(&what.replace(' ', "_"), bytes)?;
        }
        map.serialize_entry("total", &self.total())?;
        map.end()
    }
}

/// Runs of so many samples in words: `training with runs of one sample`.
pub fn runs_of(what: &str, samples: usize) -> String {
    match samples {
        1 => format!("{what} of one sample"),
        count => format!("{what} of {count} samples"),
    }
}

/// Divides things of these sizes into the fewest runs of neighbours of which none is larger than `most`; `None` where one
/// thing is.
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
    fn neighbours_share_a_run_while_they_fit() {
        assert_eq!(divided(&[3, 3, 4, 9, 1], 10), Some(vec![0..3, 3..5]));
        assert_eq!(divided(&[3, 3, 4, 9, 1], 9), Some(vec![0..2, 2..3, 3..4, 4..5]));
        assert_eq!(divided(&[3, 11], 10), None);
        assert_eq!(divided(&[1, 2], 10).map(|parts| parts.len()), Some(1));
    }
}
