//! The graphs that sum tensors on a device.

use prost::Message;

use super::super::value_info;
use crate::array::{Array, ArrayData};
use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use crate::runtime::{BoundSession, Device, Optimization, Runtime, RuntimeError, SessionOptions};

/// The form of a summing graph: what it does with every tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SumForm {
    /// Whether it adds to an earlier sum.
    pub(super) adds: bool,
    /// Whether it squares the values.
    pub(super) squares: bool,
}

/// The sessions of the summing graphs, created on first use.
#[derive(Debug)]
pub(super) struct Graphs {
    /// The runtime of the pass.
    runtime: Runtime,
    options: SessionOptions,
    shapes: Vec<Vec<usize>>,
    sessions: Vec<(SumForm, BoundSession)>,
}

impl Graphs {
    /// Returns no sessions yet, for tensors of these shapes on the device of a session.
    pub(super) fn new(runtime: Runtime, device: Device, shapes: Vec<Vec<usize>>) -> Self {
        // Optimisation would gain nothing here, and could change the arithmetic.
        let options = SessionOptions { optimization: Optimization::None, device, ..SessionOptions::default() };
        Self { runtime, options, shapes, sessions: Vec::new() }
    }

    /// Returns the session of the graph of this form.
    pub(super) fn get(&mut self, form: SumForm) -> Result<&mut BoundSession, RuntimeError> {
        let at = match self.sessions.iter().position(|(known, _)| *known == form) {
            Some(at) => at,
            None => {
                let bytes = summing_graph(&self.shapes, form).encode_to_vec();
                let session = self.runtime.session_from_bytes(&bytes, &self.options)?;
                self.sessions.push((form, BoundSession::new(session)?));
                self.sessions.len() - 1
            }
        };
        Ok(&mut self.sessions[at].1)
    }
}

/// Name of the input with the factor of all values.
pub(super) const SCALE: &str = "scale";

pub(super) fn value_name(at: usize) -> String {
    format!("value_{at}")
}

pub(super) fn addend_name(at: usize) -> String {
    format!("addend_{at}")
}

pub(super) fn sum_name(at: usize) -> String {
    format!("sum_{at}")
}

pub(super) fn scalar(value: f32) -> Array {
    Array { dims: Vec::new(), data: ArrayData::F32(vec![value]) }
}

/// Returns the sizes of an output whose sizes are all fixed.
pub(super) fn fixed(dims: &[Option<i64>]) -> Vec<usize> {
    dims.iter().map(|dim| dim.and_then(|size| usize::try_from(size).ok()).unwrap_or(0)).collect()
}

/// Builds the graph that computes `sum = [addend +] (scale value)[^2]` for every shape.
fn summing_graph(shapes: &[Vec<usize>], form: SumForm) -> ModelProto {
    let info = |name: &str, dims: &[usize]| -> ValueInfoProto {
        let dims: Vec<i64> = dims.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
        value_info(name, DataType::Float, &dims)
    };
    let node = |operator: &str, inputs: [&str; 2], output: &str| NodeProto {
        name: output.to_owned(),
        op_type: operator.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let mut graph = GraphProto { name: "sum".to_owned(), input: vec![info(SCALE, &[])], ..GraphProto::default() };
    for (at, dims) in shapes.iter().enumerate() {
        let (value, addend, sum) = (value_name(at), addend_name(at), sum_name(at));
        let (scaled, square) = (format!("scaled_{at}"), format!("square_{at}"));
        graph.input.push(info(&value, dims));
        graph.output.push(info(&sum, dims));
        let term = if form.squares { &square } else { &scaled };
        let last = |name: &String| if !form.adds && name == term { sum.clone() } else { name.clone() };
        graph.node.push(node("Mul", [&value, SCALE], &last(&scaled)));
        if form.squares {
            graph.node.push(node("Mul", [&scaled, &scaled], &last(&square)));
        }
        if form.adds {
            graph.input.push(info(&addend, dims));
            graph.node.push(node("Add", [&addend, term], &sum));
        }
    }
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() }],
        ..ModelProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summing_graph_has_one_output_for_every_shape() {
        for (adds, squares, nodes) in [(false, false, 1), (false, true, 2), (true, false, 2), (true, true, 3)] {
            let model = summing_graph(&[vec![2, 3], vec![]], SumForm { adds, squares });
            let graph = model.graph.unwrap();
            assert_eq!((graph.node.len(), graph.output.len()), (2 * nodes, 2));
            assert_eq!(graph.input.len(), if adds { 5 } else { 3 });
            assert_eq!(graph.node.last().unwrap().output, ["sum_1"]);
        }
    }
}
