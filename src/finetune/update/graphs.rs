//! The graphs of the update, in standard operators (opset 13) that every execution provider supports.
//!
//! A graph has a chain of nodes for every weight. Chains share only scalars, so the intermediate values of a chain are
//! freed before the next one. An output may use the memory of an input: all other readers of the input come before the
//! node that writes the output, and that node works elementwise.

use prost::Message;

use super::super::optimizer::{Factors, OptimizerOptions};
use crate::gradient::value_info;
use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attr_int};
use crate::runtime::{BoundSession, Device, Optimization, Runtime, RuntimeError, SessionOptions};

/// The kinds of tensors that every weight has. They prefix the names of inputs and outputs.
pub(super) const WEIGHT: &str = "weight";
pub(super) const GRADIENT: &str = "gradient";
pub(super) const SUM: &str = "sum";
pub(super) const FIRST: &str = "first";
pub(super) const SECOND: &str = "second";
pub(super) const AVERAGE: &str = "average";

/// The output of the norm graph.
pub(super) const NORM: &str = "norm";

/// The scalar that gradients are multiplied by before they are added to their sum.
pub(super) const SHARE: &str = "share";

/// Returns the scalars of a step, by name.
pub(super) fn scalars(of: &Factors) -> Vec<(&'static str, f32)> {
    let every = [("clip", of.gradient), ("keep", of.keep), ("rate", of.rate), ("root_scale", of.root_scale)];
    every.into_iter().chain(of.average.map(|share| ("follow", share))).collect()
}

/// Returns the name of the input for a tensor of a weight.
pub(super) fn input(kind: &str, at: usize) -> String {
    format!("{kind}/{at}")
}

/// Returns the name of the output that replaces it.
pub(super) fn output(kind: &str, at: usize) -> String {
    format!("{kind}/{at}/new")
}

/// A graph under construction.
struct Draft {
    graph: GraphProto,
    names: usize,
}

impl Draft {
    fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: name.to_owned(), ..GraphProto::default() }, names: 0 }
    }

    fn input(&mut self, name: String, dims: &[usize]) -> String {
        self.graph.input.push(value_info(&name, DataType::Float, &signed(dims)));
        name
    }

    fn output(&mut self, name: String, dims: &[usize]) -> String {
        self.graph.output.push(value_info(&name, DataType::Float, &signed(dims)));
        name
    }

    fn constant(&mut self, name: &str, value: f32) {
        let raw_data = value.to_le_bytes().to_vec().into();
        let data_type = DataType::Float as i32;
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            data_type,
            raw_data,
            ..TensorProto::default()
        });
    }

    fn node(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.names += 1;
        let name = format!("value/{}", self.names);
        self.named(operator, inputs, &name);
        name
    }

    fn named(&mut self, operator: &str, inputs: &[&str], output: &str) {
        self.graph.node.push(NodeProto {
            name: output.to_owned(),
            op_type: operator.to_owned(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
    }

    /// Creates a session of the graph without optimisations, which could change the arithmetic.
    fn session(self, runtime: &Runtime, device: Device) -> Result<BoundSession, RuntimeError> {
        let model = ModelProto {
            ir_version: 8,
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() }],
            ..ModelProto::default()
        };
        let options = SessionOptions {
            optimization: Optimization::None,
            no_memory_pattern: true,
            device,
            ..SessionOptions::default()
        };
        BoundSession::new(runtime.session_from_bytes(&model.encode_to_vec(), &options)?)
    }
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect()
}

/// Creates the graph of `sum = [sum +] share gradient`.
pub(super) fn summing(
    (runtime, device): (&Runtime, Device),
    shapes: &[Vec<usize>],
    adds: bool,
) -> Result<BoundSession, RuntimeError> {
    let mut draft = Draft::new("sum");
    let share = draft.input(SHARE.to_owned(), &[]);
    for (at, dims) in shapes.iter().enumerate() {
        let gradient = draft.input(input(GRADIENT, at), dims);
        let sum = draft.output(output(SUM, at), dims);
        if adds {
            let before = draft.input(input(SUM, at), dims);
            let part = draft.node("Mul", &[&share, &gradient]);
            draft.named("Add", &[&before, &part], &sum);
        } else {
            draft.named("Mul", &[&share, &gradient], &sum);
        }
    }
    draft.session(runtime, device)
}

/// Creates the graph of the global norm of all gradients, a scalar, summed in float64.
pub(super) fn norm((runtime, device): (&Runtime, Device), shapes: &[Vec<usize>]) -> Result<BoundSession, RuntimeError> {
    let mut draft = Draft::new("norm");
    let mut squares = Vec::with_capacity(shapes.len());
    for (at, dims) in shapes.iter().enumerate() {
        let gradient = draft.input(input(GRADIENT, at), dims);
        let wide = draft.node("Cast", &[&gradient]);
        draft.attribute("to", DataType::Double as i64);
        // ReduceSumSquare without axes reduces all of them.
        squares.push(draft.node("ReduceSumSquare", &[&wide]));
        draft.attribute("keepdims", 0);
    }
    let squares: Vec<&str> = squares.iter().map(String::as_str).collect();
    let sum = draft.node("Sum", &squares);
    let root = draft.node("Sqrt", &[&sum]);
    let norm = draft.output(NORM.to_owned(), &[]);
    draft.named("Cast", &[&root], &norm);
    draft.attribute("to", DataType::Float as i64);
    draft.session(runtime, device)
}

impl Draft {
    /// Adds an attribute to the last node.
    fn attribute(&mut self, name: &str, value: i64) {
        if let Some(node) = self.graph.node.last_mut() {
            node.attribute.push(attr_int(name, value));
        }
    }
}

/// Creates the graph of a step of Adam or AdamW and of the moving average, with the operations of
/// [`super::super::optimizer`] in the same order.
pub(super) fn step(
    (runtime, device): (&Runtime, Device),
    shapes: &[Vec<usize>],
    options: &OptimizerOptions,
) -> Result<BoundSession, RuntimeError> {
    let mut draft = Draft::new("step");
    // Factors that do not change between steps are constants.
    let of = options.factors(1, 1.0, 0.0);
    for (name, _) in scalars(&of) {
        draft.input(name.to_owned(), &[]);
    }
    let constants = [
        ("coupled_decay", of.coupled_decay),
        ("second_decay", of.second_decay),
        ("first_share", of.shares.0),
        ("second_share", of.shares.1),
        ("epsilon", of.epsilon),
    ];
    constants.into_iter().for_each(|(name, value)| draft.constant(name, value));
    for (at, dims) in shapes.iter().enumerate() {
        let [weight, gradient, first, second] =
            [WEIGHT, GRADIENT, FIRST, SECOND].map(|kind| draft.input(input(kind, at), dims));
        let [new_weight, new_first, new_second] =
            [WEIGHT, FIRST, SECOND].map(|kind| draft.output(output(kind, at), dims));
        let mut gradient = draft.node("Mul", &[&gradient, "clip"]);
        if of.coupled_decay != 0.0 {
            let decay = draft.node("Mul", &["coupled_decay", &weight]);
            gradient = draft.node("Add", &[&gradient, &decay]);
        }
        let towards = draft.node("Sub", &[&gradient, &first]);
        let towards = draft.node("Mul", &["first_share", &towards]);
        draft.named("Add", &[&first, &towards], &new_first);
        let square = draft.node("Mul", &[&gradient, &gradient]);
        let square = draft.node("Mul", &["second_share", &square]);
        let kept = draft.node("Mul", &["second_decay", &second]);
        draft.named("Add", &[&kept, &square], &new_second);
        let root = draft.node("Sqrt", &[&new_second]);
        let root = draft.node("Mul", &[&root, "root_scale"]);
        let root = draft.node("Add", &[&root, "epsilon"]);
        let direction = draft.node("Div", &[&new_first, &root]);
        let direction = draft.node("Mul", &["rate", &direction]);
        let kept = draft.node("Mul", &["keep", &weight]);
        draft.named("Sub", &[&kept, &direction], &new_weight);
        if of.average.is_some() {
            let average = draft.input(input(AVERAGE, at), dims);
            let new_average = draft.output(output(AVERAGE, at), dims);
            let towards = draft.node("Sub", &[&new_weight, &average]);
            let towards = draft.node("Mul", &["follow", &towards]);
            draft.named("Add", &[&average, &towards], &new_average);
        }
    }
    draft.session(runtime, device)
}
