//! The numbers that quantised weights represent.

use super::ScoreCx;
use crate::error::Error;
use crate::onnx::TensorProto;
use crate::onnx::numbers::numbers as decoded;
use crate::operator::axis_index;
use crate::operator::couple::WeightUse;

/// Returns the numbers that a constant of integers or small floats represents for the node that takes it as input:
/// `(q - zero_point) * scale` under a DequantizeLinear. `None` for types that do not represent numbers.
///
/// # Errors
/// Fails if scales or zero points can't be read.
pub(super) fn numbers(
    cx: &ScoreCx<'_>,
    of: &WeightUse,
    tensor: &TensorProto,
    bytes: &[u8],
) -> Result<Option<Vec<f32>>, Error> {
    let Some(mut numbers) = decoded(tensor.element_type(), bytes) else { return Ok(None) };
    let node = &cx.graph.nodes[of.node];
    let Some(form) = cx.operators.get(of.node).and_then(|operator| operator.dequantization()) else {
        return Ok(Some(numbers));
    };
    let dims: Vec<usize> = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let axis = axis_index(form.axis, dims.len()).unwrap_or(0);
    let inner: usize = dims.iter().skip(axis + 1).product::<usize>().max(1);
    let size = dims.get(axis).copied().unwrap_or(1).max(1);
    let blocks = size.div_ceil(form.block.max(1));
    for (slot, apply) in [(2, subtract as fn(&mut f32, f32)), (1, multiply)] {
        let Some(parameter) = node.input(slot).and_then(|value| cx.fold.constant(cx.model, cx.graph, value)) else {
            continue;
        };
        let bytes = cx.model.tensor_view(parameter)?;
        let Some(entries) = decoded(parameter.element_type(), &bytes) else { continue };
        // One value in total, one per index of the axis, or one per block and index of the other axes.
        for (at, row) in numbers.chunks_mut(inner).enumerate() {
            let (outer, index) = (at / size, at % size);
            let shared = match parameter.dims.len() {
                0 | 1 => entries.get(if entries.len() == 1 { 0 } else { index }),
                _ => None,
            };
            if let Some(shared) = shared {
                row.iter_mut().for_each(|number| apply(number, *shared));
            } else {
                let block = (outer * blocks + index / form.block.max(1)) * inner;
                let own = entries.iter().skip(block);
                row.iter_mut().zip(own).for_each(|(number, entry)| apply(number, *entry));
            }
        }
    }
    Ok(Some(numbers))
}

fn subtract(number: &mut f32, zero_point: f32) {
    *number -= zero_point;
}

fn multiply(number: &mut f32, scale: f32) {
    *number *= scale;
}
