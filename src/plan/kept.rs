//! Checks the kept indices of a plan against the model that the plan is for.

use std::collections::HashMap;
use std::path::Path;

use super::{GroupPlan, Plan, TensorPlan};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::fact::static_shape;
use crate::graph::{Graph, Reader, ValueId};
use crate::operator::reference::KeptAxes;

/// Returns what every reader keeps, by node and input slot of the graph; `path` names the plan in messages.
///
/// # Errors
/// Fails if the plan names a reader, a constant, a shape, an axis or an index that the model does not have; if it keeps
/// no index of an axis, or all; if indices are duplicate or out of order; or if it has two entries for one reader.
pub fn kept_axes(plan: &Plan, analysis: &Analysis, path: &Path) -> Result<HashMap<Reader, KeptAxes>, Error> {
    let fail = |message: String| {
        Error::unreadable(path, message).hint("the plan belongs to another model: prune this model to get its plan")
    };
    let graph = &analysis.graph;
    plan.groups.iter().try_for_each(check_group).map_err(fail)?;
    let mut kept = HashMap::new();
    for tensor in &plan.tensors {
        let name = &tensor.tensor;
        let value = graph
            .value(name)
            .ok_or_else(|| fail(format!("the plan names constant {name:?}, which the model does not have")))?;
        let fact = analysis.facts.values[value].as_ref();
        let sizes = fact.and_then(|fact| static_shape(fact.shape.as_ref()?));
        check_dims(tensor, sizes.as_deref()).map_err(fail)?;
        for (axis, indices) in &tensor.keep {
            check_indices(tensor, *axis, indices).map_err(fail)?;
        }
        for (output, slot) in &tensor.readers {
            let reader = reader(graph, value, output, *slot).ok_or_else(|| {
                fail(format!(
                    "the plan expects {name:?} as input {slot} of node {output:?}, the model has another input there"
                ))
            })?;
            if kept.insert(reader, tensor.keep.clone()).is_some() {
                return Err(fail(format!("the plan names input {slot} of node {output:?} twice")));
            }
        }
    }
    Ok(kept)
}

/// Checks a channel group of the plan. The cut does not use it, but readers of the plan rely on it.
fn check_group(group: &GroupPlan) -> Result<(), String> {
    let GroupPlan { name, channels, kept, scores, .. } = group;
    if !kept.is_sorted_by(|a, b| a < b) || kept.last().is_some_and(|last| last >= channels) {
        return Err(format!(
            "the plan lists kept channels of group {name:?} twice, out of order or beyond its {channels}"
        ));
    }
    if !scores.is_empty() && scores.len() != *channels {
        return Err(format!(
            "the plan has {} scores for group {name:?}, expected one for each of its {channels} channels",
            scores.len()
        ));
    }
    Ok(())
}

/// Returns the node with this first output and the slot, if the node takes the value as this input.
fn reader(graph: &Graph, value: ValueId, output: &str, slot: usize) -> Option<Reader> {
    let (node, _) = graph.values[graph.value(output)?].producer?;
    (graph.nodes[node].input(slot) == Some(value)).then_some(Reader { node, slot })
}

/// Compares the shape of a constant in the plan with its shape in the model, if that is known.
fn check_dims(tensor: &TensorPlan, sizes: Option<&[usize]>) -> Result<(), String> {
    let TensorPlan { tensor: name, dims, keep, readers } = tensor;
    let is_same = |sizes: &[usize]| {
        sizes.len() == dims.len() && sizes.iter().zip(dims).all(|(size, dim)| i64::try_from(*size) == Ok(*dim))
    };
    if let Some(sizes) = sizes.filter(|sizes| !is_same(sizes)) {
        return Err(format!("the plan expects {name:?} of shape {dims:?}, the model has {sizes:?}"));
    }
    if keep.is_empty() {
        return Err(format!("the plan lists {name:?} without an axis"));
    }
    if readers.is_empty() {
        return Err(format!("the plan lists {name:?} without a reader"));
    }
    Ok(())
}

/// Checks the kept indices of one axis: at least one, not all, in ascending order, below the size of the axis.
fn check_indices(tensor: &TensorPlan, axis: usize, indices: &[usize]) -> Result<(), String> {
    let (name, rank) = (&tensor.tensor, tensor.dims.len());
    let Some(size) = tensor.dims.get(axis).map(|size| usize::try_from(*size).unwrap_or(0)) else {
        return Err(format!("the plan lists axis {axis} of {name:?}, which has only {rank} axes"));
    };
    let Some(last) = indices.last() else {
        return Err(format!("the plan keeps no index of axis {axis} of {name:?}"));
    };
    if let Some(pair) = indices.windows(2).find(|pair| pair[0] >= pair[1]) {
        let text = if pair[0] == pair[1] { "twice" } else { "out of order" };
        return Err(format!("the plan lists index {} of axis {axis} of {name:?} {text}", pair[1]));
    }
    if *last >= size {
        return Err(format!("the plan keeps index {last} of axis {axis} of {name:?}, which has size {size}"));
    }
    if indices.len() == size {
        return Err(format!("the plan lists axis {axis} of {name:?} but removes no index of it"));
    }
    Ok(())
}
