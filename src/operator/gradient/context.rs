//! The interface of differentiation to an operator.

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Node, ValueId};
use crate::onnx::AttributeProto;
use crate::operator::RuleError;

use super::{Tape, signed_shape};

/// The interface of differentiation to the gradient rule of an operator.
///
/// All names are names of values in the gradient graph. Shapes are static. A rule takes the gradient of the loss with
/// respect to its outputs ([`GradientCx::dy`]) and passes on the gradient with respect to its inputs
/// ([`GradientCx::add_gradient`]), for the inputs whose gradient is wanted ([`GradientCx::wants`]).
pub struct GradientCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    pub(crate) depends: &'a [bool],
    pub(crate) tape: &'a mut Tape,
    pub(crate) upstream: Vec<Option<String>>,
}

impl GradientCx<'_> {
    /// Whether the gradient with respect to input `slot` is wanted.
    pub fn wants(&self, slot: usize) -> bool {
        self.node.input(slot).is_some_and(|value| self.depends[value])
    }

    /// Returns the gradient of the loss with respect to output 0.
    ///
    /// # Errors
    /// The loss depends on another output of the node only.
    pub fn dy(&self) -> Result<String, RuleError> {
        self.dy_of(0)
            .ok_or_else(|| RuleError::unsupported("the loss depends on an output of the node other than the first"))
    }

    /// Returns the gradient of the loss with respect to output `slot`; `None` if the loss does not depend on it.
    pub fn dy_of(&self, slot: usize) -> Option<String> {
        self.upstream.get(slot).cloned().flatten()
    }

    /// Passes a gradient, of the shape of input `slot`, to that input. Does nothing if it is not wanted.
    pub fn add_gradient(&mut self, slot: usize, gradient: String) {
        // A value without elements has no gradient, such as the later frames of a single frame.
        let is_empty = |value: &ValueId| {
            let shape = self.facts.values[*value].as_ref().and_then(|fact| fact.shape.as_deref());
            shape.is_some_and(|shape| shape.iter().any(|size| size.is(0)))
        };
        if let Some(value) = self.node.input(slot).filter(|value| self.depends[*value] && !is_empty(value)) {
            self.tape.add_gradient(self.node.id, slot, value, gradient);
        }
    }

    /// Passes to input `slot` a gradient of the shape of output 0, summed over the axes along which the input was
    /// broadcast.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn add_broadcast_gradient(&mut self, slot: usize, gradient: &str) -> Result<(), RuleError> {
        let (from, to) = (self.output_shape(0)?, self.shape(slot)?);
        let gradient = self.sum_to(gradient, &from, &to);
        self.add_gradient(slot, gradient);
        Ok(())
    }

    /// Returns the name of input `slot`; empty if the node omits it.
    pub fn input(&self, slot: usize) -> String {
        self.node.proto.input.get(slot).cloned().unwrap_or_default()
    }

    /// Returns the name of output `slot`; empty if the node omits it.
    pub fn output(&self, slot: usize) -> String {
        self.node.proto.output.get(slot).cloned().unwrap_or_default()
    }

    fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn shape(&self, slot: usize) -> Result<Vec<i64>, RuleError> {
        let shape = self.fact(slot).and_then(|fact| fact.shape.as_deref());
        shape.and_then(signed_shape).ok_or(RuleError::UnknownShape)
    }

    /// Returns the shape of output `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn output_shape(&self, slot: usize) -> Result<Vec<i64>, RuleError> {
        let value = self.node.output(slot).ok_or(RuleError::UnknownShape)?;
        let shape = self.facts.values[value].as_ref().and_then(|fact| fact.shape.as_deref());
        shape.and_then(signed_shape).ok_or(RuleError::UnknownShape)
    }

    /// Returns the known integers of input `slot`.
    pub fn known_ints(&self, slot: usize) -> Option<Vec<Dim>> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints).map(<[Dim]>::to_vec)
    }

    /// Returns the known floats of input `slot`.
    pub fn known_floats(&self, slot: usize) -> Option<Vec<f64>> {
        match self.fact(slot)?.known.as_ref()? {
            Known::Floats(values) => Some(values.clone()),
            Known::Ints(_) => None,
        }
    }

    /// Returns the version of the standard operator set.
    pub fn opset(&self) -> i64 {
        self.tape.builder.opset()
    }

    /// Adds a node of the standard domain with one output, and returns that output's name.
    pub fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.op_with(op_type, inputs, vec![])
    }

    /// Adds a node as [`GradientCx::op`] does, with attributes.
    pub fn op_with(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.tape.builder.add(op_type, inputs, attributes)
    }

    /// Adds the same node with other inputs: its operator, domain and attributes.
    pub fn same_op(&mut self, inputs: &[&str]) -> String {
        let (domain, op_type) = (self.node.proto.domain.clone(), self.node.proto.op_type.clone());
        self.tape.builder.add_in(&domain, &op_type, inputs, self.node.proto.attribute.clone())
    }

    /// Adds a vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.tape.builder.int_vector(values)
    }

    /// Adds a float constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.tape.builder.floats(values, dims)
    }

    /// Adds a float scalar.
    pub fn scalar(&mut self, value: f64) -> String {
        self.tape.scalar(value as f32)
    }

    /// Adds a slice of the elements `start..end` along an axis, in steps of `step`.
    pub fn slice(&mut self, value: &str, axis: usize, start: i64, end: i64, step: i64) -> String {
        self.tape.slice(value, axis as i64, start, end, step)
    }

    /// Adds a slice of the elements `start..end` along several axes, in steps of `step`: `(axis, start, end, step)`,
    /// with `step > 0`.
    pub fn slices(&mut self, value: &str, cuts: &[(usize, i64, i64, i64)]) -> String {
        self.tape.slices(value, cuts)
    }

    /// Pads every axis with zeros before and after.
    pub fn pad(&mut self, value: &str, before: &[i64], after: &[i64]) -> String {
        if before.iter().chain(after).all(|count| *count == 0) {
            return value.to_owned();
        }
        self.tape.pad(value, before, after)
    }
}

impl GradientCx<'_> {
    /// Whether input `slot` holds floating point numbers.
    pub fn is_float(&self, slot: usize) -> bool {
        self.fact(slot).is_none_or(Fact::is_float)
    }
}
