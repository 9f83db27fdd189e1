//! Protobuf fields unknown to this version survive a cut.

use onnx_diffprune::load;
use onnx_diffprune::write::write;
use prost::Message;

use crate::support::files::decoded;
use crate::support::two_convolutions::{halved, no_edits, two_convolutions};

fn bytes_of(tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(payload.len() as u64, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// A field number that no version of the format uses.
const UNKNOWN: u32 = 500;

fn marked(message: &impl Message, marker: &str) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&bytes_of(UNKNOWN, marker.as_bytes()));
    bytes
}

/// Builds the two convolutions with an unknown field in every message.
fn decorated() -> Vec<u8> {
    let mut model = two_convolutions();
    let mut graph = model.graph.take().unwrap();
    let nodes: Vec<Vec<u8>> = graph.node.drain(..).map(|node| bytes_of(1, &marked(&node, &node.name))).collect();
    let tensors: Vec<Vec<u8>> =
        graph.initializer.drain(..).map(|tensor| bytes_of(5, &marked(&tensor, &tensor.name))).collect();
    let values: Vec<Vec<u8>> =
        graph.value_info.drain(..).map(|info| bytes_of(13, &marked(&info, &info.name))).collect();
    let mut inner = nodes.concat();
    inner.extend(marked(&graph, "graph"));
    inner.extend(tensors.concat());
    inner.extend(values.concat());
    let mut bytes = marked(&model, "model");
    bytes.extend(bytes_of(7, &inner));
    bytes
}

fn marker(message: &impl protobuf::Message) -> String {
    let fields = message.special_fields().unknown_fields();
    let found: Vec<_> = fields.iter().filter(|(tag, _)| *tag == UNKNOWN).collect();
    assert_eq!(found.len(), 1, "unknown fields: {found:?}");
    match &found[0].1 {
        protobuf::UnknownValueRef::LengthDelimited(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_fields_survive_a_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    std::fs::write(&path, decorated()).unwrap();
    let model = load::load(&path).unwrap();
    write(&model, &halved(&model), &out).unwrap();
    let after = decoded(&out);
    assert_eq!((marker(&after), marker(after.graph.as_ref().unwrap())), ("model".to_owned(), "graph".to_owned()));
    after.graph.node.iter().for_each(|node| assert_eq!(marker(node), node.name));
    after.graph.initializer.iter().for_each(|tensor| assert_eq!(marker(tensor), tensor.name));
    after.graph.value_info.iter().for_each(|info| assert_eq!(marker(info), info.name));
    assert_eq!((after.graph.node.len(), after.graph.initializer.len(), after.graph.value_info.len()), (3, 4, 2));
    assert_eq!(after.graph.initializer[0].dims, [8, 4, 3, 3]);
    assert_eq!(after.graph.initializer[2].dims, [4, 8, 3, 3]);
    assert_eq!(after.metadata_props[0].value, "a test");
    let shape = &after.graph.value_info[0].type_.tensor_type().shape;
    let sizes: Vec<Option<i64>> = shape.dim.iter().map(|dim| dim.has_dim_value().then(|| dim.dim_value())).collect();
    assert_eq!(sizes, [Some(1), Some(8), None, Some(8)]);
}

#[test]
fn unknown_groups_survive_too() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    // Field 600 as a group that contains a string, before all known fields.
    let mut bytes = Vec::new();
    prost::encoding::encode_key(600, prost::encoding::WireType::StartGroup, &mut bytes);
    bytes.extend(bytes_of(1, b"inside"));
    prost::encoding::encode_key(600, prost::encoding::WireType::EndGroup, &mut bytes);
    bytes.extend(two_convolutions().encode_to_vec());
    std::fs::write(&path, &bytes).unwrap();
    let model = load::load(&path).unwrap();
    write(&model, &no_edits(&model), &out).unwrap();
    assert!(std::fs::read(&out).unwrap() == bytes);
}
