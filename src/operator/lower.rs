//! The interface of lowering to an operator: the parts of fused operators, in standard operators.
//!
//! Everything is computed in float32, as ONNX Runtime's own fused kernels do; [`LowerCx::emit`] casts results to the
//! element type of input 0.

mod activation;

mod attention;
mod parts;

use super::RuleError;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::onnx::builder::Builder;
use crate::onnx::{AttributeProto, DataType};

pub use activation::Activation;
pub use attention::{Attention, ScoreTerms};

/// A fused node while it is written in standard operators.
pub struct LowerCx<'a> {
    node: &'a Node,
    facts: &'a Facts,
    builder: &'a mut Builder,
    /// The number of nodes that the builder held before this node.
    start: usize,
    /// For every input slot whose value the node takes at several inputs, the position in the builder of the Identity
    /// that renames it.
    read_through: Vec<(usize, usize)>,
}

impl<'a> LowerCx<'a> {
    /// Starts to lower `node`; nodes are added to `builder`.
    pub(crate) fn new(node: &'a Node, facts: &'a Facts, builder: &'a mut Builder) -> Self {
        let start = builder.nodes.len();
        Self { node, facts, builder, start, read_through: Vec::new() }
    }

    /// Returns the inputs that are renamed by an Identity: slot, and position of that node in the builder.
    pub(crate) fn read_through(self) -> Vec<(usize, usize)> {
        self.read_through
    }

    /// Whether the node has input `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }

    /// Whether the node has output `slot`.
    pub fn has_output(&self, slot: usize) -> bool {
        self.node.output(slot).is_some()
    }

    /// Returns the number of inputs, including omitted ones.
    pub fn input_count(&self) -> usize {
        self.node.inputs.len()
    }

    /// Returns the name of input `slot`, in its own element type; empty if the node omits it. A value that the node
    /// takes at several inputs has one name for each, so that its uses can be told apart.
    pub fn input(&mut self, slot: usize) -> String {
        let Some(value) = self.node.input(slot) else { return String::new() };
        let name = self.node.proto.input[slot].clone();
        if self.node.inputs.iter().filter(|other| **other == Some(value)).count() == 1 {
            return name;
        }
        if let Some((_, at)) = self.read_through.iter().find(|(read, _)| *read == slot) {
            return self.builder.nodes[*at].output[0].clone();
        }
        self.read_through.push((slot, self.builder.nodes.len()));
        self.add("Identity", &[&name], vec![])
    }

    /// Returns input `slot` in float32.
    pub fn float(&mut self, slot: usize) -> String {
        let input = self.input(slot);
        self.cast_to_float(&input, slot)
    }

    /// Returns the attributes of the node.
    pub fn attributes(&self) -> &[AttributeProto] {
        &self.node.proto.attribute
    }

    /// Returns the fact of input `slot`.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.fact(slot).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)
    }

    /// Returns the rank of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn rank(&self, slot: usize) -> Result<usize, RuleError> {
        self.fact(slot).and_then(Fact::rank).ok_or(RuleError::UnknownShape)
    }

    /// Returns the size of an axis of input `slot`; of the last axis if `axis` is `None`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the size is not known or symbolic.
    pub fn size(&self, slot: usize, axis: Option<usize>) -> Result<i64, RuleError> {
        let shape = self.shape(slot)?;
        let at = axis.unwrap_or(shape.len().saturating_sub(1));
        shape.get(at).and_then(Dim::as_const).ok_or(RuleError::UnknownShape)
    }

    /// Returns the version of the standard operator set.
    pub fn opset(&self) -> i64 {
        self.builder.opset()
    }

    /// Adds a node of the standard domain with one output and returns the output's name.
    pub fn add(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.builder.add(op_type, inputs, attributes)
    }

    /// Adds a node as [`LowerCx::add`] does, with two inputs and the bias that the node has as input 2, if it has one.
    pub fn add_biased(&mut self, op_type: &str, [x, w]: [&str; 2], attributes: Vec<AttributeProto>) -> String {
        if !self.has(2) {
            return self.add(op_type, &[x, w], attributes);
        }
        let bias = self.float(2);
        self.add(op_type, &[x, w, &bias], attributes)
    }

    /// Adds a node as [`LowerCx::add`] does, of another domain.
    pub fn add_in(&mut self, domain: &str, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.builder.add_in(domain, op_type, inputs, attributes)
    }

    /// Adds an int64 constant.
    pub fn ints(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.builder.ints(values, dims)
    }

    /// Adds a float32 constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.builder.floats(values, dims)
    }

    /// Adds a float32 scalar.
    pub fn scalar(&mut self, value: f64) -> String {
        self.floats(&[value as f32], &[])
    }

    /// Casts a value to another element type.
    pub fn cast(&mut self, value: &str, dtype: DataType) -> String {
        self.builder.cast(value, dtype)
    }

    /// Casts a value that has the element type of input `slot` to float32.
    pub fn cast_to_float(&mut self, value: &str, slot: usize) -> String {
        match self.fact(slot).map(|fact| fact.dtype) {
            Some(DataType::Float) => value.to_owned(),
            _ => self.cast(value, DataType::Float),
        }
    }

    /// Renames a value of any element type to output `slot`. Does nothing if the node omits that output.
    pub fn set_output(&mut self, slot: usize, value: &str) {
        let Some(output) = self.node.proto.output.get(slot).filter(|name| !name.is_empty()).cloned() else { return };
        self.builder.rename(value, &output);
    }

    /// Renames a float32 value to output `slot`, cast to the element type of input 0. Does nothing if the node omits
    /// that output.
    pub fn emit(&mut self, slot: usize, value: &str) {
        let Some(output) = self.node.proto.output.get(slot).filter(|name| !name.is_empty()).cloned() else { return };
        let value = match self.fact(0).map(|fact| fact.dtype) {
            Some(DataType::Float) | None => value.to_owned(),
            Some(dtype) => self.cast(value, dtype),
        };
        match self.builder.nodes[self.start..].last_mut().map(|last| &mut last.output) {
            // Nothing has used the last value yet, so it can have the name itself.
            Some(outputs) if outputs.len() == 1 && outputs[0] == value => outputs[0] = output,
            _ => self.builder.rename(&value, &output),
        }
    }
}
