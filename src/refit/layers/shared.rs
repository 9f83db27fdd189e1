//! Layers that read one weight. They are fitted together, with the rows of all.

use std::collections::BTreeMap;

use super::{Bias, Event, Known, Layer, Refusals, Use};
use crate::graph::{NodeId, ValueId};
use crate::refit::network::Network;

/// Removes the layers whose weight several nodes read from the list, and joins those of each weight. Layers that can't be
/// joined are not fitted.
pub(super) fn take(
    network: &Network,
    layers: &mut Vec<Layer>,
    known: &Known<'_>,
    refusals: &mut Refusals,
) -> Vec<Event> {
    let mut by_weight: BTreeMap<ValueId, Vec<Layer>> = BTreeMap::new();
    let mut alone = Vec::new();
    let mut targets: BTreeMap<ValueId, usize> = BTreeMap::new();
    for layer in layers.drain(..) {
        *targets.entry(layer.target).or_default() += 1;
        if network.graph().values[layer.weight].consumers.len() > 1 {
            by_weight.entry(layer.weight).or_default().push(layer);
        } else {
            alone.push(layer);
        }
    }
    *layers = alone;
    let mut events = Vec::new();
    for (weight, mut members) in by_weight {
        for layer in &mut members {
            if targets.get(&layer.target).is_some_and(|count| *count > 1) {
                layer.truncate(network, known.is_paired);
            }
        }
        if depends(network, &members) {
            // A residual target may depend on another use.
            members.iter_mut().for_each(|layer| layer.truncate(network, known.is_paired));
        }
        let why = if network.graph().values[weight].consumers.len() != members.len() {
            Some("another node that is not fitted reads its weight")
        } else if depends(network, &members) {
            Some("it shares its weight with a layer whose output it depends on")
        } else if !members.iter().all(|layer| is_like(layer, &members[0])) {
            Some("layers read its weight in different forms")
        } else {
            None
        };
        if let Some(why) = why {
            refusals.extend(members.iter().map(|layer| (layer.node, why.to_owned())));
            continue;
        }
        events.push(Event { uses: members.into_iter().map(|layer| Use { layers: vec![layer] }).collect() });
    }
    // A bias that several nodes read is fitted only if they are the uses of one weight.
    for event in &mut events {
        let biases: Vec<Option<ValueId>> = event.layers().map(Layer::bias_value).collect();
        let readers = biases.first().copied().flatten().map_or(0, |bias| network.graph().values[bias].consumers.len());
        let is_common = readers == biases.len() && biases.iter().all(|bias| *bias == biases[0]);
        if !is_common {
            event.uses.iter_mut().flat_map(|of| &mut of.layers).for_each(|layer| keep_shared_bias(network, layer));
        }
    }
    layers.iter_mut().for_each(|layer| keep_shared_bias(network, layer));
    events
}

/// Excludes a bias that other nodes read from the fit.
fn keep_shared_bias(network: &Network, layer: &mut Layer) {
    let is_shared = layer.bias_value().is_some_and(|bias| network.graph().values[bias].consumers.len() > 1);
    if !is_shared {
        return;
    }
    match layer.bias.take() {
        Some(Bias::Added { value }) if layer.target != layer.output => {
            layer.steps.insert(0, super::Step::Add { value });
        }
        Some(Bias::Slot { value: Some(value), scale, .. }) => layer.fixed = Some((value, scale)),
        _ => {}
    }
}

fn is_like(layer: &Layer, first: &Layer) -> bool {
    layer.rows.has_weight_like(&first.rows)
        && layer.linear.scale == first.linear.scale
        && layer.rows.columns() == first.rows.columns()
}

/// Whether an input or addend of one layer depends on another's output.
fn depends(network: &Network, layers: &[Layer]) -> bool {
    let nodes: Vec<NodeId> = layers.iter().map(|layer| layer.node).collect();
    layers.iter().any(|layer| {
        let mut needs = vec![layer.input];
        needs.extend(layer.steps.iter().filter_map(|step| match step {
            super::Step::Add { value } => Some(*value),
            super::Step::Move { .. } => None,
        }));
        let ancestors = network.ancestors(&needs);
        nodes.iter().any(|node| *node != layer.node && ancestors.contains(node))
    })
}
