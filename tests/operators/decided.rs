//! Subgraphs that follow from sizes and constants before the network runs: branches, indices, empty tensors.

use onnx_diffprune::onnx::{AttributeProto, GraphProto, NodeProto, TypeProto, ValueInfoProto, attr_int, type_proto};

use super::around::{Around::MatMul, Around::StaticConv, CHANNELS};
use super::{Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    branches_with_a_constant_condition_are_inlined,
    indices_from_cumulative_sums_are_constant,
    concatenated_empty_tensors_change_nothing,
];

const C: i64 = CHANNELS;

/// Builds the body of a branch: one operator on outer values.
pub(super) fn body(name: &str, op_type: &str, inputs: &[&str]) -> AttributeProto {
    let output = "result".to_owned();
    let node = NodeProto {
        op_type: op_type.to_owned(),
        name: "only".to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.clone()],
        ..NodeProto::default()
    };
    let tensor = type_proto::Tensor { elem_type: 1, shape: None };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    let output = ValueInfoProto { name: output, r#type: Some(r#type), ..ValueInfoProto::default() };
    let graph = GraphProto { name: name.to_owned(), node: vec![node], output: vec![output], ..GraphProto::default() };
    // ONNX numbers the types of attributes: 5 is a graph.
    AttributeProto { name: name.to_owned(), r#type: 5, g: Some(graph), ..AttributeProto::default() }
}

/// Writes `squeeze` as TorchScript does: if the axis has size one it is removed, otherwise the value is unchanged.
fn squeezed(n: &mut Builder, v: &str, axis: i64) -> String {
    let (place, one, axes) = (n.ints_of(&[axis], &[]), n.ints_of(&[1], &[]), n.ints(&[axis]));
    let shape = n.op("Shape", &[v], &[]);
    let size = n.op("Gather", &[&shape, &place], &[]);
    let condition = n.op("Equal", &[&size, &one], &[]);
    let branches = [body("then_branch", "Squeeze", &[v, &axes]), body("else_branch", "Identity", &[v])];
    n.op("If", &[&condition], &branches)
}

#[test]
fn branches_with_a_constant_condition_are_inlined() {
    check("If that sizes decide", StaticConv, &[13], Removed, |n, v| {
        let y = squeezed(n, v, 1);
        let axes = n.ints(&[2]);
        let y = n.op("Unsqueeze", &[&y, &axes], &[]);
        // The branch of the second If is known once that of the first is known.
        let y = squeezed(n, &y, 2);
        (n.op("Mul", &[&y, v], &[]), Some(C))
    });
}

/// As an exporter writes `repeat_interleave`: the index of an element is the number of cumulative sums that it has
/// reached.
#[test]
fn indices_from_cumulative_sums_are_constant() {
    check("Gather at counted indices", MatMul, &[13], Removed, |n, v| {
        let repeats = n.ints(&[1; C as usize]);
        let (zero, first, rows, step) = (n.ints_of(&[0], &[]), n.ints(&[0]), n.ints(&[1]), n.ints_of(&[1], &[]));
        let ends = n.op("CumSum", &[&repeats, &zero], &[]);
        let count = n.ints_of(&[C], &[]);
        let places = n.op("Range", &[&zero, &count, &step], &[]);
        let ends = n.op("Unsqueeze", &[&ends, &rows], &[]);
        let below = n.op("Less", &[&places, &ends], &[]);
        let below = n.op("Cast", &[&below], &[attr_int("to", 7)]);
        let below = n.op("ReduceSum", &[&below, &first], &[attr_int("keepdims", 0)]);
        let counted = n.op("Sub", &[&count, &below], &[]);
        let table = n.ints_of(&(0..C).collect::<Vec<_>>(), &[C, 1]);
        let tuples = n.op("Unsqueeze", &[&counted, &rows], &[]);
        let indices = n.op("GatherND", &[&table, &tuples], &[]);
        let flat = n.ints(&[-1]);
        let indices = n.op("Reshape", &[&indices, &flat], &[]);
        (n.op("Gather", &[v, &indices], &[attr_int("axis", 2)]), Some(C))
    });
}

#[test]
fn concatenated_empty_tensors_change_nothing() {
    check("Concat with nothing", StaticConv, &[13], Removed, |n, v| {
        let nothing = n.floats(&[], &[2, C, 0, 6]);
        let y = n.op("Concat", &[&nothing, v], &[attr_int("axis", 2)]);
        (n.op("Concat", &[&y, &nothing], &[attr_int("axis", 2)]), Some(C))
    });
    // The rows after the last one, like the frames after the only frame of a video.
    check("Concat with rows that are not there", StaticConv, &[13], Removed, |n, v| {
        let (four, five, axis) = (n.ints(&[4]), n.ints(&[5]), n.ints(&[2]));
        let nothing = n.op("Slice", &[v, &four, &five, &axis], &[]);
        let nothing = n.op("Tanh", &[&nothing], &[]);
        (n.op("Concat", &[&nothing, v], &[attr_int("axis", 2)]), Some(C))
    });
}
