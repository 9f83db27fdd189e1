//! Comparison of all values of both networks, each run as a whole. It names the first wrong value of a wrong cut if the
//! proof by induction does not run.

use std::collections::{HashMap, HashSet};

use super::Pair;
use super::compare;
use super::proof::{Difference, ValuesReport};
use crate::analysis::Analysis;
use crate::array::Array;
use crate::graph::Reader;
use crate::onnx::ValueInfoProto;
use crate::onnx::floats::Floats;
use crate::operator::reference::{KeptAxes, Reference};
use crate::runtime::{Runtime, RuntimeError};

/// Runs both networks with all floating point values as outputs and compares them in the order of the graph. Returns
/// a report of the values that the cut touches, and the first of all values that differs.
///
/// # Errors
/// One of the networks does not run with all its values as outputs.
pub(super) fn compare_values(
    analysis: &Analysis,
    kept: &HashMap<Reader, KeptAxes>,
    reference: &Reference,
    pair: &Pair<'_>,
    runtime: &Runtime,
    inputs: &[(String, Array)],
    (rtol, atol): (f64, f64),
) -> Result<(ValuesReport, Option<Difference>), RuntimeError> {
    let pruned_graph = pair.pruned.graph.clone().unwrap_or_default();
    let in_pruned: HashSet<&str> =
        pruned_graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    // The pruned graph may lack an output that no node reads.
    let in_reference: HashSet<&str> =
        reference.builder.nodes.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    let watched: Vec<(usize, &str)> = analysis
        .graph
        .nodes
        .iter()
        .flat_map(|node| node.outputs.iter().flatten().map(move |value| (node.id, *value)))
        .filter(|(_, value)| analysis.facts.values[*value].as_ref().is_some_and(crate::graph::fact::Fact::is_float))
        .map(|(node, value)| (node, analysis.graph.values[value].name.as_str()))
        .filter(|(_, name)| in_pruned.contains(name) && in_reference.contains(name))
        .collect();
    let info = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
    let mut with_values = pair.clone();
    let graph = with_values.reference.graph.get_or_insert_default();
    let mut wanted: Vec<String> = watched.iter().map(|(_, name)| (*name).to_owned()).collect();
    wanted.extend(watched.iter().filter_map(|(_, name)| reference.masks.get(*name).cloned()));
    wanted.sort();
    wanted.dedup();
    let initializers: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let known: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let new: Vec<ValueInfoProto> = wanted
        .iter()
        .filter(|name| !known.contains(*name) && !initializers.contains(name.as_str()))
        .map(|name| info(name))
        .collect();
    graph.output.extend(new);
    let expected: HashMap<String, Array> = with_values.reference_session(runtime)?.run(inputs)?.into_iter().collect();

    let graph = with_values.pruned.graph.get_or_insert_default();
    graph.output.extend(watched.iter().filter(|(_, name)| !known.contains(*name)).map(|(_, name)| info(name)));
    let found: HashMap<String, Array> = with_values.pruned_session(runtime)?.run(inputs)?.into_iter().collect();

    let (mut report, mut first) = (ValuesReport::default(), None);
    for (node, name) in watched {
        let (Some(expected_value), Some(found_value)) = (expected.get(name), found.get(name)) else {
            continue;
        };
        let mask = reference
            .masks
            .get(name)
            .and_then(|mask| expected.get(mask).cloned().or_else(|| constant_mask(reference, mask)));
        let is_touched = mask.is_some()
            || (0..analysis.graph.nodes[node].inputs.len()).any(|slot| kept.contains_key(&Reader { node, slot }));
        let kept = match &mask {
            None => expected_value.to_f64(),
            Some(mask) => compress(expected_value, mask),
        };
        let values = found_value.to_f64();
        // The output of an Expand or a ConstantOfShape shrinks with its input sizes. It has no mask, and its elements show
        // in the values computed from it.
        if mask.is_none() && values.len() < kept.len() {
            continue;
        }
        let difference = if kept.len() == values.len() {
            compare::Difference::of(&kept, &values)
        } else {
            compare::Difference::OF_SHAPE
        };
        if is_touched {
            report.compared += 1;
            if difference.is_conclusive(rtol) {
                report.conclusive += 1;
                report.worst_relative = report.worst_relative.max(difference.relative());
            }
        }
        if first.is_none() && !difference.is_within(rtol, atol) {
            let node = &analysis.graph.nodes[node];
            first = Some(Difference {
                value: name.to_owned(),
                node: node.name.clone(),
                op: node.op(),
                relative: difference.relative(),
                expected_elements: kept.len(),
                found_elements: values.len(),
            });
        }
    }
    Ok((report, first))
}

/// Returns a mask that is a constant of the reference.
fn constant_mask(reference: &Reference, name: &str) -> Option<Array> {
    let tensor = reference.builder.initializers.iter().find(|tensor| tensor.name == name)?;
    let dims = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let values = Floats::of(tensor.element_type(), &tensor.raw_data)?.to_f32();
    Array::new(dims, crate::array::ArrayData::F32(values)).ok()
}

/// Returns the elements of a value where its mask, broadcast to it, is not zero.
fn compress(value: &Array, mask: &Array) -> Vec<f64> {
    let values = value.to_f64();
    let mask_values = mask.to_f64();
    let rank = value.dims.len();
    let offset = rank.saturating_sub(mask.dims.len());
    let mut kept = Vec::new();
    for (at, element) in values.iter().enumerate() {
        let (mut rest, mut position, mut stride) = (at, 0, 1);
        for axis in (0..rank).rev() {
            let index = rest % value.dims[axis];
            rest /= value.dims[axis];
            if axis >= offset {
                let size = mask.dims[axis - offset];
                if size > 1 {
                    position += index * stride;
                }
                stride *= size;
            }
        }
        if mask_values.get(position).copied().unwrap_or(1.0) != 0.0 {
            kept.push(*element);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::array::ArrayData;

    #[test]
    fn compress_broadcasts_the_mask() {
        let value = Array::new(vec![2, 3], ArrayData::F32((0..6).map(|v| v as f32).collect())).unwrap();
        let mask = Array::new(vec![1, 3], ArrayData::F32(vec![1.0, 0.0, 1.0])).unwrap();
        assert_eq!(compress(&value, &mask), vec![0.0, 2.0, 3.0, 5.0]);
    }
}
