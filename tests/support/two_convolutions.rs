//! A small hand-written network, for tests that damage or extend a model.

use onnx_diffprune::graph::model::Model;
use onnx_diffprune::onnx::{GraphProto, ModelProto, NodeProto, attr_ints};
use onnx_diffprune::write::{DimOut, Edits, InitializerOut, NodeOut};

use super::builder::{counting, model_of, node, value};

fn conv(name: &str, inputs: &[&str], output: &str) -> NodeProto {
    let mut conv = node(name, "Conv", inputs, &[output]);
    conv.attribute = vec![attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1, 1, 1, 1])];
    conv
}

/// Builds two convolutions with an activation between them: x [1, 4, 8, 8] → h [1, 16, 8, 8] → y [1, 4, 8, 8].
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
    model_of(17, graph)
}

/// Returns edits that change nothing.
pub(crate) fn no_edits(model: &Model) -> Edits {
    Edits {
        nodes: (0..model.graph().node.len()).map(NodeOut::Original).collect(),
        initializers: (0..model.graph().initializer.len()).map(InitializerOut::Original).collect(),
        ..Edits::default()
    }
}

/// Returns edits that halve the channels between the convolutions of [`two_convolutions`].
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
        ..Edits::default()
    }
}
