//! Inlining of branches whose condition is known.
//!
//! TorchScript exports `squeeze` as an If that tests whether a size is one. If shape inference knows the condition, the
//! branch replaces the node. Its nodes become nodes of the graph, like those of a function, and its initializers become
//! Constant nodes.

use std::sync::Arc;

use super::inline;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::model::Model;
use crate::infer::infer;
use crate::onnx::order::captured;
use crate::onnx::{DataLocation, FunctionProto, GraphProto, ModelProto, NodeProto, attr_tensor};
use crate::ops;

/// The domain of the temporary functions that represent branches while they are inlined.
const DOMAIN: &str = "onnx_diffprune.branches";

/// Maximum number of rounds. An inlined branch may make the next condition known; real exports nest a handful.
const MOST_ROUNDS: usize = 64;

/// Replaces every node that always runs the same body with that body.
///
/// # Errors
/// A body is inconsistent.
pub(super) fn take_decided(model: &mut Model) -> Result<(), Error> {
    for _ in 0..MOST_ROUNDS {
        let bodies = decided(model);
        if bodies.is_empty() {
            break;
        }
        let mut functions = Vec::new();
        for (index, body) in bodies {
            let node = &mut Arc::make_mut(&mut model.graph).node[index];
            let function = function(index, &body);
            *node = NodeProto {
                name: node.name.clone(),
                domain: DOMAIN.to_owned(),
                op_type: function.name.clone(),
                input: function.input.clone(),
                output: std::mem::take(&mut node.output),
                ..NodeProto::default()
            };
            functions.push(function);
        }
        let graph = Some(std::mem::take(Arc::make_mut(&mut model.graph)));
        let mut proto = ModelProto { graph, functions, ..ModelProto::default() };
        let result = inline::inline_functions(&mut proto);
        model.graph = Arc::new(proto.graph.unwrap_or_default());
        model.inlined = true;
        result.map_err(|message| Error::malformed(&model.path, message))?;
    }
    Ok(())
}

/// Returns the nodes that always run the same body, as their position in the file and the body.
fn decided(model: &Model) -> Vec<(usize, GraphProto)> {
    let has_bodies = |node: &NodeProto| node.attribute.iter().any(|attribute| attribute.g.is_some());
    if !model.graph.node.iter().any(has_bodies) {
        return Vec::new();
    }
    // Errors of the graph are reported by later passes.
    let Ok(graph) = Graph::new(model) else { return Vec::new() };
    let operators = ops::parse(&graph);
    let Ok(facts) = infer(model, &graph, &operators) else { return Vec::new() };
    let mut bodies = Vec::new();
    for node in graph.nodes.iter().filter(|node| has_bodies(&node.proto)) {
        let known = |slot: usize| {
            let known = facts.values[node.input(slot)?].as_ref()?.known.as_ref()?;
            known.ints()?.first()?.as_const()
        };
        let op = operators.get(node.id);
        if let Some(body) = op.and_then(|op| op.decided_body(&known)).filter(|body| is_plain(body)) {
            bodies.push((node.index, body.clone()));
        }
    }
    bodies
}

/// Returns whether a body can become part of a graph unchanged.
fn is_plain(body: &GraphProto) -> bool {
    body.input.is_empty()
        && body.sparse_initializer.is_empty()
        && body.initializer.iter().all(|tensor| tensor.data_location != DataLocation::External as i32)
}

/// Returns the body as a function whose inputs are the outer values that it uses.
fn function(index: usize, body: &GraphProto) -> FunctionProto {
    let constants = body.initializer.iter().map(|tensor| NodeProto {
        op_type: "Constant".to_owned(),
        name: tensor.name.clone(),
        output: vec![tensor.name.clone()],
        attribute: vec![attr_tensor("value", tensor.clone())],
        ..NodeProto::default()
    });
    let holder = NodeProto { attribute: vec![crate::onnx::attr_graph("body", body.clone())], ..NodeProto::default() };
    FunctionProto {
        name: format!("branch_{index}"),
        domain: DOMAIN.to_owned(),
        input: captured(&holder).into_iter().map(str::to_owned).collect(),
        output: body.output.iter().map(|output| output.name.clone()).collect(),
        node: constants.chain(body.node.iter().cloned()).collect(),
        ..FunctionProto::default()
    }
}
