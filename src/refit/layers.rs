//! Which layers are fitted, to what, and in which order.
//!
//! A layer's output often flows straight into a sum, such as the residual stream. It is then fitted to what the original
//! has there, less the other addends as the pruned network has them: errors made upstream are corrected. Layers that flow
//! into the same sum are fitted together.

use std::collections::{BTreeMap, HashSet};

use super::network::Network;
use super::rows::Rows;
use crate::graph::{NodeId, ValueId};
use crate::operator::linear::Linear;
use crate::operator::part::Part;

/// A step from a layer's output towards the value that it is fitted to.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The elements in another shape or order: the shape before, and for a transposition the axes.
    Move { before: Vec<usize>, perm: Option<Vec<usize>> },
    /// Another addend.
    Add { value: ValueId },
}

/// A vector along the outputs that is added to them, and that a fit may change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bias {
    /// A constant that the node reads at a slot, or could.
    Slot { slot: usize, scale: f64, value: Option<ValueId> },
    /// A constant that the next node adds.
    Added { value: ValueId },
}

/// A layer with a weight that can be fitted.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) node: NodeId,
    pub(super) linear: Linear,
    pub(super) rows: Rows,
    pub(super) input: ValueId,
    pub(super) weight: ValueId,
    pub(super) output: ValueId,
    pub(super) bias: Option<Bias>,
    pub(super) steps: Vec<Step>,
    /// The values from the output to the target, that one left out.
    pub(super) path: Vec<ValueId>,
    /// The value, after all steps, whose original the layer is fitted to.
    pub(super) target: ValueId,
}

/// Layers that are fitted together, to the same target.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) layers: Vec<Layer>,
}

impl Event {
    /// The values of the pruned network that the fit needs: inputs of the layers, and other addends.
    pub(super) fn needs(&self, network: &Network) -> Vec<ValueId> {
        let mut needs: Vec<ValueId> = self.layers.iter().map(|layer| layer.input).collect();
        let is_stored = |value: &ValueId| network.graph().values[*value].initializer.is_some();
        needs.extend(self.addends().into_iter().filter(|value| !is_stored(value)));
        needs.sort_unstable();
        needs.dedup();
        needs
    }

    /// What is added on the way to the target, apart from what comes from the layers themselves.
    pub(super) fn addends(&self) -> Vec<ValueId> {
        let own: Vec<ValueId> = self.layers.iter().flat_map(|layer| &layer.path).copied().collect();
        let mut addends: Vec<ValueId> = Vec::new();
        for step in self.layers.iter().flat_map(|layer| &layer.steps) {
            match step {
                Step::Add { value } if !own.contains(value) && !addends.contains(value) => addends.push(*value),
                _ => {}
            }
        }
        addends
    }
}

/// Why a layer is not fitted.
pub(super) type Refusals = Vec<(NodeId, &'static str)>;

/// Finds the layers of the pruned network behind the first change, and orders their fits. `is_paired` tells whether a value's
/// original is known.
pub(super) fn events(
    network: &Network,
    is_changed: &dyn Fn(ValueId) -> bool,
    is_paired: &dyn Fn(ValueId) -> bool,
) -> (Vec<Event>, Refusals) {
    let mut refusals = Refusals::new();
    let mut layers = Vec::new();
    for node in &network.graph().nodes {
        let Some(linear) = network.linear(node) else { continue };
        match layer(network, node.id, linear, is_paired) {
            Ok(layer) => layers.push(layer),
            Err(why) => refusals.push((node.id, why)),
        }
    }
    truncate_shared(network, &mut layers, is_paired);
    // Layers whose input and addends are the original's have nothing to correct.
    layers.retain(|layer| {
        let addends = layer.steps.iter().filter_map(|step| match step {
            Step::Add { value } => Some(*value),
            Step::Move { .. } => None,
        });
        std::iter::once(layer.input).chain(addends).any(is_changed)
    });
    let mut by_target: BTreeMap<ValueId, Vec<Layer>> = BTreeMap::new();
    layers.into_iter().for_each(|layer| by_target.entry(layer.target).or_default().push(layer));
    let events = by_target.into_values().map(|layers| Event { layers }).collect();
    (ordered(network, events), refusals)
}

/// A node as a layer, with the way to its target.
fn layer(
    network: &Network,
    id: NodeId,
    linear: Linear,
    is_paired: &dyn Fn(ValueId) -> bool,
) -> Result<Layer, &'static str> {
    let node = &network.graph().nodes[id];
    let (Some(input), Some(weight), Some(output)) =
        (node.input(linear.input), node.input(linear.weight), node.output(0))
    else {
        return Err("it lacks an input");
    };
    let values = &network.graph().values;
    let is_stored = |value: ValueId| {
        values[value].initializer.is_some()
            || values[value].producer.is_some_and(|(node, _)| network.graph().nodes[node].inputs.is_empty())
    };
    if !network.is_float(weight) || !is_stored(weight) {
        return Err("its weight is computed by other nodes");
    }
    if values[weight].is_output || !values[weight].captured_by.is_empty() || values[weight].consumers.len() != 1 {
        return Err("other nodes share its weight");
    }
    let shapes = (network.shape(input), network.shape(weight), network.shape(output));
    let (Some(x), Some(w), Some(y)) = shapes else { return Err("its sizes are not known") };
    let rows = Rows::new(&linear, &x, &w, &y).ok_or("its form is not one that a fit knows")?;
    let bias = linear.bias.map(|bias| Bias::Slot { slot: bias.slot, scale: bias.scale, value: node.input(bias.slot) });
    let bias = bias.filter(|bias| match bias {
        Bias::Slot { value: Some(value), .. } => is_vector(network, *value) && is_stored(*value),
        _ => true,
    });
    let mut layer = Layer {
        node: id,
        linear,
        rows,
        input,
        weight,
        output,
        bias,
        steps: Vec::new(),
        path: vec![output],
        target: output,
    };
    follow(network, &mut layer, &y, is_paired);
    if !is_paired(layer.target) {
        return Err("the original has no value like its output");
    }
    Ok(layer)
}

/// Whether a constant is a vector that nothing else reads.
fn is_vector(network: &Network, value: ValueId) -> bool {
    let shape = network.shape(value).unwrap_or_default();
    shape.iter().filter(|size| **size != 1).count() <= 1 && network.graph().values[value].consumers.len() == 1
}

/// Goes from a layer's output through moves and sums as far as each value is read once; the last sum is the target.
fn follow(network: &Network, layer: &mut Layer, shape: &[usize], is_paired: &dyn Fn(ValueId) -> bool) {
    let (mut at, mut shape) = (layer.output, shape.to_vec());
    let (mut steps, mut path) = (Vec::new(), vec![layer.output]);
    while let Some((node, slot)) = network.only_reader(at) {
        let Some(output) = node.output(0) else { return };
        let Some(after) = network.shape(output) else { return };
        match network.part(node) {
            Some(Part::Sum) if node.inputs.len() == 2 && after == shape => {
                let Some(other) = node.input(1 - slot) else { return };
                if other == at {
                    return;
                }
                let is_first = steps.is_empty();
                let is_stored = network.graph().values[other].initializer.is_some();
                let has_bias = matches!(layer.bias, Some(Bias::Slot { value: Some(_), .. } | Bias::Added { .. }));
                if is_first && !has_bias && is_stored && along_outputs(network, layer, other, &shape) {
                    layer.bias = Some(Bias::Added { value: other });
                } else {
                    steps.push(Step::Add { value: other });
                }
                at = output;
                if is_paired(at) {
                    layer.steps.clone_from(&steps);
                    layer.path.clone_from(&path);
                    layer.target = at;
                }
                path.push(at);
            }
            Some(Part::Reshape) if slot == 0 => {
                steps.push(Step::Move { before: shape, perm: None });
                (at, shape) = (output, after);
                path.push(at);
            }
            Some(Part::Transpose(perm)) => {
                steps.push(Step::Move { before: shape, perm: Some(perm) });
                (at, shape) = (output, after);
                path.push(at);
            }
            _ => return,
        }
    }
}

/// Whether a constant is a vector along the outputs of a layer whose result has `shape`.
fn along_outputs(network: &Network, layer: &Layer, value: ValueId, shape: &[usize]) -> bool {
    let Some(sizes) = network.shape(value).filter(|_| is_vector(network, value)) else { return false };
    let outputs = layer.rows.outputs();
    if layer.rows.groups() != 1 || sizes.iter().product::<usize>() != outputs {
        return false;
    }
    // The axis of the result along which the vector lies is the one that numbers outputs.
    let Some(axis) = sizes.iter().position(|size| *size == outputs) else { return outputs == 1 };
    let axis = (axis + shape.len()).checked_sub(sizes.len());
    axis.is_some_and(|axis| layer.rows.output_axis(shape) == Some(axis))
}

/// Where several layers flow into one sum and can't be fitted together, only the last goes through it: the others' outputs
/// must be there by then.
fn truncate_shared(network: &Network, layers: &mut [Layer], is_paired: &dyn Fn(ValueId) -> bool) {
    let mut by_target: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (at, layer) in layers.iter().enumerate() {
        if layer.steps.iter().any(|step| matches!(step, Step::Add { .. })) {
            by_target.entry(layer.target).or_default().push(at);
        }
    }
    for members in by_target.into_values().filter(|members| members.len() > 1) {
        let is_plain = |at: &usize| layers[*at].steps.iter().all(|step| matches!(step, Step::Add { .. }));
        let first = &layers[members[0]];
        let is_alike = |at: &usize| {
            layers[*at].rows.sizes() == first.rows.sizes()
                && layers[*at].rows.outputs() == first.rows.outputs()
                && layers[*at].rows.groups() == 1
        };
        if members.iter().all(|at| is_plain(at) && is_alike(at)) {
            continue;
        }
        let last = members.iter().copied().max_by_key(|at| layers[*at].node);
        for at in members.into_iter().filter(|at| Some(*at) != last) {
            let layer = &mut layers[at];
            layer.steps.clear();
            layer.path = vec![layer.output];
            layer.target = layer.output;
            if let Some(Bias::Added { .. }) = layer.bias {
                // The sum with its bias is a value of its own.
                let sum = network.only_reader(layer.output).and_then(|(node, _)| node.output(0));
                layer.target = sum.unwrap_or(layer.output);
            }
            if !is_paired(layer.target) {
                layer.target = layer.output;
            }
        }
    }
}

/// The events in an order in which everything that a fit needs has been fitted before.
fn ordered(network: &Network, events: Vec<Event>) -> Vec<Event> {
    let owners: BTreeMap<NodeId, usize> = events
        .iter()
        .enumerate()
        .flat_map(|(at, event)| event.layers.iter().map(move |layer| (layer.node, at)))
        .collect();
    let before: Vec<HashSet<usize>> = events
        .iter()
        .enumerate()
        .map(|(at, event)| {
            let ancestors = network.ancestors(&event.needs(network));
            ancestors.iter().filter_map(|node| owners.get(node).copied()).filter(|owner| *owner != at).collect()
        })
        .collect();
    let position = |event: &Event| event.layers.iter().map(|layer| layer.node).max().unwrap_or(0);
    let mut open: Vec<usize> = (0..events.len()).collect();
    open.sort_by_key(|at| position(&events[*at]));
    let mut order: Vec<usize> = Vec::new();
    while !open.is_empty() {
        let is_ready = |at: &usize| before[*at].iter().all(|other| order.contains(other));
        // Sums that wait for each other, which no network is known to have, are taken as they come.
        let next = open.iter().position(is_ready).unwrap_or(0);
        order.push(open.remove(next));
    }
    let mut events: Vec<Option<Event>> = events.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| events[at].take()).collect()
}
