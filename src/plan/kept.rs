//! What a plan says of every reader, checked against the model that it is for.

use std::collections::HashMap;
use std::path::Path;

use super::{GroupPlan, Plan, TensorPlan};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::fact::static_shape;
use crate::graph::{Graph, Reader, ValueId};
use crate::operator::reference::KeptAxes;

/// What every reader keeps, by node and input slot of the graph; `path` names the plan in messages.
///
/// # Errors
/// The plan names a reader, a constant, a shape, an axis or an index that the model does not have, keeps nothing of an
/// axis or all of it, lists indices twice or out of order, or says two things of one reader.
pub fn kept_axes(plan: &Plan, analysis: &Analysis, path: &Path) -> Result<HashMap<Reader, KeptAxes>, Error> {
    let fail = |message: String| {
        Error::unreadable(path, message).hint("the plan belongs to another model; prune this one to get its plan")
    };
    let graph = &analysis.graph;
    plan.groups.iter().try_for_each(check_group).map_err(fail)?;
    let mut kept = HashMap::new();
    for tensor in &plan.tensors {
        let name = &tensor.tensor;
        let value = graph
            .value(name)
            .ok_or_else(|| fail(format!("the plan names constant {name:?}, which the model lacks")))?;
        let fact = analysis.facts.values[value].as_ref();
        let sizes = fact.and_then(|fact| static_shape(fact.shape.as_ref()?));
        check_dims(tensor, sizes.as_deref()).map_err(fail)?;
        for (axis, indices) in &tensor.keep {
            check_indices(tensor, *axis, indices).map_err(fail)?;
        }
        for (output, slot) in &tensor.readers {
            let reader = reader(graph, value, output, *slot).ok_or_else(|| {
                fail(format!("the plan names input {slot} of node {output:?} as a reader of {name:?}, which it is not"))
            })?;
            if kept.insert(reader, tensor.keep.clone()).is_some() {
                return Err(fail(format!("the plan names input {slot} of node {output:?} twice")));
            }
        }
    }
    Ok(kept)
}

/// Checks what the plan says of a channel group: readers of the plan count on it, the cut does not.
fn check_group(group: &GroupPlan) -> Result<(), String> {
    let GroupPlan { name, channels, kept, scores, .. } = group;
    if !kept.is_sorted_by(|a, b| a < b) || kept.last().is_some_and(|last| last >= channels) {
        return Err(format!("the plan keeps channels of group {name:?} that are not among its {channels}, or twice"));
    }
    if !scores.is_empty() && scores.len() != *channels {
        return Err(format!("the plan has {} scores for the {channels} channels of group {name:?}", scores.len()));
    }
    Ok(())
}

/// The node with this first output, if it reads the value at this input.
fn reader(graph: &Graph, value: ValueId, output: &str, slot: usize) -> Option<Reader> {
    let (node, _) = graph.values[graph.value(output)?].producer?;
    (graph.nodes[node].input(slot) == Some(value)).then_some(Reader { node, slot })
}

/// Compares the shape that the plan gives a constant with its own, as far as that is known.
fn check_dims(tensor: &TensorPlan, sizes: Option<&[usize]>) -> Result<(), String> {
    let TensorPlan { tensor: name, dims, keep, readers } = tensor;
    let is_same = |sizes: &[usize]| {
        sizes.len() == dims.len() && sizes.iter().zip(dims).all(|(size, dim)| i64::try_from(*size) == Ok(*dim))
    };
    if let Some(sizes) = sizes.filter(|sizes| !is_same(sizes)) {
        return Err(format!("the plan gives {name:?} the shape {dims:?}, the model {sizes:?}"));
    }
    if keep.is_empty() {
        return Err(format!("the plan names {name:?}, but no axis of it"));
    }
    if readers.is_empty() {
        return Err(format!("the plan names {name:?}, but no reader of it"));
    }
    Ok(())
}

/// Checks the indices that are kept along one axis: some, not all, in ascending order, below the size of the axis.
fn check_indices(tensor: &TensorPlan, axis: usize, indices: &[usize]) -> Result<(), String> {
    let (name, rank) = (&tensor.tensor, tensor.dims.len());
    let Some(size) = tensor.dims.get(axis).map(|size| usize::try_from(*size).unwrap_or(0)) else {
        return Err(format!("the plan names axis {axis} of {name:?}, which has {rank} axes"));
    };
    let Some(last) = indices.last() else {
        return Err(format!("the plan keeps nothing of axis {axis} of {name:?}"));
    };
    if let Some(pair) = indices.windows(2).find(|pair| pair[0] >= pair[1]) {
        let text = if pair[0] == pair[1] { "twice" } else { "out of order" };
        return Err(format!("the plan lists index {} of axis {axis} of {name:?} {text}", pair[1]));
    }
    if *last >= size {
        return Err(format!("the plan keeps index {last} of axis {axis} of {name:?}, which has {size}"));
    }
    if indices.len() == size {
        return Err(format!("the plan names axis {axis} of {name:?}, of which it removes nothing"));
    }
    Ok(())
}
