//! Which layers are fitted, to what, and in which order.
//!
//! A layer's output often flows straight into a sum, such as the residual stream. It is then fitted to what the original
//! has there, less the other addends as the pruned network has them: errors made upstream are corrected. Layers that flow
//! into the same sum are fitted together, and so are layers that share a weight.

mod shared;

use std::collections::{BTreeMap, HashSet};

use super::network::Network;
use super::rows::Rows;
use crate::graph::{NodeId, ValueId};
use crate::operator::linear::{Linear, LinearBias};
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
    /// A bias that the node adds and that stays as it is, and its factor.
    pub(super) fixed: Option<(ValueId, f64)>,
    pub(super) steps: Vec<Step>,
    /// The values from the output to the target, that one left out.
    pub(super) path: Vec<ValueId>,
    /// The value, after all steps, whose original the layer is fitted to.
    pub(super) target: ValueId,
}

impl Layer {
    /// Lets the layer be fitted to its own output, bias included, alone.
    fn truncate(&mut self, network: &Network, is_paired: &dyn Fn(ValueId) -> bool) {
        self.steps.clear();
        self.path = vec![self.output];
        self.target = self.output;
        if let Some(Bias::Added { .. }) = self.bias {
            // The sum with its bias is a value of its own.
            let sum = network.only_reader(self.output).and_then(|(node, _)| node.output(0));
            self.target = sum.unwrap_or(self.output);
        }
        if !is_paired(self.target) {
            self.target = self.output;
        }
        self.drop_bias_beyond_target();
    }

    /// What is added behind the target is no bias of the fit.
    fn drop_bias_beyond_target(&mut self) {
        if self.target == self.output && matches!(self.bias, Some(Bias::Added { .. })) {
            self.bias = None;
        }
    }

    /// The constant that is its bias, if it has one.
    pub(super) fn bias_value(&self) -> Option<ValueId> {
        match self.bias {
            Some(Bias::Slot { value, .. }) => value,
            Some(Bias::Added { value }) => Some(value),
            None => None,
        }
    }
}

/// Layers whose results add up to one target.
#[derive(Debug)]
pub(super) struct Use {
    pub(super) layers: Vec<Layer>,
}

/// Layers that are fitted together: several that add up to one target, or several that read one weight, each with a target
/// of its own.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) uses: Vec<Use>,
}

impl Event {
    /// All layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.uses.iter().flat_map(|of| &of.layers)
    }

    /// The values of the pruned network that the fit needs: inputs of the layers, and other addends.
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
pub(super) type Refusals = Vec<(NodeId, String)>;

/// What is known of the pruned network beside itself.
pub(super) struct Known<'a> {
    /// Whether a value differs from the kept part of the original's.
    pub(super) is_changed: &'a dyn Fn(ValueId) -> bool,
    /// Whether the original of a value is known.
    pub(super) is_paired: &'a dyn Fn(ValueId) -> bool,
    /// Why a weight can't be given other elements, if it can't.
    pub(super) held: &'a dyn Fn(ValueId) -> Option<String>,
    /// Whether a node may get a bias at a slot and along an axis of its output.
    pub(super) takes_bias: &'a dyn Fn(NodeId, usize, usize) -> bool,
}

/// Finds the layers of the pruned network behind the first change, and orders their fits.
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
    // Layers whose input and addends are the original's have nothing to correct.
    for event in &mut events {
        if event.uses.len() == 1 {
            event.uses[0].layers.retain(|layer| depends_on(layer, known.is_changed));
        }
    }
    events.retain(|event| event.layers().any(|layer| depends_on(layer, known.is_changed)));
    (ordered(network, events), refusals)
}

/// Whether the input of a layer, or an addend on its way, is such a value.
fn depends_on(layer: &Layer, is: &dyn Fn(ValueId) -> bool) -> bool {
    let addends = layer.steps.iter().filter_map(|step| match step {
        Step::Add { value } => Some(*value),
        Step::Move { .. } => None,
    });
    std::iter::once(layer.input).chain(addends).any(is)
}

/// A node as a layer, with the way to its target.
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
    let rows = Rows::new(&linear, &x, &w, &y).ok_or("its form is not one that a fit knows")?;
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
        return Err("the original has no value like its output".to_owned());
    }
    Ok(layer)
}

/// The bias that a node reads at a slot, or could: one that is fitted, or one that stays.
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
        return Err("its bias is computed, or no vector along its outputs".to_owned());
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

/// Goes from a layer's output through moves and sums as far as each value is read once; the last sum is the target.
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
            layers[at].truncate(network, is_paired);
        }
    }
}

/// The events in an order in which everything that a fit needs has been fitted before.
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
        // Sums that wait for each other, which no network is known to have, are taken as they come.
        let next = open.iter().position(is_ready).unwrap_or(0);
        order.push(open.remove(next));
    }
    let mut events: Vec<Option<Event>> = events.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| events[at].take()).collect()
}
