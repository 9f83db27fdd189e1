//! The node chain with which exporters express a group norm, with or without SiLU: reshape into groups, normalise,
//! reshape back, multiply by the scale, add the offset [, multiply by the sigmoid of the result].
//!
//! One kernel computes all gradients of the chain, and one computes its forward pass. Values in between are not kept.

use super::Choice;
use super::silu::{Silu, silu};
use crate::graph::fact::Known;
use crate::graph::{NodeId, ValueId};
use crate::operator::gradient::Step;
use crate::operator::part::{Part, RowNorm};

/// The nodes of a group norm.
struct Chain {
    x: ValueId,
    /// The node that reshapes x into groups.
    first: NodeId,
    norm: RowNorm,
    /// The node that normalises, with scale one and offset zero for every group.
    normalizing: NodeId,
    /// The node that reshapes back.
    back: NodeId,
    /// The node that scales, and the slot of the scale.
    scale: (NodeId, usize),
    /// The node that adds the offset, and the slot of the offset.
    offset: (NodeId, usize),
}

/// Matches a group norm with SiLU that ends at this node.
pub(super) fn with_silu(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Silu { z, sigmoid, .. } = silu(choice, step.node)?;
    if !choice.is_read_only_by(z, &[sigmoid, step.node]) {
        return None;
    }
    let mut chain = chain(choice, choice.producer(z)?.id)?;
    chain.norm.has_silu = true;
    replace(choice, step, &chain, &[step.node, sigmoid])
}

/// Matches a group norm that ends at this node.
pub(super) fn without_silu(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let chain = chain(choice, step.node)?;
    replace(choice, step, &chain, &[])
}

/// Finds the group norm whose offset the node `last` adds.
fn chain(choice: &Choice<'_, '_>, last: NodeId) -> Option<Chain> {
    let Part::Sum = choice.part(last)? else { return None };
    let shape = choice.shape(choice.node(last).output(0)?)?;
    let channels = *shape.get(1)?;
    // One element per channel. Leading axes of size one are allowed.
    let is_per_channel = |value: ValueId| {
        choice.shape(value).is_some_and(|own| {
            let expected = (0..own.len()).map(|at| if shape.len() - own.len() + at == 1 { channels } else { 1 });
            (shape.len() - 1..=shape.len()).contains(&own.len()) && own.iter().copied().eq(expected)
        })
    };
    // Returns the node that computes one operand, and the slot of the other operand.
    let operands = |node: NodeId, wanted: &Part| {
        (0..2).find_map(|slot| {
            let (value, parameter) = (choice.node(node).input(slot)?, choice.node(node).input(1 - slot)?);
            let producer = choice.producer(value).filter(|of| choice.part(of.id).as_ref() == Some(wanted))?;
            let is_whole = choice.is_read_only_by(value, &[node]) && choice.shape(value).as_ref() == Some(&shape);
            (is_whole && is_per_channel(parameter)).then_some((producer.id, 1 - slot))
        })
    };
    let (scaling, offset) = operands(last, &Part::Product)?;
    let (back, scale) = operands(scaling, &Part::Reshape)?;
    let only = |value: &ValueId, node: NodeId| choice.is_read_only_by(*value, &[node]);
    let normed = choice.node(back).input(0).filter(|value| only(value, back))?;
    let normalizing = choice.producer(normed)?;
    let Part::Norm(norm) = choice.part(normalizing.id)? else { return None };
    let grouped = normalizing.input(0).filter(|value| only(value, normalizing.id))?;
    let first = choice.producer(grouped).filter(|node| choice.part(node.id) == Some(Part::Reshape))?;
    let x = first.input(0)?;
    let is_all = |slot: usize, wanted: f64| {
        let fact = normalizing.input(slot).and_then(|value| choice.network.facts.values[value].as_ref());
        let Some(Known::Floats(values)) = fact.and_then(|fact| fact.known.as_ref()) else { return false };
        !values.is_empty() && values.iter().all(|value| *value == wanted)
    };
    let is_plain = is_all(1, 1.0) && is_all(2, 0.0) && norm.inner == norm.row && norm.is_centred;
    let inner: i64 = shape[2..].iter().product();
    let fits = choice.shape(x).as_ref() == Some(&shape)
        && channels % norm.groups == 0
        && inner > 0
        && norm.row == channels / norm.groups * inner;
    let norm = RowNorm { inner, ..norm };
    let normalizing = normalizing.id;
    let first = first.id;
    (is_plain && fits).then_some(Chain {
        x,
        first,
        norm,
        normalizing,
        back,
        scale: (scaling, scale),
        offset: (last, offset),
    })
}

fn replace(choice: &mut Choice<'_, '_>, step: &Step, chain: &Chain, silu: &[NodeId]) -> Option<()> {
    let dy = step.upstream.first()?.as_deref()?;
    let parameter = |(node, slot): (NodeId, usize)| choice.node(node).input(slot);
    let (scale, offset) = (parameter(chain.scale)?, parameter(chain.offset)?);
    let own = [1, 2].map(|slot| choice.node(chain.normalizing).input(slot));
    let groups = own[0].and_then(|value| choice.shape(value))?.first().copied()?;
    let shapes = [choice.shape(scale)?, choice.shape(offset)?];
    let channels: i64 = shapes[0].iter().product();
    let [x, scale, offset] = [chain.x, scale, offset].map(|value| choice.name(value));
    let output = choice.name(choice.node(step.node).output(0)?);
    let chain_nodes = [chain.first, chain.normalizing, chain.back, chain.scale.0, chain.offset.0];
    let region = [silu, &chain_nodes].concat();
    choice.replace(step, &region, |choice| {
        let [dx, by_scale, by_offset] = choice.norm_gradient(&chain.norm, x, dy, (scale, offset));
        // The gradients of the norm's own scale and offset (one and zero for every norm group) may be wanted as well.
        for (slot, gradient) in [(1, &by_scale), (2, &by_offset)] {
            if choice.given(chain.normalizing, slot).is_some() {
                let vector = choice.tape.reshape(scale, &[channels]);
                let scaled = choice.tape.builder.add("Mul", &[&vector, gradient], vec![]);
                let scaled = choice.tape.reshape(&scaled, &[groups, channels / groups]);
                let sum = choice.tape.reduce_sum(&scaled, &[1], false);
                choice.take_over(&region, chain.normalizing, slot, &sum);
            }
        }
        for ((node, slot), gradient, shape) in
            [(chain.scale, by_scale, &shapes[0]), (chain.offset, by_offset, &shapes[1])]
        {
            let gradient = choice.shaped(&gradient, shape);
            choice.take_over(&region, node, slot, &gradient);
        }
        choice.take_over(&region, chain.first, 0, &dx);
    });
    choice.compute_as_norm(output, &chain.norm, [x, scale, offset]);
    Some(())
}
