//! The effect of rounding alone on the outputs of a network: the original with a perturbation of the size of rounding in
//! every value.

use super::networks::Networks;
use crate::kernels::DOMAIN;
use crate::kernels::proof::ROUNDED;
use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, attr_int};
use crate::operator::reference::Reference;
use crate::verify::reference::{self, Unmasked};

/// Returns the reference with a relative perturbation of up to `2^-23` in every floating point value that nodes of the
/// original compute. `draw` selects one of several such graphs.
///
/// # Errors
/// An operator whose input lost channels can't be masked.
pub(super) fn rounded_reference(networks: Networks<'_>, draw: usize) -> Result<ModelProto, Unmasked> {
    let lowered = networks.lowered;
    let Reference { mut builder, .. } = reference::build(lowered, networks.kept)?;
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut builder.nodes) {
        let mut rounded = Vec::new();
        for name in node.output.iter_mut().filter(|name| !name.is_empty()) {
            // Masks are not values of the original.
            let Some(value) = lowered.graph.value(name) else { continue };
            let fact = lowered.facts.values[value].as_ref();
            let Some(dtype) = fact.and_then(|fact| Networks::compared_as(fact.dtype)) else { continue };
            let exact = builder.fresh(name);
            rounded.push(NodeProto {
                op_type: Networks::operator(ROUNDED, dtype),
                domain: DOMAIN.to_owned(),
                name: builder.fresh("rounded"),
                input: vec![exact.clone()],
                output: vec![std::mem::replace(name, exact)],
                attribute: vec![attr_int("seed", (draw * lowered.graph.values.len() + value) as i64)],
                ..NodeProto::default()
            });
        }
        nodes.push(node);
        nodes.extend(rounded);
    }
    let (proto, graph) = (lowered.model.proto(), lowered.model.graph());
    let mut initializer = graph.initializer.clone();
    initializer.extend(builder.initializers);
    let mut opset_import = proto.opset_import.clone();
    opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
    let mut graph = GraphProto {
        name: "rounded".to_owned(),
        node: nodes,
        initializer,
        sparse_initializer: graph.sparse_initializer.clone(),
        input: graph.input.clone(),
        output: graph.output.clone(),
        ..GraphProto::default()
    };
    graph.drop_dead();
    Ok(ModelProto { ir_version: proto.ir_version, opset_import, graph: Some(graph), ..ModelProto::default() })
}
