//! The chain in which exporters write a group norm, with or without SiLU after it:
//! `Reshape → InstanceNormalization → Reshape → Mul → Add [→ Sigmoid, Mul]`.
//!
//! The last node's gradient rule takes over the whole chain, whose gradient is that of one norm: the nodes before it get
//! none of their own, and what they compute is not kept.

use crate::graph::{Node, ValueId};
use crate::operator::RuleError;
use crate::operator::gradient::{GradientCx, RowNorm};

/// A group norm in front of a node.
struct Chain<'a> {
    x: ValueId,
    /// The first node, which reads x.
    first: &'a Node,
    norm: RowNorm,
    /// The node that normalises.
    normalizing: &'a Node,
    /// The node that scales, and the slot of the scale.
    scale: (&'a Node, usize),
    /// The node that adds the offset, and the slot of the offset.
    offset: (&'a Node, usize),
}

/// The rule of an Add that ends a group norm; `false` if it does not, or if something else reads what lies between.
pub(in crate::ops) fn ends_norm(node: &Node, cx: &mut GradientCx<'_>) -> Result<bool, RuleError> {
    if !cx.has_kernels() {
        return Ok(false);
    }
    match chain(cx.node(), cx) {
        Some(chain) if chain.offset.0.id == node.id => emit(&chain, cx).map(|()| true),
        _ => Ok(false),
    }
}

/// The rule of a Mul that ends `z sigmoid(z)`, with a group norm before it or without.
pub(in crate::ops) fn ends_silu(cx: &mut GradientCx<'_>) -> Result<bool, RuleError> {
    let Some((z, sigmoid)) = cx.has_kernels().then(|| silu(cx)).flatten() else { return Ok(false) };
    let node = cx.node();
    if cx.is_read_only_by(z, &[sigmoid.id, node.id])
        && let Some(last) = cx.producer(z)
        && let Some(mut chain) = chain(last, cx)
    {
        chain.norm.has_silu = true;
        return emit(&chain, cx).map(|()| true);
    }
    let dy = cx.dy()?;
    let dz = cx.silu_gradient(cx.name(z), &dy);
    cx.give_at(sigmoid, 0, dz);
    Ok(true)
}

/// The z of `z sigmoid(z)`, and the node of the sigmoid, if nothing but this node reads the latter.
fn silu<'a>(cx: &GradientCx<'a>) -> Option<(ValueId, &'a Node)> {
    let node = cx.node();
    let (a, b) = (node.input(0)?, node.input(1)?);
    let of = |z: ValueId, s: ValueId| {
        let sigmoid = cx.producer(s).filter(|sigmoid| sigmoid.op() == "Sigmoid" && sigmoid.input(0) == Some(z))?;
        cx.is_read_only_by(s, &[node.id]).then_some((z, sigmoid))
    };
    of(a, b).or_else(|| of(b, a))
}

/// The group norm that ends with the Add `last`.
fn chain<'a>(last: &'a Node, cx: &GradientCx<'a>) -> Option<Chain<'a>> {
    let shape = cx.shape_of(last.output(0)?)?;
    let channels = *shape.get(1)?;
    if last.op() != "Add" {
        return None;
    }
    // One element per channel, whatever the leading axes of size one.
    let is_per_channel = |value: ValueId| {
        cx.shape_of(value).is_some_and(|own| {
            let expected = (0..own.len()).map(|at| if shape.len() - own.len() + at == 1 { channels } else { 1 });
            (shape.len() - 1..=shape.len()).contains(&own.len()) && own.iter().copied().eq(expected)
        })
    };
    // The operand that another node computes, and the slot of the other.
    let operands = |node: &'a Node, wanted: &'static str| {
        (0..2).find_map(|slot| {
            let (value, parameter) = (node.input(slot)?, node.input(1 - slot)?);
            let producer = cx.producer(value).filter(|producer| producer.op() == wanted)?;
            let is_whole = cx.is_read_only_by(value, &[node.id]) && cx.shape_of(value).as_ref() == Some(&shape);
            (is_whole && is_per_channel(parameter)).then_some((producer, 1 - slot))
        })
    };
    let (scaling, offset) = operands(last, "Mul")?;
    let (back, scale) = operands(scaling, "Reshape")?;
    let only = |value: ValueId, node: &Node| cx.is_read_only_by(value, &[node.id]);
    let normed = back.input(0).filter(|value| only(*value, back))?;
    let norm = cx.producer(normed).filter(|norm| norm.op() == "InstanceNormalization")?;
    let grouped = norm.input(0).filter(|value| only(*value, norm))?;
    let there = cx.producer(grouped).filter(|there| there.op() == "Reshape")?;
    let x = there.input(0)?;
    let groups = cx.shape_of(grouped)?;
    let is_all = |slot: usize, wanted: f64| {
        let values = norm.input(slot).and_then(|value| cx.floats_of(value));
        values.is_some_and(|values| !values.is_empty() && values.iter().all(|value| *value == wanted))
    };
    let is_plain = is_all(1, 1.0) && is_all(2, 0.0);
    let count: i64 = shape.iter().product();
    let fits = cx.shape_of(x).as_ref() == Some(&shape)
        && groups.len() >= 3
        && groups[0] == shape[0]
        && groups[1] > 0
        && count > 0
        && channels % groups[1] == 0;
    if !is_plain || !fits {
        return None;
    }
    let inner: i64 = shape[2..].iter().product();
    let row_norm = RowNorm {
        row: channels / groups[1] * inner,
        groups: groups[1],
        inner,
        epsilon: norm.float("epsilon", 1e-5),
        is_centred: true,
        has_silu: false,
    };
    let (first, normalizing, norm) = (there, norm, row_norm);
    Some(Chain { x, first, norm, normalizing, scale: (scaling, scale), offset: (last, offset) })
}

fn emit(chain: &Chain<'_>, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
    let dy = cx.dy()?;
    let parameter = |(node, slot): (&Node, usize)| -> Result<(String, Vec<i64>), RuleError> {
        let value = node.input(slot).ok_or(RuleError::UnknownShape)?;
        Ok((cx.name(value).to_owned(), cx.shape_of(value).ok_or(RuleError::UnknownShape)?))
    };
    let (scale, scale_shape) = parameter(chain.scale)?;
    let (offset, offset_shape) = parameter(chain.offset)?;
    let x = cx.name(chain.x);
    let [dx, dscale, doffset] = cx.row_norm_gradient(&chain.norm, x, &dy, (&scale, &offset));
    cx.compute_as_norm(&chain.norm, x, &scale, &offset);
    // The norm's own scale and offset, ones and zeros for every norm group, may be asked for as well.
    for (slot, gradient) in [(1, &dscale), (2, &doffset)] {
        let Some(value) = chain.normalizing.input(slot).filter(|value| cx.is_wanted(*value)) else { continue };
        let groups = cx.shape_of(value).ok_or(RuleError::UnknownShape)?[0];
        let channels: i64 = scale_shape.iter().product();
        let vector = cx.reshape(&scale, &[channels]);
        let scaled = cx.mul(&vector, gradient);
        let scaled = cx.reshape(&scaled, &[groups, channels / groups]);
        let sum = cx.reduce_sum(&scaled, &[1], false);
        cx.give_at(chain.normalizing, slot, sum);
    }
    for ((node, slot), gradient, shape) in [(chain.scale, dscale, scale_shape), (chain.offset, doffset, offset_shape)] {
        let gradient = if shape.len() == 1 { gradient } else { cx.reshape(&gradient, &shape) };
        cx.give_at(node, slot, gradient);
    }
    cx.give_at(chain.first, 0, dx);
    Ok(())
}
