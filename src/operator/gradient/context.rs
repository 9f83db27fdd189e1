//! What differentiation offers to an operator.

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Node, ValueId};
use crate::onnx::AttributeProto;
use crate::operator::RuleError;

use super::{Tape, signed_shape};

/// What differentiation offers to the gradient rule of an operator.
///
/// All names are those of values in the gradient graph. Shapes are static. A rule reads the gradient of the loss by
/// its outputs ([`GradientCx::dy`]) and gives that by its inputs ([`GradientCx::give`]), for the inputs that are wanted
/// ([`GradientCx::wants`]).
pub struct GradientCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    pub(crate) depends: &'a [bool],
    pub(crate) tape: &'a mut Tape,
    pub(crate) upstream: Vec<Option<String>>,
}

impl GradientCx<'_> {
    /// Whether the gradient by input `slot` is asked for.
    pub fn wants(&self, slot: usize) -> bool {
        self.node.input(slot).is_some_and(|value| self.depends[value])
    }

    /// The gradient of the loss by output 0.
    ///
    /// # Errors
    /// Only another output of the node leads to the loss.
    pub fn dy(&self) -> Result<String, RuleError> {
        self.dy_of(0).ok_or_else(|| RuleError::unsupported("the loss depends on a secondary output"))
    }

    /// The gradient of the loss by output `slot`; `None` where the loss does not depend on it.
    pub fn dy_of(&self, slot: usize) -> Option<String> {
        self.upstream.get(slot).cloned().flatten()
    }

    /// Gives a gradient, of the shape of input `slot`, to that input. Nothing happens where it is not wanted.
    pub fn give(&mut self, slot: usize, gradient: String) {
        // A value without elements, such as the frames after the only one, has no gradient.
        let is_empty = |value: &ValueId| {
            let shape = self.facts.values[*value].as_ref().and_then(|fact| fact.shape.as_deref());
            shape.is_some_and(|shape| shape.iter().any(|size| size.is(0)))
        };
        if let Some(value) = self.node.input(slot).filter(|value| self.depends[*value] && !is_empty(value)) {
            self.tape.give(self.node.id, slot, value, gradient);
        }
    }

    /// Gives input `slot` a gradient of the shape of output 0, summed over the axes along which the input was
    /// broadcast.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn give_broadcast(&mut self, slot: usize, gradient: &str) -> Result<(), RuleError> {
        let (from, to) = (self.output_shape(0)?, self.shape(slot)?);
        let gradient = self.sum_to(gradient, &from, &to);
        self.give(slot, gradient);
        Ok(())
    }

    /// The name of input `slot`; empty if the node omits it.
    pub fn input(&self, slot: usize) -> String {
        self.node.proto.input.get(slot).cloned().unwrap_or_default()
    }

    /// The name of output `slot`; empty if the node omits it.
    pub fn output(&self, slot: usize) -> String {
        self.node.proto.output.get(slot).cloned().unwrap_or_default()
    }

    fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// The shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn shape(&self, slot: usize) -> Result<Vec<i64>, RuleError> {
        let shape = self.fact(slot).and_then(|fact| fact.shape.as_deref());
        shape.and_then(signed_shape).ok_or(RuleError::UnknownShape)
    }

    /// The shape of output `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn output_shape(&self, slot: usize) -> Result<Vec<i64>, RuleError> {
        let value = self.node.output(slot).ok_or(RuleError::UnknownShape)?;
        let shape = self.facts.values[value].as_ref().and_then(|fact| fact.shape.as_deref());
        shape.and_then(signed_shape).ok_or(RuleError::UnknownShape)
    }

    /// The known integers of input `slot`.
    pub fn known_ints(&self, slot: usize) -> Option<Vec<Dim>> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints).map(<[Dim]>::to_vec)
    }

    /// The known floats of input `slot`.
    pub fn known_floats(&self, slot: usize) -> Option<Vec<f64>> {
        match self.fact(slot)?.known.as_ref()? {
            Known::Floats(values) => Some(values.clone()),
            Known::Ints(_) => None,
        }
    }

    /// The version of the standard operator set.
    pub fn opset(&self) -> i64 {
        self.tape.builder.opset()
    }

    /// Adds a node of the standard domain with one output, and returns that output's name.
    pub fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.op_with(op_type, inputs, vec![])
    }

    /// As [`GradientCx::op`], with attributes.
    pub fn op_with(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.tape.builder.add(op_type, inputs, attributes)
    }

    /// The node itself on other inputs: its operator, domain and attributes.
    pub fn same_op(&mut self, inputs: &[&str]) -> String {
        let (domain, op_type) = (self.node.proto.domain.clone(), self.node.proto.op_type.clone());
        self.tape.builder.add_in(&domain, &op_type, inputs, self.node.proto.attribute.clone())
    }

    /// A vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.tape.builder.int_vector(values)
    }

    /// A float constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.tape.builder.floats(values, dims)
    }

    /// A float scalar.
    pub fn scalar(&mut self, value: f64) -> String {
        self.tape.scalar(value as f32)
    }

    /// Elements `start..end` by `step` along an axis.
    pub fn slice(&mut self, value: &str, axis: usize, start: i64, end: i64, step: i64) -> String {
        self.tape.slice(value, axis as i64, start, end, step)
    }

    /// Elements `start..end` by `step` along several axes: `(axis, start, end, step)`, with `step > 0`.
    pub fn slices(&mut self, value: &str, cuts: &[(usize, i64, i64, i64)]) -> String {
        self.tape.slices(value, cuts)
    }

    /// Zeros before and after every axis.
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
