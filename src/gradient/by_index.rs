//! Sums over all that a channel holds, in the graph: what is linear in the gradient leaves the graph as a vector.
//!
//! With `G_i` the gradient at timestep i, a criterion that needs `sum over elements of w (sum over i of G_i)` alone gets the
//! same from `sum over i of (sum over elements of w G_i)`. What takes absolute values or squares of elements does not.

use std::collections::BTreeMap;

use crate::graph::{Graph, Reader, ValueId};
use crate::onnx::attr_int;
use crate::operator::gradient::Tape;

impl Tape {
    /// Replaces the gradient by every use in `wanted` by the sums of weight times gradient over all axes but one, for each of
    /// the axes named; drops those by other uses. `shape` tells the shape of a weight.
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
            // What no axis keeps is summed once for all of them.
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
