//! Sequences: lists of tensors as one value. If their lengths and the positions read from them are known, the file is
//! loaded as if its sequences were the tensors that they hold, so that no later stage handles sequences.

use std::collections::BTreeMap;

use super::{RuleError, axis_index};
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Node, ValueId};
use crate::onnx::names::Names;
use crate::onnx::{AttributeProto, NodeProto, TensorProto, attr_int, attr_ints, attr_tensor};

/// Maximum number of tensors of a sequence that is resolved; longer ones remain sequences.
const LONGEST: i64 = 4096;

/// What is known of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Sequence {
    /// The names of its tensors.
    List(Vec<String>),
    /// The parts of a tensor.
    Parts(Parts),
}

/// Consecutive parts of a tensor along an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The tensor.
    pub value: String,
    /// The axis.
    pub axis: usize,
    /// The size of every part; the last may be smaller.
    pub size: i64,
    /// Whether parts keep the axis; if not, their size along it is one.
    pub keeps_axis: bool,
    /// The number of parts; `None` if the size of the axis is not known.
    pub count: Option<i64>,
}

/// What replaces an output of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    Tensor(String),
    Sequence(Sequence),
}

/// The interface of loading to an operator of sequences. It adds nodes whose inputs and outputs are single tensors.
pub struct SequenceCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    pub(crate) opset: i64,
    pub(crate) known: &'a BTreeMap<ValueId, Sequence>,
    pub(crate) names: &'a mut Names,
    /// The added nodes.
    pub(crate) nodes: Vec<NodeProto>,
    /// What replaces the outputs.
    pub(crate) given: BTreeMap<usize, Given>,
}

impl SequenceCx<'_> {
    /// Whether the node has input `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }

    /// Returns the name of input `slot`; empty if the node omits it.
    pub fn input(&self, slot: usize) -> String {
        self.node.proto.input.get(slot).cloned().unwrap_or_default()
    }

    fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the shape of the tensor at input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.fact(slot).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)
    }

    /// Returns the integers at input `slot`.
    ///
    /// # Errors
    /// They are not known.
    pub fn ints(&self, slot: usize) -> Result<Vec<i64>, RuleError> {
        let known = self.fact(slot).and_then(|fact| fact.known.as_ref()).and_then(Known::ints);
        let ints = known.and_then(|known| known.iter().map(Dim::as_const).collect());
        ints.ok_or_else(|| RuleError::unsupported("a position in a sequence, or a size, is computed at run time"))
    }

    /// Returns the one integer at input `slot`.
    ///
    /// # Errors
    /// It is not known, or the input does not have exactly one element.
    pub fn int(&self, slot: usize) -> Result<i64, RuleError> {
        match self.ints(slot)?.as_slice() {
            [one] => Ok(*one),
            other => Err(RuleError::invalid(format!("input {slot} must have one element, found {}", other.len()))),
        }
    }

    /// Returns what is known of the sequence at input `slot`.
    ///
    /// # Errors
    /// Nothing is known of it.
    pub fn sequence(&self, slot: usize) -> Result<&Sequence, RuleError> {
        let known = self.node.input(slot).and_then(|value| self.known.get(&value));
        known.ok_or_else(|| RuleError::unsupported("the tensors of a sequence are not known"))
    }

    /// Returns the tensors of the sequence at input `slot`.
    ///
    /// # Errors
    /// They are not known, or too many.
    pub fn list(&mut self, slot: usize) -> Result<Vec<String>, RuleError> {
        match self.sequence(slot)?.clone() {
            Sequence::List(list) => Ok(list),
            Sequence::Parts(parts) => {
                let count = parts.count.filter(|count| *count <= LONGEST);
                let count = count.ok_or_else(|| RuleError::unsupported("the length of a sequence is not known"))?;
                (0..count).map(|at| self.part(&parts, at)).collect()
            }
        }
    }

    /// Returns the tensor at a position of the sequence at input `slot`; negative positions count from the end.
    ///
    /// # Errors
    /// There is no such tensor, or the length of the sequence is needed and not known.
    pub fn element(&mut self, slot: usize, position: i64) -> Result<String, RuleError> {
        match self.sequence(slot)?.clone() {
            Sequence::List(list) => Ok(list[from_front(position, list.len() as i64)?].clone()),
            Sequence::Parts(parts) => self.part(&parts, position),
        }
    }

    /// Returns part `position` of a tensor.
    fn part(&mut self, parts: &Parts, position: i64) -> Result<String, RuleError> {
        let position = match parts.count {
            Some(count) => from_front(position, count)? as i64,
            None if position >= 0 || parts.size == 1 => position,
            None => return Err(RuleError::unsupported("the length of a sequence is not known")),
        };
        let axis = attr_int("axis", parts.axis as i64);
        if parts.size == 1 {
            let dims: &[i64] = if parts.keeps_axis { &[1] } else { &[] };
            let index = self.ints_of(&[position], dims);
            return Ok(self.add("Gather", &[&parts.value, &index], vec![axis]));
        }
        let [start, end] = [position, position + 1].map(|at| at.checked_mul(parts.size).unwrap_or(i64::MAX));
        let [start, end, axis] = [start, end, parts.axis as i64].map(|value| self.ints_of(&[value], &[1]));
        Ok(self.add("Slice", &[&parts.value, &start, &end, &axis], vec![]))
    }

    /// Splits a tensor into parts of these sizes.
    pub fn split(&mut self, value: &str, axis: usize, sizes: &[i64]) -> Vec<String> {
        let outputs: Vec<String> = sizes.iter().map(|_| self.fresh("part")).collect();
        let axis = attr_int("axis", axis as i64);
        if self.opset < 13 {
            self.push("Split", &[value], outputs.clone(), vec![axis, attr_ints("split", sizes)]);
        } else {
            let sizes = self.ints_of(sizes, &[sizes.len() as i64]);
            self.push("Split", &[value, &sizes], outputs.clone(), vec![axis]);
        }
        outputs
    }

    /// Inserts an axis of size one into a value.
    pub fn unsqueeze(&mut self, value: &str, axis: i64) -> String {
        if self.opset < 13 {
            return self.add("Unsqueeze", &[value], vec![attr_ints("axes", &[axis])]);
        }
        let axes = self.ints_of(&[axis], &[1]);
        self.add("Unsqueeze", &[value, &axes], vec![])
    }

    /// Adds a constant of integers.
    pub fn ints_of(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.add("Constant", &[], vec![attr_tensor("value", TensorProto::of_ints("", values, dims))])
    }

    /// Adds a node of the standard domain with one output and returns the output's name.
    pub fn add(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh(op_type);
        self.push(op_type, inputs, vec![output.clone()], attributes);
        output
    }

    fn push(&mut self, op_type: &str, inputs: &[&str], output: Vec<String>, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            op_type: op_type.to_owned(),
            name: output.first().cloned().unwrap_or_default(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output,
            attribute,
            ..NodeProto::default()
        });
    }

    /// Makes an unused name, derived from the name of the node's first output.
    fn fresh(&mut self, hint: &str) -> String {
        let prefix = format!("{}/{hint}_", self.node.proto.first_output());
        self.names.numbered(&prefix, 0)
    }

    /// Replaces output `slot` by a tensor.
    pub fn set_output(&mut self, slot: usize, value: String) {
        self.given.insert(slot, Given::Tensor(value));
    }

    /// Replaces output `slot` by a sequence.
    pub fn set_sequence(&mut self, slot: usize, sequence: Sequence) {
        self.given.insert(slot, Given::Sequence(sequence));
    }
}

/// Returns a position of a sequence of this length, counted from the front.
///
/// # Errors
/// The sequence has no such position.
pub fn from_front(position: i64, length: i64) -> Result<usize, RuleError> {
    let length = usize::try_from(length).unwrap_or(0);
    axis_index(position, length).map_err(|_| {
        RuleError::invalid(format!("position {position} does not exist in a sequence of {length} tensors"))
    })
}
