//! Finding the first value that a wrong cut gets wrong.

use std::collections::HashMap;

use prost::Message;
use serde::Serialize;

use super::reference::Reference;
use super::{errors, session_of};
use crate::array::Array;
use crate::load::Model;
use crate::onnx::{ModelProto, ValueInfoProto};
use crate::pipeline::Analysis;
use crate::runtime::{Optimization, Runtime, SessionOptions};

/// A value of the pruned network that is not the kept part of the original's.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Name of the value.
    pub value: String,
    /// The node that computes it.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Largest error relative to the largest magnitude; infinite where the number of elements differs.
    pub relative: f64,
    /// Kept elements of the original value.
    pub expected_elements: usize,
    /// Elements of the pruned value.
    pub found_elements: usize,
}

/// Runs both networks with all floating point values as outputs and compares them in the order of the graph.
pub(super) fn first_difference(
    analysis: &Analysis<'_>,
    reference: &Reference,
    model: &ModelProto,
    (pruned, decomposed): (&Model, Option<&ModelProto>),
    runtime: &Runtime,
    inputs: &[(String, Array)],
    (rtol, atol): (f64, f64),
) -> Option<Difference> {
    let in_pruned: std::collections::HashSet<&str> =
        pruned.graph().node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    let watched: Vec<(usize, &str)> = analysis
        .graph
        .nodes
        .iter()
        .flat_map(|node| node.outputs.iter().flatten().map(move |value| (node.id, *value)))
        .filter(|(_, value)| analysis.facts.values[*value].as_ref().is_some_and(crate::fact::Fact::is_float))
        .map(|(node, value)| (node, analysis.graph.values[value].name.as_str()))
        .filter(|(_, name)| in_pruned.contains(name))
        .collect();
    let info = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
    let mut with_values = model.clone();
    let graph = with_values.graph.as_mut()?;
    let mut wanted: Vec<String> = watched.iter().map(|(_, name)| (*name).to_owned()).collect();
    wanted.extend(watched.iter().filter_map(|(_, name)| reference.masks.get(*name).cloned()));
    wanted.sort();
    wanted.dedup();
    let initializers: std::collections::HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let known: std::collections::HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let new: Vec<ValueInfoProto> = wanted
        .iter()
        .filter(|name| !known.contains(*name) && !initializers.contains(name.as_str()))
        .map(|name| info(name))
        .collect();
    graph.output.extend(new);
    let mut of_reference = session_of(runtime, &with_values, analysis.model).ok()?;
    let expected: HashMap<String, Array> = of_reference.run(inputs).ok()?.into_iter().collect();
    drop(of_reference);

    let mut pruned_proto = decomposed.unwrap_or(pruned.proto()).clone();
    // A loaded model holds its graph apart.
    let mut graph = pruned_proto.graph.take().unwrap_or_else(|| pruned.graph().clone());
    graph.output.extend(watched.iter().filter(|(_, name)| !known.contains(*name)).map(|(_, name)| info(name)));
    pruned_proto.graph = Some(graph);
    let options = SessionOptions {
        optimization: Optimization::Basic,
        external_data_folder: Some(pruned.folder().to_owned()),
        ..SessionOptions::default()
    };
    let mut of_pruned = runtime.session_from_bytes(&pruned_proto.encode_to_vec(), &options).ok()?;
    let found: HashMap<String, Array> = of_pruned.run(inputs).ok()?.into_iter().collect();

    for (node, name) in watched {
        let (Some(expected_value), Some(found_value)) = (expected.get(name), found.get(name)) else {
            continue;
        };
        let mask = reference
            .masks
            .get(name)
            .and_then(|mask| expected.get(mask).cloned().or_else(|| constant_mask(reference, mask)));
        let kept = match &mask {
            None => expected_value.to_f64(),
            Some(mask) => compress(expected_value, mask),
        };
        let values = found_value.to_f64();
        let (absolute, relative, scale) =
            if kept.len() == values.len() { errors(&kept, &values) } else { (f64::INFINITY, f64::INFINITY, 0.0) };
        if absolute > atol + rtol * scale {
            let node = &analysis.graph.nodes[node];
            return Some(Difference {
                value: name.to_owned(),
                node: node.name.clone(),
                op: node.op(),
                relative,
                expected_elements: kept.len(),
                found_elements: values.len(),
            });
        }
    }
    None
}

/// A mask that is a constant of the reference.
fn constant_mask(reference: &Reference, name: &str) -> Option<Array> {
    let tensor = reference.initializers.iter().find(|tensor| tensor.name == name)?;
    let dims = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let values = tensor.raw_data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Array::new(dims, crate::array::ArrayData::F32(values)).ok()
}

/// The elements of a value where its mask, broadcast to it, is not zero.
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
