//! The interface of rewriting to an operator whose attributes or constants state a size.

use std::collections::BTreeMap;

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node};
use crate::onnx::names::Names;
use crate::onnx::{AttributeProto, NodeProto, TensorProto, attr_float, attr_int, attr_ints};
use crate::operator::RuleError;
use crate::operator::couple::Coupling;
use crate::operator::couple::grid::{Column, Grid, column, tuples};
use crate::operator::couple::kept::Kept;
use crate::operator::couple::layout::Axis;

/// A node that is being rewritten, with what is known before and after the cut.
pub struct PatchCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) graph: &'a Graph,
    pub(crate) before: &'a Facts,
    pub(crate) after: &'a mut Facts,
    pub(crate) coupling: &'a Coupling,
    pub(crate) kept: &'a Kept,
    pub(crate) proto: &'a mut NodeProto,
    pub(crate) tensors: &'a mut Vec<TensorProto>,
    pub(crate) inserted: &'a mut Vec<NodeProto>,
    pub(crate) names: &'a mut Names,
    pub(crate) overrides: &'a mut BTreeMap<usize, Fact>,
    pub(crate) changed: bool,
}

impl PatchCx<'_> {
    fn input_axis(&self, slot: usize, axis: usize) -> Option<Axis> {
        if let Some(weight) = self.coupling.weight_use(self.node.id, slot) {
            let space = weight.axes.get(axis).copied().flatten();
            return Some(space.map_or_else(Axis::new, |space| self.coupling.spaces.whole(space)));
        }
        self.coupling.layouts[self.node.input(slot)?].as_ref()?.axes.get(axis).cloned()
    }

    fn output_axis(&self, slot: usize, axis: usize) -> Option<&Axis> {
        self.coupling.layouts[self.node.output(slot)?].as_ref()?.axes.get(axis)
    }

    /// Returns the fact of input `slot` before the cut.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.before.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the rank of input `slot`; zero if not known.
    pub fn rank(&self, slot: usize) -> usize {
        self.fact(slot).and_then(Fact::rank).unwrap_or(0)
    }

    /// Returns the rank of output `slot`; zero if not known.
    pub fn output_rank(&self, slot: usize) -> usize {
        let value = self.node.output(slot);
        value.and_then(|value| self.before.values[value].as_ref()).and_then(Fact::rank).unwrap_or(0)
    }

    /// Returns the size of an axis of input `slot` before the cut; `None` unless static.
    pub fn old_size(&self, slot: usize, axis: usize) -> Option<i64> {
        self.fact(slot)?.shape.as_ref()?.get(axis)?.as_const()
    }

    /// Returns the size of an axis of output `slot` before the cut; `None` unless static.
    pub fn old_output_size(&self, slot: usize, axis: usize) -> Option<i64> {
        self.before.values[self.node.output(slot)?].as_ref()?.shape.as_ref()?.get(axis)?.as_const()
    }

    /// Returns the size of an axis of input `slot` after the cut; `None` unless static.
    pub fn new_size(&self, slot: usize, axis: usize) -> Option<i64> {
        self.kept.axis_size(&self.input_axis(slot, axis)?).as_const()
    }

    /// Returns the size of an axis of output `slot` after the cut; `None` unless static.
    pub fn new_output_size(&self, slot: usize, axis: usize) -> Option<i64> {
        self.kept.axis_size(self.output_axis(slot, axis)?).as_const()
    }

    /// Returns the size of an axis of output `slot` after the cut, which may be symbolic.
    pub fn new_output_dim(&self, slot: usize, axis: usize) -> Option<Dim> {
        Some(self.kept.axis_size(self.output_axis(slot, axis)?))
    }

    /// Returns the size of an axis of output `slot` before the cut as the product of its pieces.
    pub fn whole_output_dim(&self, slot: usize, axis: usize) -> Option<Dim> {
        let pieces = self.output_axis(slot, axis)?;
        Some(pieces.iter().fold(Dim::from(1), |size, piece| &size * &piece.size()))
    }

    /// Whether an axis of input `slot` loses indices.
    pub fn input_shrinks(&self, slot: usize, axis: usize) -> bool {
        self.input_axis(slot, axis).is_some_and(|axis| self.kept.shrinks(&axis))
    }

    /// Whether an axis of output `slot` loses indices.
    pub fn output_shrinks(&self, slot: usize, axis: usize) -> bool {
        self.output_axis(slot, axis).is_some_and(|axis| self.kept.shrinks(axis))
    }

    /// Returns the indices that an axis of input `slot` keeps; `None` if all.
    pub fn kept_input(&self, slot: usize, axis: usize) -> Option<Vec<usize>> {
        self.kept.axis_indices(&self.input_axis(slot, axis)?)
    }

    /// Returns the indices that an axis of output `slot` keeps; `None` if all.
    pub fn kept_output(&self, slot: usize, axis: usize) -> Option<Vec<usize>> {
        self.kept.axis_indices(self.output_axis(slot, axis)?)
    }

    /// Returns the known integers of input `slot` before the cut.
    pub fn old_ints(&self, slot: usize) -> Option<Vec<Dim>> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints).map(<[Dim]>::to_vec)
    }

    /// Returns the known integers of input `slot` as the rewritten graph computes them.
    pub fn new_ints(&self, slot: usize) -> Option<Vec<Dim>> {
        if let Some(fact) = self.overrides.get(&slot) {
            return fact.known.as_ref().and_then(Known::ints).map(<[Dim]>::to_vec);
        }
        let value = self.node.input(slot)?;
        self.after.values[value].as_ref()?.known.as_ref().and_then(Known::ints).map(<[Dim]>::to_vec)
    }

    /// Returns the index tuples along the last axis of input `slot` before the cut; `None` if they are no grid.
    pub fn tuples(&self, slot: usize) -> Option<Grid> {
        tuples(&self.coupling.grids, self.before, self.node.input(slot)?)
    }

    /// Returns the integers of input `slot` before the cut as one column; `None` if they differ along more than one
    /// axis.
    pub fn column(&self, slot: usize) -> Option<Column> {
        column(&self.coupling.grids, self.before, self.node.input(slot)?)
    }

    /// Sets an integer attribute.
    pub fn set_int(&mut self, name: &str, value: i64) {
        self.set_attribute(attr_int(name, value));
    }

    /// Sets an attribute of integers.
    pub fn set_ints(&mut self, name: &str, values: &[i64]) {
        self.set_attribute(attr_ints(name, values));
    }

    /// Sets a float attribute.
    pub fn set_float(&mut self, name: &str, value: f32) {
        self.set_attribute(attr_float(name, value));
    }

    /// Removes an attribute.
    pub fn remove_attribute(&mut self, name: &str) {
        self.proto.attribute.retain(|attribute| attribute.name != name);
        self.changed = true;
    }

    fn set_attribute(&mut self, attribute: AttributeProto) {
        match self.proto.attribute.iter_mut().find(|known| known.name == attribute.name) {
            Some(known) => *known = attribute,
            None => self.proto.attribute.push(attribute),
        }
        self.changed = true;
    }

    /// Makes a name for the value that replaces input `slot`.
    fn input_name(&mut self, slot: usize) -> String {
        let output = self.proto.output.first().map_or("", String::as_str);
        self.names.fresh(&format!("{output}/pruned_input_{slot}"))
    }

    /// Gives elements of the int64 input `slot` (a vector or scalar) the values that the cut needs; `None` leaves an
    /// element as the graph computes it. Nothing changes if the graph already computes the right values. If all
    /// elements are static, the input becomes a constant; otherwise a Where overrides the given elements.
    ///
    /// # Errors
    /// The node lacks the input.
    pub fn set_input_ints(&mut self, slot: usize, values: &[Option<i64>]) -> Result<(), RuleError> {
        let computed = self.new_ints(slot);
        let is_right = |at: usize, value: i64| {
            computed.as_ref().and_then(|computed| computed.get(at)).is_some_and(|computed| computed.is(value))
        };
        if values.iter().enumerate().all(|(at, value)| value.is_none_or(|value| is_right(at, value))) {
            return Ok(());
        }
        let input = self.node.input(slot).ok_or_else(|| RuleError::invalid(format!("input {slot} is missing")))?;
        let is_scalar = self.fact(slot).and_then(Fact::rank) == Some(0);
        let dims: Vec<i64> = if is_scalar { vec![] } else { vec![values.len() as i64] };
        let merged: Option<Vec<i64>> = values
            .iter()
            .enumerate()
            .map(|(at, value)| value.or_else(|| computed.as_ref()?.get(at)?.as_const()))
            .collect();
        let base = self.input_name(slot);
        let is_int32 = self.fact(slot).is_some_and(|fact| fact.dtype == crate::onnx::DataType::Int32);
        let integers = |name: &str, values: &[i64]| {
            if is_int32 {
                TensorProto::of_int32s(name, values, &dims)
            } else {
                TensorProto::of_ints(name, values, &dims)
            }
        };
        let known: Option<Vec<Dim>> = values
            .iter()
            .enumerate()
            .map(|(at, value)| value.map(Dim::from).or_else(|| computed.as_ref()?.get(at).cloned()))
            .collect();
        let shape = dims.iter().copied().map(Dim::from).collect();
        let dtype = if is_int32 { crate::onnx::DataType::Int32 } else { crate::onnx::DataType::Int64 };
        self.overrides.insert(slot, Fact::new(dtype, shape).with_known(known.map(Known::Ints)));
        if let Some(merged) = merged {
            self.tensors.push(integers(&base, &merged));
        } else {
            let mask: Vec<bool> = values.iter().map(Option::is_some).collect();
            let fixed: Vec<i64> = values.iter().map(|value| value.unwrap_or(0)).collect();
            let mask_name = self.names.fresh(&format!("{base}_mask"));
            let fixed_name = self.names.fresh(&format!("{base}_sizes"));
            self.tensors.push(TensorProto::of_bools(&mask_name, &mask, &dims));
            self.tensors.push(integers(&fixed_name, &fixed));
            self.inserted.push(NodeProto {
                op_type: "Where".to_owned(),
                name: self.names.fresh(&format!("{base}_where")),
                input: vec![mask_name, fixed_name, self.graph.values[input].name.clone()],
                output: vec![base.clone()],
                ..NodeProto::default()
            });
        }
        self.proto.input[slot] = base;
        self.changed = true;
        Ok(())
    }

    /// Replaces input `slot` by the given int64 tensor.
    pub fn set_input_tensor(&mut self, slot: usize, values: &[i64], dims: &[i64]) {
        let name = self.input_name(slot);
        self.tensors.push(TensorProto::of_ints(&name, values, dims));
        while self.proto.input.len() <= slot {
            self.proto.input.push(String::new());
        }
        let known = values.iter().copied().map(Dim::from).collect();
        let shape = dims.iter().copied().map(Dim::from).collect();
        let fact = Fact::new(crate::onnx::DataType::Int64, shape).with_known(Some(Known::Ints(known)));
        self.overrides.insert(slot, fact);
        self.proto.input[slot] = name;
        self.changed = true;
    }

    /// Returns name and fact of input `slot` of the rewritten node.
    pub fn name_of(&self, slot: usize) -> (String, Option<Fact>) {
        let known = self.node.input(slot).and_then(|value| self.after.values[value].as_ref());
        (self.proto.input.get(slot).cloned().unwrap_or_default(), self.overrides.get(&slot).or(known).cloned())
    }

    /// Returns the fact of input `slot` with another size of one axis.
    pub fn resized(&self, slot: usize, axis: usize, size: Dim) -> Option<Fact> {
        let Fact { dtype, shape, .. } = self.name_of(slot).1?;
        let mut shape = shape?;
        *shape.get_mut(axis)? = size;
        Some(Fact::new(dtype, shape))
    }

    /// Adds a constant int64 vector and returns its name and fact.
    pub fn constant(&mut self, values: &[i64]) -> (String, Option<Fact>) {
        let output = self.proto.output.first().map_or("", String::as_str);
        let name = self.names.fresh(&format!("{output}/pruned_constant"));
        self.tensors.push(TensorProto::of_ints(&name, values, &[values.len() as i64]));
        (name, Some(Fact::int_vector(values.iter().copied().map(Dim::from).collect())))
    }

    /// Inserts a node with one output before the node and returns the output's name.
    pub fn insert(
        &mut self,
        op_type: &str,
        inputs: &[(String, Option<Fact>)],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let output = self.proto.output.first().map_or("", String::as_str);
        let name = self.names.fresh(&format!("{output}/pruned_{}", op_type.to_lowercase()));
        self.inserted.push(NodeProto {
            op_type: op_type.to_owned(),
            name: name.clone(),
            input: inputs.iter().map(|(name, _)| name.clone()).collect(),
            output: vec![name.clone()],
            attribute,
            ..NodeProto::default()
        });
        name
    }

    /// Replaces the node by one of another standard operator, with these inputs.
    pub fn replace(&mut self, op_type: &str, inputs: &[(String, Option<Fact>)], attribute: Vec<AttributeProto>) {
        self.proto.op_type = op_type.to_owned();
        self.proto.domain = String::new();
        self.proto.attribute = attribute;
        self.proto.input = inputs.iter().map(|(name, _)| name.clone()).collect();
        self.overrides.clear();
        for (slot, (_, fact)) in inputs.iter().enumerate() {
            if let Some(fact) = fact {
                self.overrides.insert(slot, fact.clone());
            }
        }
        self.changed = true;
    }

    /// Returns the number of norm groups that are kept of `count` groups of consecutive channels along an axis of
    /// input `slot`.
    pub fn norm_group_count(&self, slot: usize, axis: usize, count: i64) -> Option<i64> {
        let kept = self.kept_input(slot, axis)?;
        let size = self.old_size(slot, axis)?;
        let members = usize::try_from(size / count.max(1)).ok().filter(|members| *members > 0)?;
        let mut groups: Vec<usize> = kept.iter().map(|index| index / members).collect();
        groups.dedup();
        Some(groups.len() as i64)
    }
}
