//! Conversion of floating point numbers to integers.

use serde::Serialize;

use crate::deploy::ranges::Range;
use crate::onnx::{DataType, TensorProto};

/// The form of quantised layers that a runtime takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Style {
    /// Whether activations are int8 symmetric about zero. Otherwise they are uint8 with a zero point.
    pub is_symmetric: bool,
    /// Whether outputs of layers are quantised too, so that a layer maps integers to integers.
    pub quantizes_outputs: bool,
    /// Whether biases are int32, with the scale of the sums.
    pub quantizes_biases: bool,
}

/// The scale and zero point of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) zero_point: i32,
    pub(super) is_symmetric: bool,
}

impl Affine {
    /// Computes scale and zero point for a range, extended to include zero.
    pub(super) fn of(range: Range, style: Style) -> Self {
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let scale = |width: f64, steps: f64| ((width / steps) as f32).max(f32::MIN_POSITIVE);
        if style.is_symmetric {
            return Self { scale: scale(low.abs().max(high), 127.0), zero_point: 0, is_symmetric: true };
        }
        let scale = scale(high - low, 255.0);
        let zero_point = (-low / f64::from(scale)).round().clamp(0.0, 255.0) as i32;
        Self { scale, zero_point, is_symmetric: false }
    }

    pub(super) fn scale_tensor(self, name: &str) -> TensorProto {
        TensorProto::of_floats(name, &[self.scale], &[])
    }

    pub(super) fn zero_point_tensor(self, name: &str) -> TensorProto {
        let (dtype, byte) = match self.is_symmetric {
            true => (DataType::Int8, (self.zero_point as i8).cast_unsigned()),
            false => (DataType::Uint8, self.zero_point as u8),
        };
        TensorProto::of_raw(name, dtype, &[], vec![byte])
    }
}

/// A weight in int8 with one scale per index of an axis.
pub(super) struct Weight {
    pub(super) dims: Vec<i64>,
    pub(super) elements: Vec<i8>,
    pub(super) scales: Vec<f32>,
    pub(super) axis: usize,
}

impl Weight {
    /// Quantises a weight, rounding to nearest. Each scale maps the largest magnitude to 127.
    pub(super) fn of(values: &[f32], dims: &[i64], axis: usize) -> Self {
        let size = |dims: &[i64]| dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).product::<usize>();
        let (count, inner) = (size(&dims[axis..=axis]).max(1), size(&dims[axis + 1..]).max(1));
        let channel = |at: usize| at / inner % count;
        let mut largest = vec![0.0f32; count];
        for (at, value) in values.iter().enumerate() {
            let own = &mut largest[channel(at)];
            *own = own.max(value.abs());
        }
        // A channel of zeros can have any scale.
        let scales: Vec<f32> = largest
            .iter()
            .map(|largest| if *largest > 0.0 { (largest / 127.0).max(f32::MIN_POSITIVE) } else { 1.0 })
            .collect();
        let round = |(at, value): (usize, &f32)| (value / scales[channel(at)]).round().clamp(-127.0, 127.0) as i8;
        let elements = values.iter().enumerate().map(round).collect();
        Self { dims: dims.to_vec(), elements, scales, axis }
    }

    pub(super) fn tensor(&self, name: &str) -> TensorProto {
        let bytes = self.elements.iter().map(|element| element.cast_unsigned()).collect();
        TensorProto::of_raw(name, DataType::Int8, &self.dims, bytes)
    }

    pub(super) fn scale_tensor(&self, name: &str) -> TensorProto {
        TensorProto::of_floats(name, &self.scales, &[self.scales.len() as i64])
    }

    pub(super) fn zero_point_tensor(&self, name: &str) -> TensorProto {
        TensorProto::of_raw(name, DataType::Int8, &[self.scales.len() as i64], vec![0; self.scales.len()])
    }

    /// Returns the dequantised numbers.
    pub(super) fn values(&self) -> Vec<f32> {
        let size = |dims: &[i64]| dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).product::<usize>();
        let inner = size(&self.dims[self.axis + 1..]).max(1);
        let of = |(at, element): (usize, &i8)| f32::from(*element) * self.scales[at / inner % self.scales.len()];
        self.elements.iter().enumerate().map(of).collect()
    }
}

/// Quantises a bias to int32, each element with its own scale. `None`: an element is out of range, or scales are missing.
pub(super) fn bias(values: &[f32], scales: &[f32]) -> Option<Vec<i32>> {
    let of = |(value, scale): (&f32, &f32)| {
        let integer = (f64::from(*value) / f64::from(*scale)).round();
        (integer.abs() < f64::from(i32::MAX) / 2.0).then_some(integer as i32)
    };
    if values.len() != scales.len() {
        return None;
    }
    values.iter().zip(scales).map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ASYMMETRIC: Style = Style { is_symmetric: false, quantizes_outputs: true, quantizes_biases: true };

    #[test]
    fn zero_is_an_integer_in_both_forms() {
        let range = Range { low: -0.5, high: 2.05 };
        let affine = Affine::of(range, ASYMMETRIC);
        assert!((affine.scale - 0.01).abs() < 1e-6);
        assert_eq!(affine.zero_point, 50);
        let affine = Affine::of(range, Style { is_symmetric: true, ..ASYMMETRIC });
        assert_eq!((affine.zero_point, affine.zero_point_tensor("z").data_type), (0, DataType::Int8 as i32));
        // A range far from zero is extended to zero.
        let affine = Affine::of(Range { low: 1.0, high: 2.55 }, ASYMMETRIC);
        assert_eq!(affine.zero_point, 0);
        assert!(Affine::of(Range { low: 0.0, high: 0.0 }, ASYMMETRIC).scale > 0.0);
    }

    #[test]
    fn every_channel_of_a_weight_has_its_scale() {
        let values = [1.0, -2.54, 0.1, 0.0127, 0.0, 0.0];
        let weight = Weight::of(&values, &[3, 2], 0);
        assert_eq!(weight.elements, [50, -127, 127, 16, 0, 0]);
        assert!(weight.values().iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.011));
        let weight = Weight::of(&values, &[3, 2], 1);
        assert_eq!(weight.scales.len(), 2);
        assert_eq!(weight.elements[5], 0);
    }

    #[test]
    fn a_bias_that_is_out_of_range_is_rejected() {
        assert_eq!(bias(&[1.0, -0.5], &[0.01, 0.01]), Some(vec![100, -50]));
        assert_eq!(bias(&[1e6], &[1e-12]), None);
        assert_eq!(bias(&[1.0], &[]), None);
    }
}
