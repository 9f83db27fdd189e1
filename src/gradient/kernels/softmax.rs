//! The kernel for the gradient of a softmax along its last axis.

use super::Choice;
use crate::kernels::SOFTMAX_GRADIENT;
use crate::onnx::attr_int;
use crate::operator::gradient::Step;
use crate::operator::part::Part;

/// Matches a softmax over rows.
pub(super) fn rows(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Part::Softmax { row } = choice.part(step.node)? else { return None };
    let dy = step.upstream.first()?.as_deref()?;
    let y = choice.name(choice.node(step.node).output(0)?);
    choice.replace(step, &[step.node], |choice| {
        let [dx] = choice.kernel(SOFTMAX_GRADIENT, &[y, dy], vec![attr_int("row", row)]);
        choice.take_over(&[step.node], step.node, 0, &dx);
    });
    Some(())
}
