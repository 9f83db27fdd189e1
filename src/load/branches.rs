//! Branches that are always taken.
//!
//! TorchScript writes `squeeze` as an If that asks whether a size is one. Where shape inference knows the answer, the
//! branch takes the node's place: its nodes become nodes of the graph, as those of a function do, and its initializers
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

/// The domain of the functions that branches are called as while they are inlined.
const DOMAIN: &str = "onnx_diffprune.branches";

/// What one branch decides may decide the next; real exports nest a handful.
const MOST_ROUNDS: usize = 64;

/// Replaces every node of which one body always runs by that body.
///
/// # Errors
/// A body that contradicts itself.
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
        result.map_err(|message| Error::invalid(&model.path, message))?;
    }
    Ok(())
}

/// The nodes of which one body always runs, by their position in the file, with that body.
fn decided(model: &Model) -> Vec<(usize, GraphProto)> {
    let has_bodies = |node: &NodeProto| node.attribute.iter().any(|attribute| attribute.g.is_some());
    if !model.graph.node.iter().any(has_bodies) {
        return Vec::new();
    }
    // What is wrong with the graph is told by those who read it next.
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

/// Whether a body can stand in a graph as it is.
fn is_plain(body: &GraphProto) -> bool {
    body.input.is_empty()
        && body.sparse_initializer.is_empty()
        && body.initializer.iter().all(|tensor| tensor.data_location != DataLocation::External as i32)
}

/// The body as a function of what it reads from outside.
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
