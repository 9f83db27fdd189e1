//! What differentiation collects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::graph::{NodeId, Reader, ValueId};
use crate::onnx::builder::Builder;
use crate::onnx::{NodeProto, attr_int, attr_ints};

/// The nodes emitted so far and the gradients that they compute.
pub struct Tape {
    pub(crate) builder: Builder,
    /// The gradients passed to each value. Once their sum was asked for, the sum alone.
    pub(crate) contributions: HashMap<ValueId, Vec<String>>,
    /// Weights: the gradient of every use is kept separate.
    pub(crate) wanted: BTreeSet<ValueId>,
    /// Values whose total gradient is wanted.
    pub(crate) wanted_values: BTreeSet<ValueId>,
    /// Values that the loss compares.
    pub(crate) compared: BTreeSet<ValueId>,
    /// The gradient that each node and input slot passes to a wanted weight.
    pub(crate) uses: BTreeMap<Reader, (ValueId, String)>,
    /// The differentiated nodes, the last node of the network first.
    pub(crate) steps: Vec<Step>,
    /// The position of the node that sums the gradients passed to a value.
    pub(crate) totals: HashMap<ValueId, usize>,
}

/// Inputs and results of differentiating one node.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node.
    pub(crate) node: NodeId,
    /// The gradients of the loss with respect to its outputs.
    pub(crate) upstream: Vec<Option<String>>,
    /// The gradients that it passed to its inputs.
    pub(crate) given: Vec<Given>,
    /// The positions of the nodes that it emitted.
    pub(crate) nodes: Range<usize>,
}

/// A gradient that a node passed to the value at one of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) slot: usize,
    pub(crate) value: ValueId,
    pub(crate) name: String,
}

impl Tape {
    /// Makes an empty tape.
    pub(crate) fn new(builder: Builder, wanted: &[ValueId], wanted_values: &[ValueId]) -> Self {
        Self {
            builder,
            contributions: HashMap::new(),
            wanted: wanted.iter().copied().collect(),
            wanted_values: wanted_values.iter().copied().collect(),
            compared: BTreeSet::new(),
            uses: BTreeMap::new(),
            steps: Vec::new(),
            totals: HashMap::new(),
        }
    }

    /// Starts to differentiate a node.
    pub(crate) fn begin(&mut self, node: NodeId, upstream: Vec<Option<String>>) {
        let at = self.builder.nodes.len();
        self.steps.push(Step { node, upstream, given: Vec::new(), nodes: at..at });
    }

    /// Finishes the node that [`Tape::begin`] started.
    pub(crate) fn end(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.nodes.end = self.builder.nodes.len();
        }
    }

    /// Passes a gradient to the value at input `slot` of a node.
    pub(crate) fn add_gradient(&mut self, node: NodeId, slot: usize, value: ValueId, name: String) {
        if let Some(step) = self.steps.last_mut() {
            step.given.push(Given { slot, value, name: name.clone() });
        }
        let is_weight = self.wanted.contains(&value);
        if !is_weight || self.wanted_values.contains(&value) {
            self.contributions.entry(value).or_default().push(name.clone());
        }
        if is_weight {
            self.uses.insert(Reader { node, slot }, (value, name));
        }
    }

    /// Returns the sum of all gradients passed to a value; the sum is emitted once.
    pub(crate) fn gradient(&mut self, value: ValueId) -> Option<String> {
        let given = self.contributions.remove(&value)?;
        let total = match given.as_slice() {
            [one] => one.clone(),
            many => {
                let many: Vec<&str> = many.iter().map(String::as_str).collect();
                self.totals.insert(value, self.builder.nodes.len());
                self.builder.add(sum_of(many.len()), &many, vec![])
            }
        };
        self.contributions.insert(value, vec![total.clone()]);
        Some(total)
    }

    /// Sets the operator of a node that sums by the number of its inputs.
    pub(crate) fn name_sum(node: &mut NodeProto) {
        sum_of(node.input.len()).clone_into(&mut node.op_type);
    }

    pub(crate) fn scalar(&mut self, value: f32) -> String {
        self.builder.floats(&[value], &[])
    }

    /// Adds a slice of the elements `start..end` along an axis, in steps of `step`. Before opset 10, a step other than
    /// one must be positive and `end` a position within the axis.
    pub(crate) fn slice(&mut self, value: &str, axis: i64, start: i64, end: i64, step: i64) -> String {
        if self.builder.opset() < 10 && step == 1 {
            let attributes = [("starts", start), ("ends", end), ("axes", axis)];
            let attributes = attributes.map(|(name, value)| attr_ints(name, &[value])).to_vec();
            return self.builder.add("Slice", &[value], attributes);
        }
        if self.builder.opset() < 10 && step > 0 {
            // Slice has no steps before opset 10.
            let indices: Vec<i64> = (start..end).step_by(usize::try_from(step).unwrap_or(1)).collect();
            let indices = self.builder.int_vector(&indices);
            return self.builder.add("Gather", &[value, &indices], vec![attr_int("axis", axis)]);
        }
        let [start, end, axis, step] = [start, end, axis, step].map(|value| self.builder.int_vector(&[value]));
        self.builder.add("Slice", &[value, &start, &end, &axis, &step], vec![])
    }

    /// Adds a slice of the elements `start..end` along several axes, in steps of `step`: `(axis, start, end, step)`,
    /// with `step > 0`. It is one node if the opset allows it.
    pub(crate) fn slices(&mut self, value: &str, cuts: &[(usize, i64, i64, i64)]) -> String {
        if self.builder.opset() < 10 || cuts.is_empty() {
            return cuts.iter().fold(value.to_owned(), |value, (axis, start, end, step)| {
                self.slice(&value, *axis as i64, *start, *end, *step)
            });
        }
        let starts: Vec<i64> = cuts.iter().map(|cut| cut.1).collect();
        let ends: Vec<i64> = cuts.iter().map(|cut| cut.2).collect();
        let axes: Vec<i64> = cuts.iter().map(|cut| cut.0 as i64).collect();
        let steps: Vec<i64> = cuts.iter().map(|cut| cut.3).collect();
        let [starts, ends, axes, steps] = [starts, ends, axes, steps].map(|values| self.builder.int_vector(&values));
        self.builder.add("Slice", &[value, &starts, &ends, &axes, &steps], vec![])
    }

    /// Pads every axis with zeros before and after.
    pub(crate) fn pad(&mut self, value: &str, before: &[i64], after: &[i64]) -> String {
        let pads = [before, after].concat();
        if self.builder.opset() < 11 {
            return self.builder.add("Pad", &[value], vec![attr_ints("pads", &pads)]);
        }
        let pads = self.builder.int_vector(&pads);
        self.builder.add("Pad", &[value, &pads], vec![])
    }

    /// Gives the value another shape.
    pub(crate) fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.builder.int_vector(shape);
        self.builder.add("Reshape", &[value, &shape], vec![])
    }

    /// Computes the sum over `axes`, in ascending order. It sums the last run of adjacent axes first, because ONNX
    /// Runtime has fast kernels for one run on every device; its CUDA provider leaves other sums to cuDNN, which takes
    /// much longer.
    pub(crate) fn reduce_sum(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        let first = (1..axes.len()).rev().find(|at| axes[*at] != axes[*at - 1] + 1).unwrap_or(0);
        let inner = self.reduce("ReduceSum", 13, value, &axes[first..], keepdims);
        if first == 0 { inner } else { self.reduce_sum(&inner, &axes[..first], keepdims) }
    }

    /// Computes the mean over `axes`.
    pub(crate) fn reduce_mean(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        self.reduce("ReduceMean", 18, value, axes, keepdims)
    }

    fn reduce(&mut self, op_type: &str, as_input_from: i64, value: &str, axes: &[usize], keepdims: bool) -> String {
        if axes.is_empty() {
            return value.to_owned();
        }
        let signed: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let keepdims = attr_int("keepdims", i64::from(keepdims));
        if self.builder.opset() >= as_input_from {
            let axes = self.builder.int_vector(&signed);
            self.builder.add(op_type, &[value, &axes], vec![keepdims])
        } else {
            self.builder.add(op_type, &[value], vec![attr_ints("axes", &signed), keepdims])
        }
    }
}

/// Returns the operator that sums this many values.
fn sum_of(count: usize) -> &'static str {
    match count {
        1 => "Identity",
        2 => "Add",
        _ => "Sum",
    }
}
