//! What shape inference offers to an operator.

use super::RuleError;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;

/// What shape inference offers to an operator.
pub struct InferCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) inputs: Vec<Option<&'a Fact>>,
    pub(crate) outputs: Vec<Option<Fact>>,
    pub(crate) fresh: &'a mut usize,
}

impl InferCx<'_> {
    /// The fact of input `slot`.
    ///
    /// # Errors
    /// The node has no such input.
    pub fn input(&self, slot: usize) -> Result<&Fact, RuleError> {
        self.optional(slot).ok_or_else(|| match self.node.input(slot) {
            // The input is there, but nothing is known of it.
            Some(_) => RuleError::UnknownShape,
            None => RuleError::invalid(format!("input {slot} is missing")),
        })
    }

    /// The fact of an optional input.
    pub fn optional(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The number of inputs, omitted ones counted.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// The shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if its rank is not known.
    pub fn shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.input(slot)?.shape.clone().ok_or(RuleError::UnknownShape)
    }

    /// Requires that input `slot`, if it is there, is a vector, of `size` elements where that is given.
    ///
    /// # Errors
    /// It has another rank or size.
    pub fn expect_vector(&self, slot: usize, size: Option<&Dim>) -> Result<(), RuleError> {
        let Some(shape) = self.optional(slot).and_then(|fact| fact.shape.as_ref()) else { return Ok(()) };
        let [found] = shape.as_slice() else {
            return Err(RuleError::invalid(format!("input {slot} must have rank 1, found {}", shape.len())));
        };
        match (size.and_then(Dim::as_const), found.as_const()) {
            (Some(size), Some(found)) if size != found => {
                Err(RuleError::invalid(format!("input {slot} must have {size} elements, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// The known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.optional(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// The known floats of input `slot`.
    pub fn floats(&self, slot: usize) -> Option<&[f64]> {
        match self.optional(slot)?.known.as_ref()? {
            Known::Floats(values) => Some(values),
            Known::Ints(_) => None,
        }
    }

    /// Sets the fact of output `slot`; ignored where the node omits that output.
    pub fn set(&mut self, slot: usize, fact: Fact) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(fact);
        }
    }

    /// Sets output `slot` by type and shape.
    pub fn set_shape(&mut self, slot: usize, dtype: DataType, shape: Vec<Dim>) {
        self.set(slot, Fact::new(dtype, shape));
    }

    /// A size that nothing is known of, equal only to itself.
    pub fn fresh(&mut self) -> Dim {
        *self.fresh += 1;
        Dim::symbol(&format!("?{}", self.fresh))
    }
}
