//! A small network made by hand, for tests that need to break or decorate a model.

use std::path::{Path, PathBuf};

use onnx_diffprune::load::Model;
use onnx_diffprune::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attr_ints, tensor_shape_proto, type_proto,
};
use onnx_diffprune::write::{DimOut, Edits, InitializerOut, NodeOut};
use protobuf::Message;

/// A node.
pub(crate) fn node(name: &str, op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: name.to_owned(),
        op_type: op_type.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// A declared float value.
pub(crate) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(*size)),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
}

/// A float tensor with elements 0, 1, 2, …
pub(crate) fn counting(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    let elements: Vec<f32> = (0..count).map(|at| at as f32).collect();
    TensorProto::of_floats(name, &elements, dims)
}

fn conv(name: &str, inputs: &[&str], output: &str) -> NodeProto {
    let mut conv = node(name, "Conv", inputs, &[output]);
    conv.attribute = vec![attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1, 1, 1, 1])];
    conv
}

/// Two convolutions with an activation between them: x [1, 4, 8, 8] → h [1, 16, 8, 8] → y [1, 4, 8, 8].
pub(crate) fn two_convolutions() -> ModelProto {
    let graph = GraphProto {
        name: "two".to_owned(),
        node: vec![
            conv("first", &["x", "w1", "b1"], "h"),
            node("act", "Sigmoid", &["h"], &["a"]),
            conv("second", &["a", "w2", "b2"], "y"),
        ],
        initializer: vec![
            counting("w1", &[16, 4, 3, 3]),
            counting("b1", &[16]),
            counting("w2", &[4, 16, 3, 3]),
            counting("b2", &[4]),
        ],
        input: vec![value("x", &[1, 4, 8, 8])],
        output: vec![value("y", &[1, 4, 8, 8])],
        value_info: vec![value("h", &[1, 16, 8, 8]), value("a", &[1, 16, 8, 8])],
        ..Default::default()
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// A model from the folder `fixtures`.
#[allow(dead_code)]
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Edits that change nothing.
#[allow(dead_code)]
pub(crate) fn no_edits(model: &Model) -> Edits {
    Edits {
        nodes: (0..model.graph().node.len()).map(NodeOut::Original).collect(),
        initializers: (0..model.graph().initializer.len()).map(InitializerOut::Original).collect(),
        ..Edits::default()
    }
}

/// The names of everything in a folder, sorted.
#[allow(dead_code)]
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The model in a file as another decoder reads it.
#[allow(dead_code)]
pub(crate) fn decoded(path: &Path) -> onnx_protobuf::ModelProto {
    onnx_protobuf::ModelProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Edits that halve the channels between the convolutions of [`two_convolutions`].
#[allow(dead_code)]
pub(crate) fn halved(model: &Model) -> Edits {
    let odd: Vec<usize> = (0..16).filter(|at| at % 2 == 1).collect();
    let sliced = |index: usize, axes: Vec<(usize, Vec<usize>)>| InitializerOut::Sliced {
        index,
        name: model.graph().initializer[index].name.clone(),
        axes,
    };
    let mut attributes = model.graph().node[0].attribute.clone();
    attributes[0] = attr_ints("kernel_shape", &[3, 3]);
    let shape = vec![DimOut::Same, DimOut::Value(8), DimOut::Unknown, DimOut::Same];
    Edits {
        nodes: vec![
            NodeOut::Patched {
                index: 0,
                inputs: model.graph().node[0].input.clone(),
                attributes,
                removed_attributes: Vec::new(),
            },
            NodeOut::Original(1),
            NodeOut::Original(2),
        ],
        initializers: vec![
            sliced(0, vec![(0, odd.clone())]),
            sliced(1, vec![(0, odd.clone())]),
            sliced(2, vec![(1, odd)]),
            InitializerOut::Original(3),
        ],
        shapes: ["h", "a"].iter().map(|name| ((*name).to_owned(), shape.clone())).collect(),
        metadata: vec![("made by".to_owned(), "a test".to_owned())],
    }
}
