//! Sums per channel within the gradient graph. A criterion that is linear in the gradient needs only a vector from the
//! graph.
//!
//! Let `G_i` be the gradient at timestep i. A criterion that needs only `sum over elements of w (sum over i of G_i)`
//! gets the same result from `sum over i of (sum over elements of w G_i)`. This does not hold for absolute values or
//! squares of elements.

use std::collections::BTreeMap;

use crate::graph::{Graph, Reader, ValueId};
use crate::onnx::attr_int;
use crate::operator::gradient::Tape;

impl Tape {
    /// Replaces the gradient with respect to every use in `wanted` by sums of weight times gradient: for each of the
    /// use's axes, the sums over all other axes. Drops the gradients of other uses. `shape` returns the shape of a
    /// weight.
    pub(super) fn sum_by_index(
        &mut self,
        graph: &Graph,
        wanted: &BTreeMap<Reader, Vec<usize>>,
        shape: &dyn Fn(ValueId) -> Vec<i64>,
    ) {
        for (reader, (value, gradient)) in std::mem::take(&mut self.uses) {
            let Some(axes) = wanted.get(&reader) else { continue };
            let rank = shape(value).len();
            let product = self.builder.add("Mul", &[&graph.values[value].name, &gradient], vec![]);
            // Axes that no result keeps are summed once for all results.
            let others: Vec<usize> = (0..rank).filter(|axis| !axes.contains(axis)).collect();
            let kept = self.reduce_sum(&product, &others, false);
            let sums: Vec<String> = axes
                .iter()
                .map(|own| {
                    let others: Vec<usize> =
                        axes.iter().enumerate().filter(|(_, axis)| *axis != own).map(|(at, _)| at).collect();
                    self.reduce_sum(&kept, &others, false)
                })
                .collect();
            let sums: Vec<&str> = sums.iter().map(String::as_str).collect();
            let joined = match sums.as_slice() {
                [one] => (*one).to_owned(),
                many => self.builder.add("Concat", many, vec![attr_int("axis", 0)]),
            };
            self.uses.insert(reader, (value, joined));
        }
    }
}
