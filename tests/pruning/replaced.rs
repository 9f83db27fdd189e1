//! Nodes that the cut writes as another operator: their inputs are compared with those of the original nodes.

use bytes::Bytes;
use onnx_diffprune::onnx::{ModelProto, NodeProto, TensorProto, attr_int};
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;
use tempfile::NamedTempFile;

use crate::support::builder::Builder;
use crate::support::cuts::{Pruned, prune_model};

/// Builds `v[:, 0:3] = constant` between two convolutions of 12 channels.
fn assigned() -> (ModelProto, String) {
    let mut b = Builder::new(5);
    let v = b.conv("x", 3, 12, 3, 1);
    let places: Vec<i64> = (0..3).flat_map(|place| [place; 64]).collect();
    let (indices, updates) = (b.ints_of(&places.repeat(2), &[2, 3, 8, 8]), b.weight(&[2, 3, 8, 8]));
    let assigned = b.op("ScatterElements", &[&v, &indices, &updates], &[attr_int("axis", 1)]);
    let y = b.conv(&assigned, 12, 8, 3, 1);
    (b.finish(&[2, 3, 8, 8], &y, &[2, 8, 8, 8]), assigned)
}

/// Verifies a copy of the pruned file in which the node with output `output` is changed and the constant `added` is
/// added.
fn verify_changed(
    pruned: &Pruned,
    output: &str,
    added: TensorProto,
    change: impl FnOnce(&mut NodeProto),
) -> onnx_diffprune::VerifyReport {
    let mut model = ModelProto::decode(Bytes::from(std::fs::read(&pruned.path).unwrap())).unwrap();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.push(added);
    change(graph.node.iter_mut().find(|node| node.first_output() == output).unwrap());
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    pruned.verify(file.path())
}

#[test]
fn a_constant_that_is_not_an_input_of_the_original_node_is_refused() {
    let (model, assigned) = assigned();
    let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    assert!(pruned.report().passed, "{:?}", pruned.report());
    let of_file = ModelProto::decode(Bytes::from(std::fs::read(&pruned.path).unwrap())).unwrap().graph.unwrap();
    let node = of_file.node.iter().find(|node| node.first_output() == assigned).unwrap();
    assert_eq!(node.op_type, "Concat");
    let at = node.input.iter().position(|name| of_file.initializer.iter().any(|tensor| tensor.name == *name)).unwrap();
    let own = of_file.initializer.iter().find(|tensor| tensor.name == node.input[at]).unwrap();

    let same = TensorProto { name: "other".to_owned(), ..own.clone() };
    let report = verify_changed(&pruned, &assigned, same, |node| node.input[at] = "other".to_owned());
    assert!(report.passed, "the same elements under another name should pass: {report:?}");

    let mut bytes = own.raw_data.to_vec();
    bytes[3] ^= 0x80;
    let other = TensorProto { name: "other".to_owned(), raw_data: bytes.into(), ..own.clone() };
    let report = verify_changed(&pruned, &assigned, other, |node| node.input[at] = "other".to_owned());
    let failure = report.failure.unwrap_or_default();
    assert!(!report.passed && report.runs.is_empty() && failure.contains("\"other\""), "{failure}");
}
