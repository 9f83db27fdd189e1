//! The precision in which gradients are computed.
//!
//! With float16, every operator that sums products ([`crate::operator::Registration::sums_products`]) takes its weights
//! and values in half precision. Everything in between (norms, activations, sums, the loss) and the gradients
//! themselves stay float32. Small gradients would underflow in half precision. The loss is therefore multiplied by a
//! scale first and the gradients are divided by it, as in "Mixed Precision Training" (Micikevicius et al., 2018),
//! section 3.2. A run whose gradients overflow is repeated with half the scale.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::forward::floats;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::{DataType, NodeProto, TensorProto, attr_int};
use crate::operator::Registration;
use crate::operator::gradient::Tape;
use crate::ops;
use crate::runtime::RuntimeError;

/// Name of the graph input for the loss scale: the factor of the loss before it is differentiated.
pub(crate) const LOSS_SCALE: &str = "__loss_scale";

/// Name of the scalar output that is zero, or NaN if a gradient is not finite.
pub(crate) const OVERFLOW: &str = "__overflow";

/// The precision in which gradients are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Precision {
    /// Everything in float32. Weights of another precision are cast to it.
    #[default]
    #[serde(alias = "fp32")]
    #[cfg_attr(feature = "cli", value(alias = "fp32"))]
    Float32,
    /// Convolutions and matrix products in float16, everything else in float32.
    #[serde(alias = "fp16")]
    #[cfg_attr(feature = "cli", value(alias = "fp16"))]
    Float16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
        })
    }
}

/// The factor of the loss of a graph in half precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LossScale(f32);

impl LossScale {
    /// Minimum scale. If gradients overflow at it, they do not fit into half precision.
    const LEAST: f32 = 1.0 / 1024.0;

    /// Returns the initial scale for a gradient of about `1 / size`, as for a mean over `size` elements. The scale
    /// makes the gradient about as large as the difference to the target.
    pub(super) fn of_size(size: f64) -> Self {
        Self(size.clamp(1.0, (1_i64 << 40) as f64) as f32).rounded()
    }

    /// Rounds up to a power of two, which does not change the digits of a scaled number.
    fn rounded(self) -> Self {
        Self(self.0.log2().ceil().exp2())
    }

    /// Returns the scale.
    pub(super) fn value(self) -> f32 {
        self.0
    }

    /// Returns the scale as the input of a run.
    pub(crate) fn array(self) -> Array {
        Array { dims: Vec::new(), data: ArrayData::F32(vec![self.0]) }
    }

    /// Halves the scale after a run whose gradients overflowed.
    ///
    /// # Errors
    /// The scale is too small to be the cause.
    pub(crate) fn lower(&mut self) -> Result<(), RuntimeError> {
        self.0 /= 2.0;
        if self.0 < Self::LEAST {
            let message = format!(
                "gradients in float16 are not finite, even at a loss scale of {}; run with --precision float32",
                2.0 * self.0
            );
            return Err(RuntimeError::RunFailed { message });
        }
        Ok(())
    }
}

/// Casts the inputs of operators that sum products to float16, and their outputs back to float32. `skips` returns
/// whether a node computes integers. Constant inputs of such operators are stored in float16. `initializers` are the
/// network's initializers that do not change between runs.
pub(super) fn halve_products<'t>(
    model: &Model,
    tape: &mut Tape,
    initializers: impl Iterator<Item = &'t TensorProto>,
    skips: impl Fn(&NodeProto) -> bool,
) -> Result<(), Error> {
    let mut by_name: BTreeMap<String, TensorProto> = BTreeMap::new();
    for tensor in initializers.cloned().chain(tape.builder.initializers.iter().cloned()) {
        by_name.insert(tensor.name.clone(), tensor);
    }
    // The name of the float16 form of every value.
    let mut halves: HashMap<String, String> = HashMap::new();
    let mut nodes = Vec::with_capacity(tape.builder.nodes.len());
    for mut node in std::mem::take(&mut tape.builder.nodes) {
        let sums = ops::find(&node.domain, &node.op_type).is_some_and(Registration::sums_products);
        if !sums || skips(&node) {
            nodes.push(node);
            continue;
        }
        for input in node.input.iter_mut().filter(|input| !input.is_empty()) {
            if let Some(half) = halves.get(input) {
                input.clone_from(half);
                continue;
            }
            let half = format!("__half/{input}");
            match by_name.get(input) {
                Some(tensor) => tape.builder.initializers.push(half_tensor(model, tensor, &half)?),
                None => nodes.push(cast(input, &half, DataType::Float16)),
            }
            halves.insert(input.clone(), half.clone());
            *input = half;
        }
        let mut casts = Vec::new();
        for output in node.output.iter_mut().filter(|output| !output.is_empty()) {
            let half = format!("__half/{output}");
            casts.push(cast(&half, output, DataType::Float));
            halves.insert(output.clone(), half.clone());
            *output = half;
        }
        nodes.push(node);
        nodes.extend(casts);
    }
    tape.builder.nodes = nodes;
    Ok(())
}

fn cast(from: &str, to: &str, dtype: DataType) -> NodeProto {
    NodeProto {
        op_type: "Cast".to_owned(),
        name: format!("{to}/Cast"),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![attr_int("to", dtype as i64)],
        ..NodeProto::default()
    }
}

/// Returns the tensor in float16 under another name. A tensor that is float16 already is not copied.
fn half_tensor(model: &Model, tensor: &TensorProto, name: &str) -> Result<TensorProto, Error> {
    if tensor.element_type() == DataType::Float16 {
        return Ok(TensorProto { name: name.to_owned(), ..tensor.clone() });
    }
    let values = floats(model, tensor)?.unwrap_or_default();
    Ok(TensorProto::of_halves(name, &values, &tensor.dims))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_power_of_two_and_is_halved_down_to_the_minimum() {
        let mut scale = LossScale::of_size(12_544.0);
        assert_eq!(scale.value(), 16_384.0);
        let mut count = 0;
        while scale.lower().is_ok() {
            count += 1;
        }
        assert_eq!(count, 24);
        assert!(LossScale::of_size(0.0).value() == 1.0);
    }
}
