//! Conversion from the value range of data to that of a network.

use crate::array::ArrayData;
use crate::error::Error;

/// The value ranges of data and network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranges {
    /// The range of the data. `None`: 0 to 255 for bytes; floats are already in the range of the network.
    pub data: Option<(f64, f64)>,
    /// The range that the network was trained on.
    pub sample: (f64, f64),
}

impl Default for Ranges {
    fn default() -> Self {
        Self { data: None, sample: (-1.0, 1.0) }
    }
}

/// A factor and an offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine(f64, f64);

impl Ranges {
    /// Returns factor and offset from data to network.
    pub(super) fn affine(&self, is_bytes: bool) -> Affine {
        match (self.data, is_bytes) {
            (Some(data), _) => scale(data, self.sample),
            (None, true) => scale((0.0, 255.0), self.sample),
            (None, false) => Affine(1.0, 0.0),
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let valid = |(low, high): (f64, f64)| low.is_finite() && high.is_finite() && low < high;
        match self.data.into_iter().chain([self.sample]).find(|range| !valid(*range)) {
            Some((low, high)) => Err(Error::usage(format!("expected a range LOW,HIGH, found {low},{high}"))),
            None => Ok(()),
        }
    }
}

fn scale((from, to): (f64, f64), (low, high): (f64, f64)) -> Affine {
    let factor = (high - low) / (to - from);
    Affine(factor, low - from * factor)
}

impl Affine {
    /// Converts the values of `data` to the range of the network. `data` and `out` have equal length.
    pub(super) fn apply(self, data: &ArrayData, out: &mut [f32]) {
        match data {
            ArrayData::F32(values) => self.write(values.iter().copied(), out),
            ArrayData::U8(values) => self.write(values.iter().map(|value| f32::from(*value)), out),
            ArrayData::F16(values) => self.write(values.iter().map(|value| value.to_f32()), out),
            _ => self.write(data.to_f64().into_iter().map(|value| value as f32), out),
        }
    }

    fn write(self, values: impl Iterator<Item = f32>, out: &mut [f32]) {
        let Self(factor, offset) = self;
        out.iter_mut().zip(values).for_each(|(out, value)| *out = (f64::from(value) * factor + offset) as f32);
    }
}
