//! Parts of fused operators: layouts, activations and norms of float32 values.

use super::LowerCx;
use crate::onnx::{attr_float, attr_int, attr_ints};
use crate::operator::RuleError;

impl LowerCx<'_> {
    /// Permutes the axes of the value.
    pub fn transposed(&mut self, value: &str, perm: &[i64]) -> String {
        self.add("Transpose", &[value], vec![attr_ints("perm", perm)])
    }

    /// Gives the value another shape; as in Reshape, 0 keeps a size and -1 is inferred.
    pub fn reshaped(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape, &[shape.len() as i64]);
        self.add("Reshape", &[value, &shape], vec![])
    }

    /// Inserts axes of size one.
    pub fn unsqueezed(&mut self, value: &str, axes: &[i64]) -> String {
        if self.opset() >= 13 {
            let axes = self.ints(axes, &[axes.len() as i64]);
            return self.add("Unsqueeze", &[value, &axes], vec![]);
        }
        self.add("Unsqueeze", &[value], vec![attr_ints("axes", axes)])
    }

    /// Selects the elements `start..end` of a value along an axis.
    pub fn span(&mut self, value: &str, axis: i64, start: i64, end: i64) -> String {
        self.strided(value, axis, (start, end), 1)
    }

    /// Selects the elements `start`, `start + step`, ... before `end` of a value along an axis; `step` is positive.
    pub fn strided(&mut self, value: &str, axis: i64, (start, end): (i64, i64), step: i64) -> String {
        if self.opset() < 10 && step == 1 {
            let attributes = vec![attr_ints("axes", &[axis]), attr_ints("starts", &[start]), attr_ints("ends", &[end])];
            return self.add("Slice", &[value], attributes);
        }
        if self.opset() < 10 {
            // Before opset 10, Slice has no steps.
            let positions: Vec<i64> = (start..end).step_by(usize::try_from(step).unwrap_or(1)).collect();
            return self.gathered(value, axis, &positions);
        }
        let (starts, ends, axes) = (self.ints(&[start], &[1]), self.ints(&[end], &[1]), self.ints(&[axis], &[1]));
        if step == 1 {
            return self.add("Slice", &[value, &starts, &ends, &axes], vec![]);
        }
        let steps = self.ints(&[step], &[1]);
        self.add("Slice", &[value, &starts, &ends, &axes, &steps], vec![])
    }

    /// Selects the elements at the positions `positions` of a value along an axis.
    pub fn gathered(&mut self, value: &str, axis: i64, positions: &[i64]) -> String {
        let positions = self.ints(positions, &[positions.len() as i64]);
        self.add("Gather", &[value, &positions], vec![attr_int("axis", axis)])
    }

    /// Joins values along an axis.
    pub fn joined(&mut self, values: &[&str], axis: i64) -> String {
        self.add("Concat", values, vec![attr_int("axis", axis)])
    }

    /// Returns the size of a value along an axis, a scalar.
    pub(super) fn length(&mut self, value: &str, axis: i64) -> String {
        let shape = self.add("Shape", &[value], vec![]);
        let axis = self.ints(&[axis], &[]);
        self.add("Gather", &[&shape, &axis], vec![attr_int("axis", 0)])
    }

    /// Returns the positions of a value along an axis: 0, 1, 2, ...
    ///
    /// # Errors
    /// The opset of the model has no Range.
    pub fn positions(&mut self, value: &str, axis: i64) -> Result<String, RuleError> {
        if self.opset() < 11 {
            let text = format!(
                "opset {} has no Range to count positions with; convert the model to opset 11 or later",
                self.opset()
            );
            return Err(RuleError::unsupported(text));
        }
        let length = self.length(value, axis);
        let (zero, one) = (self.ints(&[0], &[]), self.ints(&[1], &[]));
        Ok(self.add("Range", &[&zero, &length, &one], vec![]))
    }

    /// Multiplies a value by a number.
    pub fn scaled(&mut self, value: &str, factor: f64) -> String {
        let factor = self.scalar(factor);
        self.add("Mul", &[value, &factor], vec![])
    }

    /// Computes the sum of inputs in float32. Inputs that the node omits are skipped; the first must be present.
    pub fn sum_of(&mut self, slots: &[usize]) -> String {
        let mut sum = String::new();
        for slot in slots.iter().copied() {
            if !self.has(slot) {
                continue;
            }
            let term = self.float(slot);
            sum = if sum.is_empty() { term } else { self.add("Add", &[&sum, &term], vec![]) };
        }
        sum
    }

    /// Computes `value * sigmoid(value)`.
    pub fn silu(&mut self, value: &str) -> String {
        let sigmoid = self.add("Sigmoid", &[value], vec![]);
        self.add("Mul", &[value, &sigmoid], vec![])
    }

    /// Computes `value * (1 + erf(value / sqrt(2))) / 2`.
    pub fn gelu(&mut self, value: &str) -> String {
        let root = self.scalar(std::f64::consts::SQRT_2);
        let divided = self.add("Div", &[value, &root], vec![]);
        let erf = self.add("Erf", &[&divided], vec![]);
        let one = self.scalar(1.0);
        let sum = self.add("Add", &[&erf, &one], vec![]);
        let product = self.add("Mul", &[value, &sum], vec![]);
        self.scaled(&product, 0.5)
    }

    /// Computes `value * (1 + tanh(sqrt(2 / pi) (value + 0.044715 value^3))) / 2`.
    pub fn gelu_by_tanh(&mut self, value: &str) -> String {
        let square = self.add("Mul", &[value, value], vec![]);
        let cubic = self.scaled(&square, 0.044_715);
        let one = self.scalar(1.0);
        let inner = self.add("Add", &[&cubic, &one], vec![]);
        let inner = self.add("Mul", &[value, &inner], vec![]);
        let inner = self.scaled(&inner, (2.0 / std::f64::consts::PI).sqrt());
        let tanh = self.add("Tanh", &[&inner], vec![]);
        let sum = self.add("Add", &[&tanh, &one], vec![]);
        let product = self.add("Mul", &[value, &sum], vec![]);
        self.scaled(&product, 0.5)
    }

    /// Computes the mean along static `axes`, which keep size one.
    fn mean(&mut self, value: &str, axes: &[i64]) -> String {
        let keeps = attr_int("keepdims", 1);
        if self.opset() >= 18 {
            let axes = self.ints(axes, &[axes.len() as i64]);
            return self.add("ReduceMean", &[value, &axes], vec![keeps]);
        }
        self.add("ReduceMean", &[value], vec![attr_ints("axes", axes), keeps])
    }

    /// Computes `gamma * (value - mean) / sqrt(variance + epsilon) + beta` along the last of `rank` axes. `None` as
    /// `beta`: no offset.
    pub fn layer_norm(&mut self, value: &str, rank: usize, epsilon: f32, gamma: &str, beta: Option<&str>) -> String {
        if self.opset() >= 17 {
            let inputs: Vec<&str> = [value, gamma].into_iter().chain(beta).collect();
            let attributes = vec![attr_int("axis", -1), attr_float("epsilon", epsilon)];
            return self.add("LayerNormalization", &inputs, attributes);
        }
        let last = [rank.saturating_sub(1) as i64];
        let mean = self.mean(value, &last);
        let centred = self.add("Sub", &[value, &mean], vec![]);
        let y = self.over_root_mean_square(&centred, &centred, &last, epsilon);
        let y = self.add("Mul", &[&y, gamma], vec![]);
        match beta {
            Some(beta) => self.add("Add", &[&y, beta], vec![]),
            None => y,
        }
    }

    /// Computes `gamma * value / sqrt(mean(value^2) + epsilon)` along the last of `rank` axes.
    pub fn root_mean_square_norm(&mut self, value: &str, rank: usize, epsilon: f32, gamma: &str) -> String {
        let y = self.over_root_mean_square(value, value, &[rank.saturating_sub(1) as i64], epsilon);
        self.add("Mul", &[&y, gamma], vec![])
    }

    fn over_root_mean_square(&mut self, value: &str, of: &str, axes: &[i64], epsilon: f32) -> String {
        let squares = self.add("Mul", &[of, of], vec![]);
        let mean = self.mean(&squares, axes);
        let epsilon = self.floats(&[epsilon], &[]);
        let sum = self.add("Add", &[&mean, &epsilon], vec![]);
        let root = self.add("Sqrt", &[&sum], vec![]);
        self.add("Div", &[value, &root], vec![])
    }

    /// Normalises a value `[N, C, ...]` over the members of each of `groups` groups of consecutive channels, in the
    /// form that exporters write: an instance norm between two reshapes.
    pub fn group_norm(&mut self, value: &str, groups: i64, epsilon: f32) -> String {
        let shape = self.add("Shape", &[value], vec![]);
        let rows = self.reshaped(value, &[0, groups, -1]);
        let count = usize::try_from(groups).unwrap_or(0);
        let (ones, zeros) = (self.floats(&vec![1.0; count], &[groups]), self.floats(&vec![0.0; count], &[groups]));
        let norm = self.add("InstanceNormalization", &[&rows, &ones, &zeros], vec![attr_float("epsilon", epsilon)]);
        self.add("Reshape", &[&norm, &shape], vec![])
    }
}
