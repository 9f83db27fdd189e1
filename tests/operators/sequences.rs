//! Sequences of tensors, as exporters write `split`, `unbind` and Python lists.

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::Array;
use onnx_diffprune::inputs::random_inputs;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{AttributeProto, ModelProto, attr_int, attr_ints};
use onnx_diffprune::runtime::SessionOptions;
use prost::Message;

use super::around::{
    Around::{self, Conv, MatMul, StaticConv},
    CHANNELS,
};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;
use crate::support::files::save;
use crate::support::fixtures::runtime;

/// Sequence operators. They have no coupling rule: if length and positions are known, tensors replace them.
pub(crate) const OPERATORS: &[&str] = &[
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
];

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    channels_of_single_parts_are_removed,
    parts_of_other_axes_do_not_couple_channels,
    lists_are_built_changed_and_joined,
    sequences_with_unknown_positions_keep_all_channels,
];

const C: i64 = CHANNELS;

/// Adds the tensor at a constant position of a sequence.
fn at(n: &mut Builder, sequence: &str, position: i64) -> String {
    let position = n.ints_of(&[position], &[]);
    n.op("SequenceAt", &[sequence, &position], &[])
}

/// Adds a sequence of parts along an axis.
fn split(n: &mut Builder, x: &str, size: Option<i64>, attributes: &[AttributeProto]) -> String {
    match size {
        None => n.op("SplitToSequence", &[x], attributes),
        Some(size) => {
            let size = n.ints_of(&[size], &[]);
            n.op("SplitToSequence", &[x, &size], attributes)
        }
    }
}

type Build = fn(&mut Builder, &str) -> (String, Option<i64>);

/// Checks the networks, and that a loaded file without sequences computes what ONNX Runtime computes from the file.
fn check_all(cases: &[(&str, Around, super::Fate, Build)]) {
    for (name, around, fate, build) in cases {
        // Identity accepts sequences from opset 14 on.
        let opsets = if name.contains("Identity") { [14, 17, 20] } else { [11, 13, 20] };
        for opset in opsets {
            check(name, *around, &[opset], *fate, build);
            assert_same(name, &around.network(opset, build));
        }
    }
}

/// Fails if the loaded model does not compute what the file computes, or if it still has sequences.
fn assert_same(name: &str, file: &ModelProto) {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&save(folder.path(), file)).unwrap();
    let is_of_sequences = |op: &str| op.contains("Sequence");
    assert!(!model.graph().node.iter().any(|node| is_of_sequences(&node.op_type)), "{name}: {:?}", model.graph().node);
    let analysis = analyse(&model).unwrap();
    let sizes = [("N", 2), ("H", 4), ("W", 6), ("L", 5)].map(|(name, size)| (name.to_owned(), size)).into();
    let inputs = random_inputs(&analysis, &sizes, 3).unwrap();
    let run = |proto: &ModelProto| -> Vec<(String, Array)> {
        let mut session = runtime().session_from_bytes(&proto.encode_to_vec(), &SessionOptions::default()).unwrap();
        session.run(&inputs).unwrap()
    };
    let read = ModelProto { graph: Some(model.graph().clone()), ..file.clone() };
    for ((_, expected), (output, found)) in run(file).iter().zip(run(&read)) {
        assert_eq!(expected.dims, found.dims, "{name}: {output}");
        let (expected, found) = (expected.to_f64(), found.to_f64());
        let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        assert!(largest > 0.0 && expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-5 * largest), "{name}");
    }
}

#[test]
fn channels_of_single_parts_are_removed() {
    check_all(&[
        ("SplitToSequence in halves", StaticConv, Removed, |n, v| {
            let parts = split(n, v, Some(C / 2), &[attr_int("axis", 1)]);
            let (a, b) = (at(n, &parts, 0), at(n, &parts, -1));
            let gate = n.op("Sigmoid", &[&b], &[]);
            (n.op("Mul", &[&a, &gate], &[]), Some(C / 2))
        }),
        ("SplitToSequence in sizes", Conv, Removed, |n, v| {
            let sizes = n.ints(&[3, 4, C - 7]);
            let parts = n.op("SplitToSequence", &[v, &sizes], &[attr_int("axis", -3)]);
            (at(n, &parts, 1), Some(4))
        }),
        ("SplitToSequence with a smaller last part", MatMul, Removed, |n, v| {
            let parts = split(n, v, Some(5), &[attr_int("axis", -1)]);
            (at(n, &parts, 2), Some(C - 10))
        }),
        ("SplitToSequence of which all parts are joined", StaticConv, Removed, |n, v| {
            let parts = split(n, v, Some(C / 3), &[attr_int("axis", 1)]);
            (n.op("ConcatFromSequence", &[&parts], &[attr_int("axis", 1)]), Some(C))
        }),
    ]);
}

#[test]
fn parts_of_other_axes_do_not_couple_channels() {
    check_all(&[
        // The queries, keys and values of attention, unbound from `[L, N, 3, C / 3]`.
        ("SplitToSequence without the axis", MatMul, Removed, |n, v| {
            let shape = n.ints(&[0, 0, 3, C / 3]);
            let y = n.op("Reshape", &[v, &shape], &[]);
            let parts = split(n, &y, None, &[attr_int("axis", 2), attr_int("keepdims", 0)]);
            let [q, k, v] = [0, 1, 2].map(|position| at(n, &parts, position));
            let y = n.op("Mul", &[&q, &k], &[]);
            (n.op("Add", &[&y, &v], &[]), Some(C / 3))
        }),
        ("SplitToSequence along a symbolic axis", Conv, Removed, |n, v| {
            let parts = split(n, v, None, &[attr_int("axis", 2)]);
            let (a, b) = (at(n, &parts, 0), at(n, &parts, -1));
            (n.op("Add", &[&a, &b], &[]), Some(C))
        }),
        ("SplitToSequence along a symbolic axis by two", Conv, Removed, |n, v| {
            let parts = split(n, v, Some(2), &[attr_int("axis", 2)]);
            (at(n, &parts, 1), Some(C))
        }),
        ("SplitToSequence of rows that are stacked", StaticConv, Removed, |n, v| {
            let parts = split(n, v, None, &[attr_int("axis", 3), attr_int("keepdims", 0)]);
            let rows = n.op("ConcatFromSequence", &[&parts], &[attr_int("axis", -1), attr_int("new_axis", 1)]);
            (rows, Some(C))
        }),
    ]);
}

#[test]
fn lists_are_built_changed_and_joined() {
    check_all(&[
        ("SequenceConstruct", StaticConv, Removed, |n, v| {
            let y = n.op("Sigmoid", &[v], &[]);
            let list = n.op("SequenceConstruct", &[v, &y], &[]);
            (n.op("ConcatFromSequence", &[&list], &[attr_int("axis", 1)]), Some(2 * C))
        }),
        ("SequenceInsert and SequenceErase", StaticConv, Removed, |n, v| {
            let [y, z] = ["Sigmoid", "Tanh"].map(|op| n.op(op, &[v], &[]));
            let list = n.op("SequenceEmpty", &[], &[]);
            let list = n.op("SequenceInsert", &[&list, v], &[]);
            let list = n.op("SequenceInsert", &[&list, &y], &[]);
            let first = n.ints_of(&[0], &[]);
            let list = n.op("SequenceInsert", &[&list, &z, &first], &[]);
            // The list is z, v, y. Removes v, then the last.
            let second = n.ints_of(&[-2], &[]);
            let list = n.op("SequenceErase", &[&list, &second], &[]);
            let both = n.op("ConcatFromSequence", &[&list], &[attr_int("axis", 2)]);
            let list = n.op("SequenceErase", &[&list], &[]);
            let one = at(n, &list, 0);
            let one = n.op("Concat", &[&one, &one], &[attr_int("axis", 2)]);
            (n.op("Add", &[&both, &one], &[]), Some(C))
        }),
        // The number of parts determines a size. The tensor that depends on it is split again.
        ("SequenceLength and Identity", StaticConv, Removed, |n, v| {
            let parts = split(n, v, Some(C / 2), &[attr_int("axis", 1)]);
            let parts = n.op("Identity", &[&parts], &[]);
            let length = n.op("SequenceLength", &[&parts], &[]);
            let (first, last) = (at(n, &parts, 0), at(n, &parts, 1));
            let rows = split(n, &first, Some(1), &[attr_int("axis", 2)]);
            let row = at(n, &rows, 2);
            let y = n.op("Mul", &[&row, &last], &[]);
            let length = n.op("Cast", &[&length], &[attr_int("to", 1)]);
            (n.op("Mul", &[&y, &length], &[]), Some(C / 2))
        }),
    ]);
}

#[test]
fn sequences_with_unknown_positions_keep_all_channels() {
    // The position is that of the largest mean of the rows.
    check("SequenceAt at a computed position", StaticConv, &[13], Kept, |n, v| {
        let parts = split(n, v, None, &[attr_int("axis", 2)]);
        let mean = n.op("ReduceMean", &[v], &[attr_ints("axes", &[0, 1, 3]), attr_int("keepdims", 0)]);
        let position = n.op("ArgMax", &[&mean], &[attr_int("keepdims", 0)]);
        let y = n.op("SequenceAt", &[&parts, &position], &[]);
        n.declare(&y, &["2", "12", "1", "6"]);
        (y, Some(C))
    });
    // A sequence with two consumers, one of them at an unknown position.
    check("SequenceAt twice", StaticConv, &[13], Kept, |n, v| {
        let parts = split(n, v, None, &[attr_int("axis", 2)]);
        let mean = n.op("ReduceMean", &[v], &[attr_ints("axes", &[0, 1, 3]), attr_int("keepdims", 0)]);
        let position = n.op("ArgMax", &[&mean], &[attr_int("keepdims", 0)]);
        let y = n.op("SequenceAt", &[&parts, &position], &[]);
        n.declare(&y, &["2", "12", "1", "6"]);
        let z = at(n, &parts, 1);
        (n.op("Add", &[&y, &z], &[]), Some(C))
    });
    // The tensors that such a sequence is built from.
    check("SequenceInsert with two consumers", StaticConv, &[13], Kept, |n, v| {
        let [y, z] = ["Sigmoid", "Tanh"].map(|op| n.op(op, &[v], &[]));
        let list = n.op("SequenceConstruct", &[v, &y], &[]);
        let list = n.op("SequenceInsert", &[&list, &z], &[]);
        let mean = n.op("ReduceMean", &[v], &[attr_ints("axes", &[0, 1, 3]), attr_int("keepdims", 0)]);
        let (three, position) = (n.ints_of(&[3], &[]), n.op("ArgMax", &[&mean], &[attr_int("keepdims", 0)]));
        let position = n.op("Mod", &[&position, &three], &[]);
        let y = n.op("SequenceAt", &[&list, &position], &[]);
        n.declare(&y, &["2", "12", "4", "6"]);
        let z = at(n, &list, 1);
        (n.op("Add", &[&y, &z], &[]), Some(C))
    });
    // A position beyond the end of the sequence.
    let network = StaticConv.network(13, |n, v| {
        let parts = split(n, v, Some(C / 2), &[attr_int("axis", 1)]);
        (at(n, &parts, 2), Some(C / 2))
    });
    let folder = tempfile::tempdir().unwrap();
    let error = load(&save(folder.path(), &network)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("position 2 does not exist in a sequence of 2 tensors"), "{error}");
}
