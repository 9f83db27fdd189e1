//! The interface of an operator to the construction of the reference graph.

mod norms;
mod values;

use std::collections::{BTreeMap, HashMap};

use super::RuleError;
use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, Reader};
use crate::onnx::builder::Builder;
use crate::onnx::{AttributeProto, DataType, attr_int, attr_ints};

/// Kept indices per axis of the constant at one input of one node; axes that are kept whole are absent.
pub type KeptAxes = BTreeMap<usize, Vec<usize>>;

/// The reference graph under construction.
#[derive(Debug)]
pub struct Reference {
    /// All nodes in topological order: the original ones (some replaced), those of the masks, and new constants.
    pub builder: Builder,
    /// Names of the masks of values that lost indices.
    pub masks: HashMap<String, String>,
}

impl Reference {
    /// Makes an empty reference of a graph.
    pub fn new(graph: &Graph) -> Self {
        Self { builder: Builder::new("__mask", graph.opset, graph.names()), masks: HashMap::new() }
    }
}

/// The interface of the construction of the reference to an operator.
pub struct ReferenceCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) graph: &'a Graph,
    pub(crate) facts: &'a Facts,
    pub(crate) kept: &'a HashMap<Reader, KeptAxes>,
    pub(crate) reference: &'a mut Reference,
    pub(crate) emitted: bool,
}

impl ReferenceCx<'_> {
    /// Returns the name of input `slot`; empty if the node omits it.
    pub fn input(&self, slot: usize) -> String {
        self.node.proto.input.get(slot).cloned().unwrap_or_default()
    }

    /// Returns the name of output `slot`; empty if the node omits it.
    pub fn output(&self, slot: usize) -> String {
        self.node.proto.output.get(slot).cloned().unwrap_or_default()
    }

    /// Returns the fact of input `slot`.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the known integers of input `slot`.
    pub fn known_ints(&self, slot: usize) -> Option<Vec<crate::graph::dim::Dim>> {
        self.fact(slot)?.known.as_ref().and_then(crate::graph::fact::Known::ints).map(<[_]>::to_vec)
    }

    /// Returns the rank of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn rank(&self, slot: usize) -> Result<usize, RuleError> {
        self.fact(slot).and_then(Fact::rank).ok_or(RuleError::UnknownShape)
    }

    /// Returns the rank of output `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn output_rank(&self, slot: usize) -> Result<usize, RuleError> {
        let value = self.node.output(slot).ok_or(RuleError::UnknownShape)?;
        self.facts.values[value].as_ref().and_then(Fact::rank).ok_or(RuleError::UnknownShape)
    }

    /// Whether the output has a floating point type; shape arithmetic needs no mask.
    pub fn is_float_output(&self) -> bool {
        let fact = self.node.output(0).and_then(|value| self.facts.values[value].as_ref());
        fact.is_none_or(Fact::is_float)
    }

    /// Adds a node `op_type` of the standard domain with one output, and returns that output's name.
    pub fn add(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.add_outputs(op_type, inputs, attributes, 1).pop().unwrap_or_default()
    }

    /// Adds a node with `count` outputs and returns their names.
    pub fn add_outputs(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        count: usize,
    ) -> Vec<String> {
        self.reference.builder.add_outputs("", op_type, inputs, attributes, count)
    }

    /// Adds an int64 constant and returns its name.
    pub fn ints(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.reference.builder.ints(values, dims)
    }

    /// Adds a float32 constant and returns its name.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.reference.builder.floats(values, dims)
    }

    /// Returns the mask of input `slot`: float32, of the input's rank, with every size either the input's or one.
    /// `None` if nothing was removed.
    pub fn mask(&mut self, slot: usize) -> Option<String> {
        if let Some(kept) = self.kept.get(&Reader { node: self.node.id, slot }) {
            let rank = self.fact(slot).and_then(Fact::rank)?;
            let mut mask: Option<String> = None;
            for (axis, kept) in kept.clone() {
                let size = self.fact(slot)?.shape.as_ref()?.get(axis)?.as_const()?;
                let mut row = vec![0.0; usize::try_from(size).ok()?];
                for index in kept {
                    *row.get_mut(index)? = 1.0;
                }
                let mut dims = vec![1; rank];
                dims[axis] = size;
                let row = self.floats(&row, &dims);
                mask = Some(match mask {
                    None => row,
                    Some(mask) => self.add("Mul", &[&mask, &row], vec![]),
                });
            }
            return mask;
        }
        let value = self.node.input(slot)?;
        self.reference.masks.get(&self.graph.values[value].name).cloned()
    }

    /// Returns the mask of input `slot` at the input's full shape; ones if nothing was removed.
    pub fn full_mask(&mut self, slot: usize) -> String {
        let mask = match self.mask(slot) {
            Some(mask) => mask,
            None => self.floats(&[1.0], &[]),
        };
        let input = self.input(slot);
        let shape = self.add("Shape", &[&input], vec![]);
        self.add("Expand", &[&mask, &shape], vec![])
    }

    /// Sets the mask of output `slot`.
    pub fn set_mask(&mut self, slot: usize, mask: String) {
        let output = self.output(slot);
        if !output.is_empty() {
            self.reference.masks.insert(output, mask);
        }
    }

    /// Returns input `slot` with zeros at the removed positions.
    pub fn zeroed(&mut self, slot: usize) -> String {
        let input = self.input(slot);
        match self.mask(slot) {
            None => input,
            Some(mask) => self.filled(&input, &mask, 0.0, slot),
        }
    }

    /// Returns `input`, of the element type of input `slot`, with `value` where `mask` is zero.
    pub fn filled(&mut self, input: &str, mask: &str, value: f32, slot: usize) -> String {
        let kept = self.add("Cast", &[mask], vec![attr_int("to", DataType::Bool as i64)]);
        let fill = self.floats(&[value], &[]);
        let Some((own, wide)) = self.fact(slot).and_then(|fact| Some((fact.dtype, wider_to_choose(fact.dtype)?)))
        else {
            let fill = self.cast_to_input(&fill, slot);
            return self.add("Where", &[&kept, input, &fill], vec![]);
        };
        let input = self.add("Cast", &[input], vec![attr_int("to", wide as i64)]);
        let fill = self.add("Cast", &[&fill], vec![attr_int("to", wide as i64)]);
        let chosen = self.add("Where", &[&kept, &input, &fill], vec![]);
        let mut to_own = vec![attr_int("to", own as i64)];
        if own.bit_size().is_some_and(|bits| bits == 8) && wide == DataType::Float {
            // Infinite elements remain infinite.
            to_own.push(attr_int("saturate", 0));
        }
        self.add("Cast", &[&chosen], to_own)
    }

    /// Casts a float32 value to the element type of input `slot`.
    pub fn cast_to_input(&mut self, value: &str, slot: usize) -> String {
        match self.fact(slot).map(|fact| fact.dtype) {
            Some(dtype) if dtype != DataType::Float => self.add("Cast", &[value], vec![attr_int("to", dtype as i64)]),
            _ => value.to_owned(),
        }
    }

    /// Casts a value that has the element type of input `slot` to float32.
    pub fn cast_to_float(&mut self, value: &str, slot: usize) -> String {
        match self.fact(slot).map(|fact| fact.dtype) {
            Some(dtype) if dtype != DataType::Float => {
                self.add("Cast", &[value], vec![attr_int("to", DataType::Float as i64)])
            }
            _ => value.to_owned(),
        }
    }

    /// Adds a reduction by the standard operator `op_type` over static `axes`, which keep size one.
    pub fn reduce(&mut self, op_type: &str, input: &str, axes: &[i64]) -> String {
        let opset = self.opset();
        let as_input = if op_type == "ReduceSum" { opset >= 13 } else { opset >= 18 };
        if as_input {
            let axes = self.ints(axes, &[axes.len() as i64]);
            self.add(op_type, &[input, &axes], vec![attr_int("keepdims", 1)])
        } else {
            self.add(op_type, &[input], vec![attr_ints("axes", axes), attr_int("keepdims", 1)])
        }
    }

    /// Returns the version of the standard operator set of the model.
    pub fn opset(&self) -> i64 {
        self.graph.opset
    }

    /// Emits the node itself with some inputs replaced (slot, name). In constants that the plan names, the entries
    /// that the plan removes are zero: they only meet removed positions, unless the plan contradicts itself.
    pub fn emit(&mut self, replaced: &[(usize, String)]) {
        let mut proto = self.node.proto.clone();
        for slot in 0..proto.input.len() {
            if self.is_planned(slot) {
                proto.input[slot] = self.zeroed(slot);
            }
        }
        for (slot, name) in replaced.iter().filter(|(_, name)| !name.is_empty()) {
            if proto.input.len() <= *slot {
                proto.input.resize(slot + 1, String::new());
            }
            proto.input[*slot].clone_from(name);
        }
        self.reference.builder.nodes.push(proto);
        self.emitted = true;
    }

    /// Emits, instead of the node, an Identity that renames `value` to output `slot`.
    pub fn emit_as(&mut self, slot: usize, value: &str) {
        let output = self.output(slot);
        self.reference.builder.rename(value, &output);
        self.emitted = true;
    }

    /// Applies the rule of operators that only move data: the node acts on the full masks of the inputs `data` as it
    /// does on their values; its other inputs are shared.
    pub fn moves(&mut self, data: &[usize]) {
        let masks: Vec<(usize, String)> = data
            .iter()
            .copied()
            .filter(|slot| self.node.input(*slot).is_some())
            .map(|slot| (slot, self.full_mask(slot)))
            .collect();
        let mut inputs = self.node.proto.input.clone();
        for (slot, mask) in &masks {
            inputs[*slot].clone_from(mask);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let (op_type, attributes) = (self.node.proto.op_type.clone(), self.node.proto.attribute.clone());
        let outputs = self.add_outputs(&op_type, &inputs, attributes, self.node.proto.output.len());
        for (slot, mask) in outputs.into_iter().enumerate() {
            self.set_mask(slot, mask);
        }
    }

    /// Computes the product of the masks of several inputs, aligned as broadcasting aligns the inputs.
    pub fn common_mask(&mut self, slots: &[usize]) -> Option<String> {
        let mut common: Option<String> = None;
        for slot in slots {
            if let Some(mask) = self.mask(*slot) {
                common = Some(match common {
                    None => mask,
                    Some(other) if other == mask => other,
                    Some(other) => self.add("Mul", &[&other, &mask], vec![]),
                });
            }
        }
        common
    }

    /// Applies the rule of elementwise operators: an element is kept if the elements of all `slots` are.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn elementwise(&mut self, slots: &[usize]) -> Result<(), RuleError> {
        if let Some(mask) = self.common_mask(slots) {
            let mask = self.unsqueeze_to_output(mask, slots)?;
            self.set_mask(0, mask);
        }
        Ok(())
    }

    /// Gives a broadcast mask of `slots` the rank of output 0 by leading axes of size one.
    fn unsqueeze_to_output(&mut self, mask: String, slots: &[usize]) -> Result<String, RuleError> {
        let Ok(rank) = self.output_rank(0) else {
            return Ok(mask);
        };
        let mut widest = 0;
        for slot in slots {
            if self.mask(*slot).is_some() {
                widest = widest.max(self.rank(*slot)?);
            }
        }
        if widest >= rank {
            return Ok(mask);
        }
        let ones = self.ints(&vec![1; rank], &[rank as i64]);
        Ok(self.add("Expand", &[&mask, &ones], vec![]))
    }

    /// Whether the plan names input `slot`, a weight or parameter.
    pub fn is_planned(&self, slot: usize) -> bool {
        self.kept.contains_key(&Reader { node: self.node.id, slot })
    }

    /// Inserts an axis of size one into `value`.
    pub fn unsqueeze(&mut self, value: &str, axis: i64) -> String {
        if self.opset() >= 13 {
            let axes = self.ints(&[axis], &[1]);
            self.add("Unsqueeze", &[value, &axes], vec![])
        } else {
            self.add("Unsqueeze", &[value], vec![attr_ints("axes", &[axis])])
        }
    }
}

/// Returns the type in which Where chooses between elements of a type for which ONNX Runtime has no Where. It holds
/// all values of that type, so that casting there and back changes none. `None` if there is a Where for the type.
fn wider_to_choose(dtype: DataType) -> Option<DataType> {
    Some(match dtype {
        DataType::Bool => DataType::Uint8,
        DataType::Int8 | DataType::Int16 | DataType::Uint16 | DataType::Int4 | DataType::Uint4 => DataType::Int32,
        DataType::Uint32 | DataType::Uint64 => DataType::Int64,
        DataType::Bfloat16
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0
        | DataType::Float4e2m1 => DataType::Float,
        _ => return None,
    })
}
