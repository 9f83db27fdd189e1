//! Kernels for the gradient of `z sigmoid(z)`, in one node or two.

use super::Choice;
use crate::graph::{NodeId, ValueId};
use crate::kernels::SILU_GRADIENT;
use crate::operator::gradient::Step;
use crate::operator::part::Part;

/// Matches SiLU in one node.
pub(super) fn of_node(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Part::Silu = choice.part(step.node)? else { return None };
    let dy = step.upstream.first()?.as_deref()?;
    let x = choice.name(choice.node(step.node).input(0)?);
    choice.replace(step, &[step.node], |choice| {
        let [dx] = choice.kernel(SILU_GRADIENT, &[x, dy], vec![]);
        choice.take_over(&[step.node], step.node, 0, &dx);
    });
    Some(())
}

/// Matches the product of z with its sigmoid. z gets one gradient, instead of one from each of the two nodes.
pub(super) fn of_product(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Silu { z, slot, sigmoid } = silu(choice, step.node)?;
    let dy = step.upstream.first()?.as_deref()?;
    // If z is a weight, the gradient of each use must stay a separate output.
    let is_summed = choice.given(step.node, slot).is_some() && choice.given(sigmoid, 0).is_some();
    if !is_summed || choice.tape.wanted.contains(&z) {
        return None;
    }
    let z = choice.name(z);
    let region = [step.node, sigmoid];
    choice.replace(step, &region, |choice| {
        let [dz] = choice.kernel(SILU_GRADIENT, &[z, dy], vec![]);
        choice.withdraw(step.node, slot);
        choice.take_over(&region, sigmoid, 0, &dz);
    });
    Some(())
}

/// The two nodes of `z sigmoid(z)`.
pub(super) struct Silu {
    pub(super) z: ValueId,
    /// The input of the product at which z is.
    pub(super) slot: usize,
    /// The node of the sigmoid. Only the product uses its output.
    pub(super) sigmoid: NodeId,
}

/// Finds the SiLU whose product is this node.
pub(super) fn silu(choice: &Choice<'_, '_>, product: NodeId) -> Option<Silu> {
    let Part::Product = choice.part(product)? else { return None };
    let node = choice.node(product);
    (0..2).find_map(|slot| {
        let (z, s) = (node.input(slot)?, node.input(1 - slot)?);
        let sigmoid = choice.producer(s).filter(|sigmoid| sigmoid.input(0) == Some(z))?.id;
        let is_one = matches!(choice.part(sigmoid), Some(Part::Sigmoid)) && choice.is_read_only_by(s, &[product]);
        is_one.then_some(Silu { z, slot, sigmoid })
    })
}
