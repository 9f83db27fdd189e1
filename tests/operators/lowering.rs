//! Lowering of fused nodes: every input of a fused node is still consumed under a name of its own, and new names are
//! unused ones.

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::graph::Reader;
use onnx_diffprune::load::load;
use onnx_diffprune::lower::{Extent, Lowered};
use onnx_diffprune::onnx::attr_float;

use super::around::{Around::MatMul, CHANNELS};
use crate::support::builder::Builder;
use crate::support::files::save;

const C: i64 = CHANNELS;

/// Builds a network of two layers around some operators. Returns its analysis and its lowered form.
fn lowered(build: impl FnOnce(&mut Builder, &str) -> (String, Option<i64>)) -> (Analysis, Lowered) {
    let folder = tempfile::tempdir().unwrap();
    let analysis = analyse(&load(&save(folder.path(), &MatMul.network(17, build))).unwrap()).unwrap();
    let Analysis { model, graph, operators, facts, .. } = &analysis;
    let lowered = Lowered::new(model, graph, operators, facts, Extent::All).unwrap();
    (analysis, lowered)
}

/// Returns the node of this operator.
fn node(analysis: &Analysis, op_type: &str) -> usize {
    analysis.graph.nodes.iter().find(|node| node.proto.op_type == op_type).unwrap().id
}

/// Returns the operators that consume an input of a node.
fn readers(lowered: &Lowered, of: Reader) -> Vec<(&str, usize)> {
    let op_type = |node: usize| lowered.graph.nodes[node].proto.op_type.as_str();
    lowered.uses_of(of).iter().map(|at| (op_type(at.node), at.slot)).collect()
}

#[test]
fn every_input_of_a_fused_node_has_its_own_consumers() {
    let (analysis, lowered) = lowered(|n, v| {
        let (skip, shared) = (n.op("Sigmoid", &[v], &[]), n.weight(&[C]));
        // One weight as the scale and as the bias of the preceding addition.
        let inputs = [v, skip.as_str(), shared.as_str(), "", shared.as_str()];
        (n.fused("SkipLayerNormalization", &inputs, &[attr_float("epsilon", 1e-5)], 1).remove(0), Some(C))
    });
    let norm = node(&analysis, "SkipLayerNormalization");
    assert_eq!(readers(&lowered, Reader { node: norm, slot: 0 }), [("Add", 0)]);
    assert_eq!(readers(&lowered, Reader { node: norm, slot: 1 }), [("Add", 1)]);
    let (scale, bias) =
        (readers(&lowered, Reader { node: norm, slot: 2 }), readers(&lowered, Reader { node: norm, slot: 4 }));
    assert_eq!((scale, bias), (vec![("Identity", 0)], vec![("Identity", 0)]));
    assert_ne!(lowered.uses_of(Reader { node: norm, slot: 2 }), lowered.uses_of(Reader { node: norm, slot: 4 }));
    for (of, origin) in lowered.origin_uses() {
        assert_eq!(lowered.origins[of.node], origin.node);
        let value = lowered.graph.nodes[of.node].input(of.slot);
        assert_eq!(value, analysis.graph.nodes[origin.node].input(origin.slot), "values should keep their ids");
    }
    // Nodes that are standard operators are unchanged.
    let product = node(&analysis, "MatMul");
    assert_eq!(readers(&lowered, Reader { node: product, slot: 1 }), [("MatMul", 1)]);
    assert!(lowered.refused.is_empty());
}

#[test]
fn new_names_differ_from_those_of_the_file() {
    let (analysis, lowered) = lowered(|n, v| {
        let b = n.weight(&[C]);
        let y = n.fused("BiasGelu", &[v, &b], &[], 1).remove(0);
        n.graph.node.last_mut().unwrap().output[0] = "__lower/1/Add".to_owned();
        assert_ne!(y, "__lower/1/Add");
        ("__lower/1/Add".to_owned(), Some(C))
    });
    let names: std::collections::BTreeSet<&str> =
        lowered.graph.nodes.iter().flat_map(|node| node.proto.output.iter().map(String::as_str)).collect();
    let count: usize = lowered.graph.nodes.iter().map(|node| node.proto.output.len()).sum();
    assert_eq!(names.len(), count);
    assert!(names.contains("__lower/1/Add"));
    assert_eq!(lowered.graph.opset, analysis.graph.opset);
}
