//! Kernels for the gradients of norms over rows.

use super::Choice;
use crate::kernels::{NORM, NORM_GRADIENT};
use crate::onnx::{AttributeProto, attr_float, attr_int};
use crate::operator::gradient::Step;
use crate::operator::part::{Part, RowNorm};

/// Matches a norm in one node. Its forward pass remains unchanged.
pub(super) fn rows(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Part::Norm(norm) = choice.part(step.node)? else { return None };
    let dy = step.upstream.first()?.as_deref()?;
    let node = choice.node(step.node);
    let [x, scale] = [node.input(0)?, node.input(1)?].map(|value| choice.name(value).to_owned());
    let offset = node.input(2).map(|value| choice.name(value).to_owned());
    let offset = offset.unwrap_or_else(|| {
        let count = norm.parameters();
        choice.tape.builder.floats(&vec![0.0; usize::try_from(count).unwrap_or(0)], &[count])
    });
    choice.replace(step, &[step.node], |choice| {
        let [dx, by_scale, by_offset] = choice.norm_gradient(&norm, &x, dy, (&scale, &offset));
        choice.take_over(&[step.node], step.node, 0, &dx);
        for (slot, gradient) in [(1, by_scale), (2, by_offset)] {
            let Some(shape) = node.input(slot).and_then(|value| choice.shape(value)) else { continue };
            let gradient = choice.shaped(&gradient, &shape);
            choice.take_over(&[step.node], step.node, slot, &gradient);
        }
    });
    Some(())
}

impl Choice<'_, '_> {
    /// Emits the gradients `[dx, dscale, doffset]` of a norm. Scale and offset have [`RowNorm::parameters`] elements in
    /// any shape. Their gradients are vectors.
    pub(super) fn norm_gradient(
        &mut self,
        norm: &RowNorm,
        x: &str,
        dy: &str,
        (scale, offset): (&str, &str),
    ) -> [String; 3] {
        self.kernel(NORM_GRADIENT, &[x, dy, scale, offset], attributes(norm))
    }

    /// Replaces the forward computation of the value `output` with the norm kernel.
    pub(super) fn compute_as_norm(&mut self, output: &str, norm: &RowNorm, inputs: [&str; 3]) {
        self.compute(output, |choice| {
            let [y] = choice.kernel(NORM, &inputs, attributes(norm));
            y
        });
    }

    /// Reshapes a vector to the shape of a parameter.
    pub(super) fn shaped(&mut self, vector: &str, shape: &[i64]) -> String {
        if shape.len() == 1 { vector.to_owned() } else { self.tape.reshape(vector, shape) }
    }
}

fn attributes(norm: &RowNorm) -> Vec<AttributeProto> {
    vec![
        attr_int("row", norm.row),
        attr_int("groups", norm.groups),
        attr_int("inner", norm.inner),
        attr_float("epsilon", norm.epsilon),
        attr_int("centred", i64::from(norm.is_centred)),
        attr_int("silu", i64::from(norm.has_silu)),
    ]
}
