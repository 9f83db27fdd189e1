//! Norms and layouts of values within a node, which are not at one of its inputs.
//!
//! All values here are float32; [`ReferenceCx::cast_to_input`] casts a result to the type of an input.

use super::ReferenceCx;
use crate::graph::dim::Dim;
use crate::onnx::{DataType, attr_int, attr_ints};
use crate::operator::RuleError;

impl ReferenceCx<'_> {
    /// Expands `mask` to the shape of `value`; ones if there is no mask.
    pub fn mask_of(&mut self, value: &str, mask: Option<&str>) -> String {
        let shape = self.add("Shape", &[value], vec![]);
        let ones = self.floats(&[1.0], &[]);
        self.add("Expand", &[mask.unwrap_or(&ones), &shape], vec![])
    }

    /// Returns `value` with zeros where its full mask `kept` is zero, whatever the element was.
    fn zeroed_by(&mut self, value: &str, kept: &str) -> String {
        let kept = self.add("Cast", &[kept], vec![attr_int("to", DataType::Bool as i64)]);
        let zero = self.floats(&[0.0], &[]);
        self.add("Where", &[&kept, value, &zero], vec![])
    }

    /// Normalises `value` over its kept elements along static `axes`: `(x - mean) / sqrt(variance + epsilon)`, or `x /
    /// sqrt(mean(x^2) + epsilon)` unless `centred`.
    pub fn norm_of(&mut self, value: &str, mask: Option<&str>, axes: &[i64], epsilon: f32, centred: bool) -> String {
        let kept = self.mask_of(value, mask);
        let count = self.reduce("ReduceSum", &kept, axes);
        let mut x = self.zeroed_by(value, &kept);
        if centred {
            let sum = self.reduce("ReduceSum", &x, axes);
            let mean = self.add("Div", &[&sum, &count], vec![]);
            x = self.add("Sub", &[&x, &mean], vec![]);
            x = self.zeroed_by(&x, &kept);
        }
        let squares = self.add("Mul", &[&x, &x], vec![]);
        let sum = self.reduce("ReduceSum", &squares, axes);
        let variance = self.add("Div", &[&sum, &count], vec![]);
        let epsilon = self.floats(&[epsilon], &[]);
        let variance = self.add("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.add("Sqrt", &[&variance], vec![]);
        self.add("Div", &[&x, &deviation], vec![])
    }

    /// Removes a static axis of size one from a value.
    pub fn without_axis(&mut self, value: &str, axis: i64) -> String {
        if self.opset() >= 13 {
            let axes = self.ints(&[axis], &[1]);
            self.add("Squeeze", &[value, &axes], vec![])
        } else {
            self.add("Squeeze", &[value], vec![attr_ints("axes", &[axis])])
        }
    }

    /// Selects the elements `start..end` of `value` along an axis.
    pub fn span(&mut self, value: &str, axis: i64, start: i64, end: i64) -> String {
        if self.opset() < 10 {
            let attributes = vec![attr_ints("axes", &[axis]), attr_ints("starts", &[start]), attr_ints("ends", &[end])];
            return self.add("Slice", &[value], attributes);
        }
        let (starts, ends, axes) = (self.ints(&[start], &[1]), self.ints(&[end], &[1]), self.ints(&[axis], &[1]));
        self.add("Slice", &[value, &starts, &ends, &axes], vec![])
    }

    /// Emits, instead of the node, casts of float32 values to the element type of input 0, renamed to outputs (slot,
    /// value). Outputs that the node omits are skipped.
    pub fn emit_floats(&mut self, outputs: &[(usize, String)]) {
        for (slot, value) in outputs {
            if !self.output(*slot).is_empty() {
                let value = self.cast_to_input(value, 0);
                self.emit_as(*slot, &value);
            }
        }
    }

    /// Returns input `slot` in float32 with zeros at the removed positions.
    pub fn zeroed_float(&mut self, slot: usize) -> String {
        let zeroed = self.zeroed(slot);
        self.cast_to_float(&zeroed, slot)
    }

    /// Returns the shape of output `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn output_shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        let value = self.node.output(slot).ok_or(RuleError::UnknownShape)?;
        self.facts.values[value].as_ref().and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)
    }
}
