//! The choice of the layers that are fitted, of their targets, and of their order.
//!
//! The output of a layer often enters a sum directly, such as the residual stream. The layer is then fitted to the
//! original's value of that sum, minus the other addends of the pruned network: this corrects errors made upstream.
//! Layers that enter the same sum are fitted together, and so are layers that share a weight.

mod shared;

use std::collections::{BTreeMap, HashSet};

use super::network::Network;
use super::rows::Rows;
use crate::graph::{NodeId, ValueId};
use crate::operator::linear::{Linear, LinearBias};
use crate::operator::part::Part;

/// A step from a layer's output towards its target.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A reshape or transposition: the shape before, and the permutation of a transposition.
    Move { before: Vec<usize>, perm: Option<Vec<usize>> },
    /// The addition of another value.
    Add { value: ValueId },
}

/// A vector along the outputs that is added to them and that a fit may change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Bias {
    /// A constant that the node reads at a slot. `value` is `None`: the node could read one there, and does not.
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
    /// A bias that the node adds and that is not fitted, and its factor.
    pub(super) fixed: Option<(ValueId, f64)>,
    pub(super) steps: Vec<Step>,
    /// The values from the output to the target, without the target.
    pub(super) path: Vec<ValueId>,
    /// The value, after all steps, to whose original the layer is fitted.
    pub(super) target: ValueId,
}

impl Layer {
    /// Changes the target to the layer's own output, including its bias.
    fn truncate(&mut self, network: &Network, is_paired: &dyn Fn(ValueId) -> bool) {
        self.steps.clear();
        self.path = vec![self.output];
        self.target = self.output;
        if let Some(Bias::Added { .. }) = self.bias {
            // The sum with its bias is a separate value.
            let sum = network.only_reader(self.output).and_then(|(node, _)| node.output(0));
            self.target = sum.unwrap_or(self.output);
        }
        if !is_paired(self.target) {
            self.target = self.output;
        }
        self.drop_bias_beyond_target();
    }

    /// Drops a bias that is added behind the target: the fit can't include it.
    fn drop_bias_beyond_target(&mut self) {
        if self.target == self.output && matches!(self.bias, Some(Bias::Added { .. })) {
            self.bias = None;
        }
    }

    /// Returns the constant that is its bias, if it has one.
    pub(super) fn bias_value(&self) -> Option<ValueId> {
        match self.bias {
            Some(Bias::Slot { value, .. }) => value,
            Some(Bias::Added { value }) => Some(value),
            None => None,
        }
    }
}

/// Layers whose outputs add up to one target.
#[derive(Debug)]
pub(super) struct Use {
    pub(super) layers: Vec<Layer>,
}

/// Layers that are fitted together: several that add up to one target, or several that read one weight, each with its own
/// target.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) uses: Vec<Use>,
}

impl Event {
    /// Returns all layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.uses.iter().flat_map(|of| &of.layers)
    }

    /// Returns the values of the pruned network that the fit needs: inputs of the layers, and other addends.
    pub(super) fn needs(&self, network: &Network) -> Vec<ValueId> {
        let mut needs: Vec<ValueId> = self.uses.iter().flat_map(|of| of.needs(network)).collect();
        needs.sort_unstable();
        needs.dedup();
        needs
    }
}

impl Use {
    /// As [`Event::needs`].
    pub(super) fn needs(&self, network: &Network) -> Vec<ValueId> {
        let mut needs: Vec<ValueId> = self.layers.iter().map(|layer| layer.input).collect();
        let is_constant = |value: &ValueId| !network.is_computed(*value);
        needs.extend(self.addends().into_iter().filter(|value| !is_constant(value)));
        needs
    }

    /// Returns the values that are added on the way to the target, without those from the layers themselves.
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

/// Layers that are not fitted, with the reasons.
pub(super) type Refusals = Vec<(NodeId, String)>;

/// Facts about the pruned network that come from its original and its file.
pub(super) struct Known<'a> {
    /// Whether a value differs from the kept part of the original's.
    pub(super) is_changed: &'a dyn Fn(ValueId) -> bool,
    /// Whether the original's counterpart of a value is known.
    pub(super) is_paired: &'a dyn Fn(ValueId) -> bool,
    /// Why the elements of a weight can't be changed. `None`: they can.
    pub(super) held: &'a dyn Fn(ValueId) -> Option<String>,
    /// Whether a bias can be added to a node at a slot and along an axis of its output.
    pub(super) takes_bias: &'a dyn Fn(NodeId, usize, usize) -> bool,
}

/// Finds the layers of the pruned network downstream of the first change, and orders their fits.
pub(super) fn events(network: &Network, known: &Known<'_>) -> (Vec<Event>, Refusals) {
    let mut refusals = Refusals::new();
    let mut layers = Vec::new();
    for node in &network.graph().nodes {
        let Some(linear) = network.linear(node) else { continue };
        match layer(network, node.id, linear, known) {
            Ok(layer) => layers.push(layer),
            Err(why) => refusals.push((node.id, why)),
        }
    }
    let shared = shared::take(network, &mut layers, known, &mut refusals);
    truncate_shared(network, &mut layers, known.is_paired);
    let mut by_target: BTreeMap<ValueId, Vec<Layer>> = BTreeMap::new();
    layers.into_iter().for_each(|layer| by_target.entry(layer.target).or_default().push(layer));
    let single = by_target.into_values().map(|layers| Event { uses: vec![Use { layers }] });
    let mut events: Vec<Event> = single.chain(shared).collect();
    // Layers whose input and addends equal the original's have nothing to correct.
    for event in &mut events {
        if event.uses.len() == 1 {
            event.uses[0].layers.retain(|layer| depends_on(layer, known.is_changed));
        }
    }
    events.retain(|event| event.layers().any(|layer| depends_on(layer, known.is_changed)));
    (ordered(network, events), refusals)
}

/// Whether `is` holds for the input of a layer or for an addend before its target.
fn depends_on(layer: &Layer, is: &dyn Fn(ValueId) -> bool) -> bool {
    let addends = layer.steps.iter().filter_map(|step| match step {
        Step::Add { value } => Some(*value),
        Step::Move { .. } => None,
    });
    std::iter::once(layer.input).chain(addends).any(is)
}

/// Converts a node to a layer, with the steps to its target.
fn layer(network: &Network, id: NodeId, linear: Linear, known: &Known<'_>) -> Result<Layer, String> {
    let node = &network.graph().nodes[id];
    let (Some(input), Some(weight), Some(output)) =
        (node.input(linear.input), node.input(linear.weight), node.output(0))
    else {
        return Err("it lacks an input".to_owned());
    };
    if let Some(why) = (known.held)(weight) {
        return Err(why);
    }
    let shapes = (network.shape(input), network.shape(weight), network.shape(output));
    let (Some(x), Some(w), Some(y)) = shapes else { return Err("its sizes are not known".to_owned()) };
    let rows = Rows::new(&linear, &x, &w, &y).ok_or("the refit does not support its shapes or attributes")?;
    let mut layer = Layer {
        node: id,
        linear,
        rows,
        input,
        weight,
        output,
        bias: None,
        fixed: None,
        steps: Vec::new(),
        path: vec![output],
        target: output,
    };
    (layer.bias, layer.fixed) = slot_bias(network, &layer, &y, known)?;
    follow(network, &mut layer, &y, known);
    layer.drop_bias_beyond_target();
    if !(known.is_paired)(layer.target) {
        return Err("no value of the original corresponds to its output".to_owned());
    }
    Ok(layer)
}

/// Returns the bias that a node reads at a slot, or could read: one that is fitted, or one that is not.
#[expect(clippy::type_complexity, reason = "one of two, or neither")]
fn slot_bias(
    network: &Network,
    layer: &Layer,
    y: &[usize],
    known: &Known<'_>,
) -> Result<(Option<Bias>, Option<(ValueId, f64)>), String> {
    let Some(LinearBias { slot, scale }) = layer.linear.bias else { return Ok((None, None)) };
    let Some(value) = network.graph().nodes[layer.node].input(slot) else {
        let axis = layer.rows.output_axis(y).filter(|_| layer.rows.groups() == 1);
        let takes = axis.is_some_and(|axis| (known.takes_bias)(layer.node, slot, axis));
        return Ok((takes.then_some(Bias::Slot { slot, scale, value: None }), None));
    };
    let outputs = layer.rows.outputs() * layer.rows.groups();
    let shape = network.shape(value).unwrap_or_default();
    let count: usize = shape.iter().product();
    let is_along = count == 1 || count == outputs && shape.last() == Some(&outputs);
    if !is_along || network.is_computed(value) || !network.is_float(value) {
        return Err("its bias is computed, or is not a vector along its outputs".to_owned());
    }
    let is_fitted = count == outputs && network.is_stored(value) && (known.held)(value).is_none();
    Ok(match is_fitted {
        true => (Some(Bias::Slot { slot, scale, value: Some(value) }), None),
        false => (None, Some((value, scale))),
    })
}

/// Whether a constant is a vector.
fn is_vector(network: &Network, value: ValueId) -> bool {
    let shape = network.shape(value).unwrap_or_default();
    network.is_float(value) && shape.iter().filter(|size| **size != 1).count() <= 1
}

/// Follows a layer's output through moves and sums while each value has one reader; the last sum is the target.
fn follow(network: &Network, layer: &mut Layer, shape: &[usize], known: &Known<'_>) {
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
                let is_stored = network.is_stored(other) && (known.held)(other).is_none();
                let has_bias = layer.fixed.is_some() || layer.bias_value().is_some();
                if is_first && !has_bias && is_stored && along_outputs(network, layer, other, &shape) {
                    layer.bias = Some(Bias::Added { value: other });
                } else {
                    steps.push(Step::Add { value: other });
                }
                at = output;
                if (known.is_paired)(at) {
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

/// Whether a constant is a vector along the output channels of a layer whose result has `shape`.
fn along_outputs(network: &Network, layer: &Layer, value: ValueId, shape: &[usize]) -> bool {
    let Some(sizes) = network.shape(value).filter(|_| is_vector(network, value)) else { return false };
    let outputs = layer.rows.outputs();
    if layer.rows.groups() != 1 || sizes.iter().product::<usize>() != outputs {
        return false;
    }
    // The vector must lie along the axis of the output channels.
    let Some(axis) = sizes.iter().position(|size| *size == outputs) else { return outputs == 1 };
    let axis = (axis + shape.len()).checked_sub(sizes.len());
    axis.is_some_and(|axis| layer.rows.output_axis(shape) == Some(axis))
}

/// If several layers enter one sum and can't be fitted together, only the last is fitted to the sum. The others are
/// fitted to their own outputs, which must be known by then.
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
            layers[at].truncate(network, is_paired);
        }
    }
}

/// Orders the events so that everything that a fit needs has been fitted before.
fn ordered(network: &Network, events: Vec<Event>) -> Vec<Event> {
    let owners: BTreeMap<NodeId, usize> =
        events.iter().enumerate().flat_map(|(at, event)| event.layers().map(move |layer| (layer.node, at))).collect();
    let before: Vec<HashSet<usize>> = events
        .iter()
        .enumerate()
        .map(|(at, event)| {
            let ancestors = network.ancestors(&event.needs(network));
            ancestors.iter().filter_map(|node| owners.get(node).copied()).filter(|owner| *owner != at).collect()
        })
        .collect();
    let position = |event: &Event| event.layers().map(|layer| layer.node).max().unwrap_or(0);
    let mut open: Vec<usize> = (0..events.len()).collect();
    open.sort_by_key(|at| position(&events[*at]));
    let mut order: Vec<usize> = Vec::new();
    while !open.is_empty() {
        let is_ready = |at: &usize| before[*at].iter().all(|other| order.contains(other));
        // Sums that wait for each other occur in no known network; they are taken in the given order.
        let next = open.iter().position(is_ready).unwrap_or(0);
        order.push(open.remove(next));
    }
    let mut events: Vec<Option<Event>> = events.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| events[at].take()).collect()
}
