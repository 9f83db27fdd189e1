//! Pooling: the output of a feature network becomes one row of features per sample.

use crate::array::Array;
use crate::evaluate::FeatureLayout;

/// The pooling of an output to features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pooling {
    /// The shape of the output without the batch.
    pub(super) dims: Vec<usize>,
    /// The feature axis. The other axes are averaged.
    pub(super) axis: usize,
}

impl Pooling {
    /// Chooses the pooling for an output of this shape, batch first: the mean over all axes except that of the
    /// features.
    ///
    /// In a map `[batch, a, b, c]`, the feature axis is the one whose size differs from the other two, else the channel
    /// axis in the `layout` of the input. In a sequence `[batch, tokens, features]`, it is the last one. `None` for
    /// other shapes.
    pub(super) fn of(dims: &[usize], layout: FeatureLayout) -> Option<Self> {
        let own = dims.get(1..)?;
        let axis = match own {
            [_] => 0,
            [_, _] => 1,
            [a, b, c] if b == c && a != b => 0,
            [a, b, c] if a == b && b != c => 2,
            [_, _, _] if layout == FeatureLayout::Nhwc => 2,
            [_, _, _] => 0,
            _ => return None,
        };
        (!own.contains(&0)).then(|| Self { dims: own.to_vec(), axis })
    }

    /// Returns the number of features.
    pub(super) fn width(&self) -> usize {
        self.dims[self.axis]
    }

    /// Describes the axes that are averaged. `None` if no axis of size above one is averaged.
    pub(super) fn describe(&self) -> Option<String> {
        let others = || (0..self.dims.len()).filter(|axis| *axis != self.axis);
        let axes: Vec<String> = others().map(|axis| (axis + 1).to_string()).collect();
        (others().any(|axis| self.dims[axis] > 1)).then(|| format!("mean over axes {}", axes.join(" and ")))
    }

    /// Appends the features of the first `count` samples of an output to `rows`.
    pub(super) fn append(&self, output: &Array, count: usize, rows: &mut Vec<f64>) {
        let length: usize = self.dims.iter().product();
        let inner: usize = self.dims[self.axis + 1..].iter().product();
        let (width, values) = (self.width(), output.to_f64());
        for sample in values.chunks_exact(length).take(count) {
            let mut sums = vec![0.0; width];
            for (at, value) in sample.iter().enumerate() {
                sums[at / inner % width] += value;
            }
            let places = (length / width) as f64;
            rows.extend(sums.into_iter().map(|sum| sum / places));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::array::ElementType;

    #[test]
    fn spatial_axes_are_averaged() {
        let rows = |dims: &[usize], layout: FeatureLayout| {
            let values: Vec<f64> = (0..dims.iter().product::<usize>()).map(|at| at as f64).collect();
            let output = Array::from_f64(ElementType::F32, dims.to_vec(), &values).unwrap();
            let mut rows = Vec::new();
            Pooling::of(dims, layout).unwrap().append(&output, 1, &mut rows);
            rows
        };
        let first = FeatureLayout::Nchw;
        assert_eq!(rows(&[2, 3], first), [0.0, 1.0, 2.0]);
        assert_eq!(rows(&[1, 3, 2, 2], first), [1.5, 5.5, 9.5]);
        // The axis whose size differs, whatever the layout of the input.
        assert_eq!(rows(&[1, 2, 2, 3], first), [4.5, 5.5, 6.5]);
        assert_eq!(rows(&[1, 2, 2, 2], first), [1.5, 5.5]);
        assert_eq!(rows(&[1, 2, 2, 2], FeatureLayout::Nhwc), [3.0, 4.0]);
        assert_eq!(rows(&[1, 2, 3], first), [1.5, 2.5, 3.5]);
        assert!(Pooling::of(&[4], first).is_none() && Pooling::of(&[1, 2, 2, 2, 2], first).is_none());
        assert_eq!(Pooling::of(&[1, 8, 1, 1], first).unwrap().describe(), None);
        assert_eq!(Pooling::of(&[1, 8, 7, 7], first).unwrap().describe().unwrap(), "mean over axes 2 and 3");
    }
}
