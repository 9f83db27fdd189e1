//! What differentiation collects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::graph::{NodeId, Reader, ValueId};
use crate::onnx::builder::Builder;
use crate::onnx::{NodeProto, attr_int, attr_ints};

/// The nodes emitted so far and the gradients that they give.
pub struct Tape {
    pub(crate) builder: Builder,
    /// What was given to each value. Once its gradient was asked for, that alone.
    pub(crate) contributions: HashMap<ValueId, Vec<String>>,
    /// Weights: the gradient by every use is kept apart.
    pub(crate) wanted: BTreeSet<ValueId>,
    /// Values whose whole gradient is wanted.
    pub(crate) wanted_values: BTreeSet<ValueId>,
    /// Values that the loss compares.
    pub(crate) compared: BTreeSet<ValueId>,
    /// What each node and input slot gives a wanted weight.
    pub(crate) uses: BTreeMap<Reader, (ValueId, String)>,
    /// The differentiated nodes, the last of the network first.
    pub(crate) steps: Vec<Step>,
    /// The place of the node that sums what was given to a value.
    pub(crate) totals: HashMap<ValueId, usize>,
}

/// What differentiating a node read and gave.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node.
    pub(crate) node: NodeId,
    /// The gradients of the loss by its outputs.
    pub(crate) upstream: Vec<Option<String>>,
    /// What it gave.
    pub(crate) given: Vec<Given>,
    /// The places of the nodes that it emitted.
    pub(crate) nodes: Range<usize>,
}

/// A gradient that a node gave to the value at one of its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) slot: usize,
    pub(crate) value: ValueId,
    pub(crate) name: String,
}

impl Tape {
    /// Nothing yet.
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

    /// Begins to differentiate a node.
    pub(crate) fn begin(&mut self, node: NodeId, upstream: Vec<Option<String>>) {
        let at = self.builder.nodes.len();
        self.steps.push(Step { node, upstream, given: Vec::new(), nodes: at..at });
    }

    /// Ends what [`Tape::begin`] began.
    pub(crate) fn end(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.nodes.end = self.builder.nodes.len();
        }
    }

    /// Gives the value at input `slot` of a node a gradient.
    pub(crate) fn give(&mut self, node: NodeId, slot: usize, value: ValueId, name: String) {
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

    /// The sum of all that was given to a value; the sum is emitted once.
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

    /// Gives a node that sums the operator for the number of its inputs.
    pub(crate) fn name_sum(node: &mut NodeProto) {
        sum_of(node.input.len()).clone_into(&mut node.op_type);
    }

    pub(crate) fn scalar(&mut self, value: f32) -> String {
        self.builder.floats(&[value], &[])
    }

    /// Elements `start..end` by `step` along an axis. Before opset 10, steps other than one must be positive and `end` a
    /// place in the axis.
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

    /// Elements `start..end` by `step` along several axes: `(axis, start, end, step)`, with `step > 0`; one node where the
    /// opset lets it be.
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

    /// Zeros before and after every axis.
    pub(crate) fn pad(&mut self, value: &str, before: &[i64], after: &[i64]) -> String {
        let pads = [before, after].concat();
        if self.builder.opset() < 11 {
            return self.builder.add("Pad", &[value], vec![attr_ints("pads", &pads)]);
        }
        let pads = self.builder.int_vector(&pads);
        self.builder.add("Pad", &[value, &pads], vec![])
    }

    /// The value with another shape.
    pub(crate) fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.builder.int_vector(shape);
        self.builder.add("Reshape", &[value, &shape], vec![])
    }

    /// The sum over `axes`, in ascending order: the last run of neighbouring axes first, since ONNX Runtime has fast kernels
    /// for one run on every device; its CUDA provider leaves others to cuDNN, which takes much longer.
    pub(crate) fn reduce_sum(&mut self, value: &str, axes: &[usize], keepdims: bool) -> String {
        let first = (1..axes.len()).rev().find(|at| axes[*at] != axes[*at - 1] + 1).unwrap_or(0);
        let inner = self.reduce("ReduceSum", 13, value, &axes[first..], keepdims);
        if first == 0 { inner } else { self.reduce_sum(&inner, &axes[..first], keepdims) }
    }

    /// The mean over `axes`.
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

/// The operator that sums this many values.
fn sum_of(count: usize) -> &'static str {
    match count {
        1 => "Identity",
        2 => "Add",
        _ => "Sum",
    }
}
