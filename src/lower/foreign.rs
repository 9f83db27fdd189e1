//! Operators that neither this version nor ONNX Runtime supports, such as plugins of other engines.

use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::NodeProto;
use crate::ops;
use crate::runtime::RuntimeError;

/// Returns the error for a network that ONNX Runtime rejects because it lacks an operator. Returns `None` if the cause
/// is a different one. `what` states what can't be done without running the network.
pub fn foreign(model: &Model, error: &RuntimeError, what: &str) -> Option<Error> {
    let RuntimeError::ModelRejected { message } = error else { return None };
    // ONNX Runtime names the first operator or domain that it does not find.
    let names = |name: &str| !name.is_empty() && message.contains(name);
    let is_unknown = |node: &&NodeProto| ops::find(&node.domain, &node.op_type).is_none();
    let unknown: Vec<&NodeProto> = model.graph().node.iter().filter(is_unknown).collect();
    let is_missing = ["not a registered", "No Op registered", "No opset import", "No schema registered"];
    if !is_missing.iter().any(|text| message.contains(text)) {
        return None;
    }
    let node = unknown.into_iter().find(|node| names(&node.op_type) || names(&node.domain))?;
    let is_same = |other: &&NodeProto| (&other.domain, &other.op_type) == (&node.domain, &node.op_type);
    let operator = match node.domain.as_str() {
        "" => format!("operator {}", node.op_type),
        domain => format!("operator {domain}.{}", node.op_type),
    };
    let others = match model.graph().node.iter().filter(is_same).count() {
        0 | 1 => String::new(),
        2 => " and another node".to_owned(),
        count => format!(" and {} other nodes", count - 1),
    };
    let output = node.first_output();
    let name = if node.name.is_empty() { format!("producing {output}") } else { node.name.clone() };
    let text = format!("{what}: ONNX Runtime has no {operator}, which is the operator of node {name:?}{others}");
    Some(Error::unsupported(text).in_file(model.path()))
}
