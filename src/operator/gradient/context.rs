//! What differentiation offers to an operator, and what it collects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::onnx::{AttributeProto, NodeProto, TensorProto};
use crate::operator::RuleError;

use super::signed_shape;

/// The nodes emitted so far and the gradients that they give.
pub struct Tape {
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) initializers: Vec<TensorProto>,
    pub(crate) opset: i64,
    pub(crate) contributions: HashMap<ValueId, Vec<String>>,
    pub(crate) wanted: BTreeSet<ValueId>,
    /// What each node and input slot gives a wanted weight.
    pub(crate) uses: BTreeMap<(NodeId, usize), (ValueId, String)>,
    /// Whether operators of [`crate::kernels`] may be emitted.
    pub(crate) has_kernels: bool,
    /// Nodes that compute outputs of the forward pass in place of those that did, by the name of the output.
    pub(crate) replaced: HashMap<String, Vec<NodeProto>>,
    /// Small constants by their contents, so that equal ones are stored once.
    pub(crate) constants: HashMap<(Vec<i64>, Vec<u8>), String>,
    pub(crate) next: usize,
}

impl Tape {
    pub(crate) fn new(opset: i64, wanted: &[ValueId], has_kernels: bool) -> Self {
        Self {
            nodes: Vec::new(),
            initializers: Vec::new(),
            opset,
            contributions: HashMap::new(),
            wanted: wanted.iter().copied().collect(),
            uses: BTreeMap::new(),
            has_kernels,
            replaced: HashMap::new(),
            constants: HashMap::new(),
            next: 0,
        }
    }

    pub(crate) fn add(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.next += 1;
        let output = format!("__grad/{}/{op_type}", self.next);
        self.push(domain, op_type, inputs, vec![output.clone()], attribute);
        output
    }

    pub(crate) fn push(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        output: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            op_type: op_type.to_owned(),
            domain: domain.to_owned(),
            name: output.first().cloned().unwrap_or_default(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output,
            attribute,
            ..NodeProto::default()
        });
    }

    /// Adds a node of [`crate::kernels::DOMAIN`] with `outputs` outputs.
    pub(crate) fn kernel<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> [String; N] {
        self.next += 1;
        let outputs: [String; N] = std::array::from_fn(|slot| format!("__grad/{}/{op_type}/{slot}", self.next));
        self.push(crate::kernels::DOMAIN, op_type, inputs, outputs.to_vec(), attribute);
        outputs
    }

    pub(crate) fn scalar(&mut self, value: f32) -> String {
        self.floats(&[value], &[])
    }

    fn constant(&mut self, kind: &str, tensor: impl FnOnce(&str) -> TensorProto) -> String {
        let name = format!("__grad/{kind}/{}", self.next);
        let tensor = tensor(&name);
        let key = (tensor.dims.clone(), [kind.as_bytes(), &tensor.raw_data].concat());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        self.next += 1;
        self.initializers.push(tensor);
        self.constants.insert(key, name.clone());
        name
    }

    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        self.constant("ints", |name| TensorProto::of_ints(name, values, &[values.len() as i64]))
    }

    pub(crate) fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.constant("floats", |name| TensorProto::of_floats(name, values, dims))
    }

    /// The sum of all that was given to a value; the sum is emitted once.
    pub(crate) fn gradient(&mut self, value: ValueId) -> Option<String> {
        let given = self.contributions.remove(&value)?;
        let total = match given.as_slice() {
            [one] => one.clone(),
            [a, b] => self.add("", "Add", &[a, b], vec![]),
            many => {
                let many: Vec<&str> = many.iter().map(String::as_str).collect();
                self.add("", "Sum", &many, vec![])
            }
        };
        self.contributions.insert(value, vec![total.clone()]);
        Some(total)
    }

    /// Elements `start..end` by `step` along an axis. Before opset 10, steps other than one must be positive and `end` a
    /// place in the axis.
    pub(crate) fn slice(&mut self, value: &str, axis: i64, start: i64, end: i64, step: i64) -> String {
        if self.opset < 10 && step == 1 {
            let attributes = [("starts", start), ("ends", end), ("axes", axis)];
            let attributes = attributes.map(|(name, value)| crate::onnx::attr_ints(name, &[value])).to_vec();
            return self.add("", "Slice", &[value], attributes);
        }
        if self.opset < 10 && step > 0 {
            // Slice has no steps before opset 10.
            let indices: Vec<i64> = (start..end).step_by(usize::try_from(step).unwrap_or(1)).collect();
            let indices = self.ints(&indices);
            return self.add("", "Gather", &[value, &indices], vec![crate::onnx::attr_int("axis", axis)]);
        }
        let [start, end, axis, step] = [start, end, axis, step].map(|value| self.ints(&[value]));
        self.add("", "Slice", &[value, &start, &end, &axis, &step], vec![])
    }

    /// Zeros before and after every axis.
    pub(crate) fn pad(&mut self, value: &str, before: &[i64], after: &[i64]) -> String {
        let pads = [before, after].concat();
        if self.opset < 11 {
            return self.add("", "Pad", &[value], vec![crate::onnx::attr_ints("pads", &pads)]);
        }
        let pads = self.ints(&pads);
        self.add("", "Pad", &[value, &pads], vec![])
    }
}

/// What differentiation offers to the gradient rule of an operator.
///
/// All names are those of values in the gradient graph. Shapes are static. A rule reads the gradient of the loss by
/// its outputs ([`GradientCx::dy`]) and gives that by its inputs ([`GradientCx::give`]), for the inputs that are wanted
/// ([`GradientCx::wants`]).
pub struct GradientCx<'a> {
    pub(crate) graph: &'a Graph,
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
        self.give_at(self.node, slot, gradient);
    }

    /// As [`GradientCx::give`], to input `slot` of another node that this one's rule has taken over.
    pub(crate) fn give_at(&mut self, node: &Node, slot: usize, gradient: String) {
        // A value without elements, such as the frames after the only one, has no gradient.
        let is_empty = |value: &ValueId| {
            let shape = self.facts.values[*value].as_ref().and_then(|fact| fact.shape.as_deref());
            shape.is_some_and(|shape| shape.iter().any(|size| size.is(0)))
        };
        if let Some(value) = node.input(slot).filter(|value| self.depends[*value] && !is_empty(value)) {
            if self.tape.wanted.contains(&value) {
                self.tape.uses.insert((node.id, slot), (value, gradient));
                return;
            }
            self.tape.contributions.entry(value).or_default().push(gradient);
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
        self.tape.opset
    }

    /// Adds a node of the standard domain with one output, and returns that output's name.
    pub fn op(&mut self, op_type: &str, inputs: &[&str]) -> String {
        self.op_with(op_type, inputs, vec![])
    }

    /// As [`GradientCx::op`], with attributes.
    pub fn op_with(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.tape.add("", op_type, inputs, attributes)
    }

    /// The node itself on other inputs: its operator, domain and attributes.
    pub fn same_op(&mut self, inputs: &[&str]) -> String {
        let (domain, op_type) = (self.node.proto.domain.clone(), self.node.proto.op_type.clone());
        self.tape.add(&domain, &op_type, inputs, self.node.proto.attribute.clone())
    }

    /// A vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.tape.ints(values)
    }

    /// A float constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.tape.floats(values, dims)
    }

    /// A float scalar.
    pub fn scalar(&mut self, value: f64) -> String {
        self.tape.floats(&[value as f32], &[])
    }

    /// Elements `start..end` by `step` along an axis.
    pub fn slice(&mut self, value: &str, axis: usize, start: i64, end: i64, step: i64) -> String {
        self.tape.slice(value, axis as i64, start, end, step)
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
