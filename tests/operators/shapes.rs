//! Shape inference of operators without a coupling rule: layers that follow them are pruned.

use std::collections::BTreeSet;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::graph::fact::Fact;
use onnx_diffprune::load::from_bytes;
use onnx_diffprune::onnx::{AttributeProto, GraphProto, TensorProto, attr_graph, attr_int, attr_ints, attr_string};
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;

use crate::support::builder::{Builder, model_of, node, value_of};
use crate::support::cuts::prune_model;

const FLOAT: i32 = 1;
const UINT8: i32 = 2;
const INT32: i32 = 6;
const INT64: i32 = 7;
const STRING: i32 = 8;
const BOOL: i32 = 9;

/// An input of a node: a graph input with its element type, or a constant.
enum In {
    Of(i32, &'static [&'static str]),
    Weight(&'static [i64]),
    Byte(&'static [i64]),
    Int(i64),
    None,
}
use In::{Byte, Int, None as Omitted, Of, Weight};

/// Infers the types and shapes of a node's outputs.
fn inferred(opset: i64, op: &str, inputs: &[In], attributes: Vec<AttributeProto>, outputs: usize) -> Vec<String> {
    let mut n = Builder::with_opset(opset, 1);
    let mut names = Vec::new();
    for (at, input) in inputs.iter().enumerate() {
        names.push(match input {
            Of(kind, sizes) => {
                let name = format!("in{at}");
                n.graph.input.push(value_of(&name, *kind, Some(sizes)));
                name
            }
            Weight(dims) => n.weight(dims),
            Byte(dims) => {
                let name = format!("bytes{at}");
                let raw = vec![1; dims.iter().product::<i64>() as usize];
                let tensor = TensorProto {
                    name: name.clone(),
                    data_type: UINT8,
                    dims: dims.to_vec(),
                    raw_data: raw.into(),
                    ..TensorProto::default()
                };
                n.graph.initializer.push(tensor);
                name
            }
            Int(value) => n.ints_of(&[*value], &[]),
            Omitted => String::new(),
        });
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (domain, op) = op.split_once(':').map_or(("", op), |(_, op)| ("com.microsoft", op));
    let outputs: Vec<String> = (0..outputs).map(|at| format!("out{at}")).collect();
    let all: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let mut proto = node("n", op, &names, &all);
    (proto.domain, proto.attribute) = (domain.to_owned(), attributes);
    n.graph.node.push(proto);
    n.graph.output = outputs.iter().map(|name| value_of(name, FLOAT, None)).collect();
    let model = from_bytes("net.onnx".as_ref(), model_of(opset, n.graph).encode_to_vec().into()).unwrap();
    let analysis = analyse(&model).unwrap_or_else(|error| panic!("{op}: {error}"));
    let fact = |name: &String| analysis.facts.values[analysis.graph.value(name).unwrap()].as_ref();
    outputs.iter().map(|name| fact(name).map_or("unknown".to_owned(), Fact::describe)).collect()
}

/// Returns X, W and Y with their scales and zero points, as quantised operators take them.
fn quantized(x: &'static [&'static str], w: &'static [i64]) -> Vec<In> {
    vec![Of(UINT8, x), Weight(&[]), Byte(&[]), Byte(w), Weight(&[]), Byte(&[]), Weight(&[]), Byte(&[])]
}

/// A node and its inferred outputs: opset, names of equivalent operators, inputs, attributes, types and shapes.
type Case = (i64, &'static str, Vec<In>, Vec<AttributeProto>, Vec<&'static str>);

/// Returns the operators for which only shapes are inferred. The prefix `m:` stands for ONNX Runtime's domain.
pub(crate) fn covered() -> BTreeSet<&'static str> {
    cases().iter().flat_map(|(_, ops, ..)| ops.split(' ')).chain(["Loop", "Scan"]).collect()
}

/// Returns all cases. The expected values are those of the ONNX library and ONNX Runtime.
fn cases() -> Vec<Case> {
    let x = || Of(FLOAT, &["t", "b", "4"]);
    let both = || vec![attr_int("hidden_size", 8), attr_string("direction", "bidirectional")];
    vec![
        (
            21,
            "LSTM",
            vec![x(), Weight(&[2, 32, 4]), Weight(&[2, 32, 8])],
            both(),
            vec!["float32[t, 2, b, 8]", "float32[2, b, 8]", "float32[2, b, 8]"],
        ),
        (
            21,
            "GRU",
            vec![x(), Weight(&[1, 24, 4]), Weight(&[1, 24, 8])],
            vec![attr_int("hidden_size", 8), attr_int("layout", 1)],
            vec!["float32[t, b, 1, 8]", "float32[t, 1, 8]"],
        ),
        (
            21,
            "RNN",
            vec![x(), Weight(&[1, 8, 4]), Weight(&[1, 8, 8])],
            vec![attr_int("hidden_size", 8)],
            vec!["float32[t, 1, b, 8]", "float32[1, b, 8]"],
        ),
        (26, "BitCast", vec![x()], vec![attr_int("to", 6)], vec!["int32[t, b, 4]"]),
        (21, "HannWindow HammingWindow BlackmanWindow", vec![Int(10)], vec![], vec!["float32[10]"]),
        (
            21,
            "MelWeightMatrix",
            vec![Int(8), Int(16), Int(8192), Weight(&[]), Weight(&[])],
            vec![],
            vec!["float32[9, 8]"],
        ),
        (
            27,
            "CausalConvWithState m:CausalConvWithState",
            vec![Of(FLOAT, &["b", "4", "t"]), Weight(&[4, 1, 3])],
            vec![],
            vec!["float32[b, 4, t]", "float32[b, 4, 2]"],
        ),
        (
            27,
            "LinearAttention m:LinearAttention",
            vec![Of(FLOAT, &["b", "t", "8"]), Of(FLOAT, &["b", "t", "4"]), Of(FLOAT, &["b", "t", "12"])],
            vec![attr_int("q_num_heads", 2), attr_int("kv_num_heads", 1)],
            vec!["float32[b, t, 24]", "float32[b, 1, 4, 12]"],
        ),
        (
            19,
            "DeformConv",
            vec![Of(FLOAT, &["b", "4", "h", "w"]), Weight(&[6, 4, 3, 3]), Of(FLOAT, &["b", "18", "h", "w"])],
            vec![attr_ints("pads", &[1, 1, 1, 1])],
            vec!["float32[b, 6, h, w]"],
        ),
        (
            21,
            "ConvInteger",
            vec![Of(UINT8, &["b", "4", "8", "w"]), Byte(&[6, 4, 3, 3])],
            vec![],
            vec!["int32[b, 6, 6, -2 + w]"],
        ),
        (21, "MatMulInteger", vec![Of(UINT8, &["b", "t", "4"]), Byte(&[4, 6])], vec![], vec!["int32[b, t, 6]"]),
        (21, "DynamicQuantizeLinear", vec![x()], vec![], vec!["uint8[t, b, 4]", "float32[]", "uint8[]"]),
        (
            21,
            "MaxUnpool",
            vec![Of(FLOAT, &["1", "4", "3", "w"]), Of(INT64, &["1", "4", "3", "w"])],
            vec![attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])],
            vec!["float32[1, 4, 6, 2*w]"],
        ),
        (
            21,
            "SoftmaxCrossEntropyLoss",
            vec![Of(FLOAT, &["b", "5", "t"]), Of(INT64, &["b", "t"])],
            vec![],
            vec!["float32[]", "float32[b, 5, t]"],
        ),
        (
            21,
            "NonMaxSuppression",
            vec![Of(FLOAT, &["b", "7", "4"]), Of(FLOAT, &["b", "1", "7"])],
            vec![],
            vec!["int64[?1, 3]"],
        ),
        (
            24,
            "TensorScatter",
            vec![Of(FLOAT, &["b", "2", "8", "4"]), Of(FLOAT, &["b", "2", "3", "4"])],
            vec![],
            vec!["float32[b, 2, 8, 4]"],
        ),
        (
            21,
            "Unique m:Unique",
            vec![Of(FLOAT, &["b", "4"])],
            vec![attr_int("axis", 1)],
            vec!["float32[b, ?1]", "int64[?1]", "int64[4]", "int64[?1]"],
        ),
        (
            21,
            "TfIdfVectorizer",
            vec![Of(INT32, &["b", "6"])],
            vec![attr_ints("ngram_indexes", &[0, 1, 2])],
            vec!["float32[b, 3]"],
        ),
        (21, "StringSplit", vec![Of(STRING, &["b"])], vec![], vec!["string[b, ?1]", "int64[b]"]),
        (21, "OptionalHasElement", vec![x()], vec![], vec!["bool[]"]),
        (21, "Optional OptionalGetElement", vec![x()], vec![], vec!["float32[t, b, 4]"]),
        (
            21,
            "m:DynamicQuantizeLSTM",
            vec![x(), Byte(&[1, 4, 32]), Byte(&[1, 8, 32])],
            vec![attr_int("hidden_size", 8)],
            vec!["float32[t, 1, b, 8]"],
        ),
        (
            21,
            "QLinearConv m:QLinearConv",
            quantized(&["b", "4", "8", "w"], &[6, 4, 3, 3]),
            vec![],
            vec!["uint8[b, 6, 6, -2 + w]"],
        ),
        (
            21,
            "m:QLinearConv",
            quantized(&["b", "8", "w", "4"], &[6, 4, 3, 3]),
            vec![attr_int("channels_last", 1)],
            vec!["uint8[b, 6, -2 + w, 6]"],
        ),
        (21, "QLinearMatMul", quantized(&["b", "t", "4"], &[4, 6]), vec![], vec!["uint8[b, t, 6]"]),
        (
            21,
            "m:QLinearAdd m:QLinearMul",
            quantized(&["b", "4", "h", "w"], &[4, 1, 1]),
            vec![],
            vec!["uint8[b, 4, h, w]"],
        ),
        (
            21,
            "m:QLinearWhere",
            vec![Of(BOOL, &["b", "1"]), Of(UINT8, &["4"]), Weight(&[]), Byte(&[]), Byte(&[1, 4])],
            vec![],
            vec!["uint8[b, 4]"],
        ),
        (
            21,
            "m:QLinearSigmoid m:QLinearLeakyRelu m:QLinearSoftmax",
            vec![Of(UINT8, &["b", "4"])],
            vec![],
            vec!["uint8[b, 4]"],
        ),
        (21, "m:QLinearGlobalAveragePool", vec![Of(UINT8, &["b", "4", "h", "w"])], vec![], vec!["uint8[b, 4, 1, 1]"]),
        (
            21,
            "m:QLinearAveragePool",
            vec![Of(UINT8, &["b", "4", "8", "8"])],
            vec![attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])],
            vec!["uint8[b, 4, 4, 4]"],
        ),
        (21, "m:MatMulInteger16", vec![Of(5, &["b", "t", "4"]), Byte(&[4, 6])], vec![], vec!["int32[b, t, 6]"]),
        (
            21,
            "m:MatMulIntegerToFloat",
            vec![Of(UINT8, &["b", "t", "4"]), Byte(&[4, 6]), Weight(&[])],
            vec![],
            vec!["float32[b, t, 6]"],
        ),
        (21, "m:MatMulFpQ4", vec![Of(FLOAT, &["b", "t", "4"]), Byte(&[96]), Int(4)], vec![], vec!["float32[b, t, ?1]"]),
        (
            21,
            "NegativeLogLikelihoodLoss",
            vec![Of(FLOAT, &["b", "5", "t"]), Of(INT64, &["b", "t"])],
            vec![attr_string("reduction", "none")],
            vec!["float32[b, t]"],
        ),
        (21, "RegexFullMatch", vec![Of(STRING, &["b"])], vec![], vec!["bool[b]"]),
        (21, "StringConcat", vec![Of(STRING, &["b", "1"]), Of(STRING, &["4"])], vec![], vec!["string[b, 4]"]),
        (21, "StringNormalizer", vec![Of(STRING, &["1", "c"])], vec![], vec!["string[1, ?1]"]),
        (21, "ImageDecoder", vec![Of(UINT8, &["n"])], vec![], vec!["uint8[?1, ?2, 3]"]),
        (
            21,
            "m:DecoderMaskedMultiHeadAttention",
            vec![Of(FLOAT, &["b", "1", "32"])],
            vec![attr_int("num_heads", 4)],
            vec!["float32[b, 1, 32]", "float32[b, 4, ?1, 8]"],
        ),
        (
            21,
            "m:GatherBlockQuantized",
            vec![Byte(&[8, 16]), Of(INT64, &["b", "t"]), Weight(&[8, 2])],
            vec![],
            vec!["float32[b, t, 32]"],
        ),
        (21, "m:Irfft", vec![Of(FLOAT, &["b", "5", "2"])], vec![attr_int("onesided", 1)], vec!["float32[b, 8]"]),
        (21, "m:RelativePositionBias", vec![Weight(&[32, 4]), Int(6), Int(7)], vec![], vec!["float32[1, 4, 6, 7]"]),
        (
            21,
            "m:GatedRelativePositionBias",
            vec![Of(FLOAT, &["b", "t", "32"])],
            vec![attr_int("num_heads", 4)],
            vec!["float32[b, 4, t, t]"],
        ),
        (
            21,
            "m:MatMulNBits m:MatMulBnb4",
            vec![Of(FLOAT, &["b", "t", "32"]), Byte(&[6, 1, 16]), Weight(&[6])],
            vec![attr_int("K", 32), attr_int("N", 6)],
            vec!["float32[b, t, 6]"],
        ),
        (
            21,
            "m:DynamicQuantizeMatMul",
            vec![Of(FLOAT, &["b", "t", "4"]), Byte(&[4, 6]), Weight(&[])],
            vec![],
            vec!["float32[b, t, 6]"],
        ),
        (
            21,
            "m:QLinearConcat",
            vec![
                Weight(&[]),
                Byte(&[]),
                Of(UINT8, &["b", "4"]),
                Weight(&[]),
                Byte(&[]),
                Of(UINT8, &["b", "2"]),
                Weight(&[]),
                Byte(&[]),
            ],
            vec![attr_int("axis", 1)],
            vec!["uint8[b, 6]"],
        ),
        (
            21,
            "m:NhwcMaxPool",
            vec![Of(UINT8, &["b", "8", "8", "4"])],
            vec![attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])],
            vec!["uint8[b, 4, 4, 4]"],
        ),
        (
            21,
            "m:GroupQueryAttention m:SparseAttention",
            vec![Of(FLOAT, &["b", "t", "32"]), Of(FLOAT, &["b", "t", "16"]), Of(FLOAT, &["b", "t", "16"])],
            vec![attr_int("num_heads", 4), attr_int("kv_num_heads", 2)],
            vec!["float32[b, t, 32]", "float32[b, 2, ?1, 8]"],
        ),
        (
            21,
            "m:EmbedLayerNormalization",
            vec![Of(INT32, &["b", "t"]), Omitted, Weight(&[10, 6])],
            vec![],
            vec!["float32[b, t, 6]", "int32[b]"],
        ),
        (21, "m:ExpandDims", vec![Of(FLOAT, &["b", "4"]), Int(-1)], vec![], vec!["float32[b, 4, 1]"]),
        (21, "m:Rfft", vec![Of(FLOAT, &["b", "8"])], vec![attr_int("onesided", 1)], vec!["float32[b, 5, 2]"]),
        (
            21,
            "m:Inverse m:BiasSoftmax m:BiasDropout m:BitmaskDropout m:LongformerAttention m:MoE m:QMoE",
            vec![Of(FLOAT, &["b", "4", "4"])],
            vec![],
            vec!["float32[b, 4, 4]"],
        ),
    ]
}

#[test]
fn operators_without_a_coupling_rule_have_shapes() {
    for (opset, ops, inputs, attributes, expected) in cases() {
        for op in ops.split(' ') {
            assert_eq!(inferred(opset, op, &inputs, attributes.clone(), expected.len()), expected, "{op}");
        }
    }
}

/// Builds a body with these inputs, nodes and outputs.
fn body(inputs: &[&str], nodes: &[(&str, &[&str], &str)], outputs: &[&str]) -> GraphProto {
    GraphProto {
        name: "body".to_owned(),
        node: nodes.iter().map(|(op, inputs, output)| node(output, op, inputs, &[output])).collect(),
        input: inputs.iter().map(|name| value_of(name, FLOAT, None)).collect(),
        output: outputs.iter().map(|name| value_of(name, FLOAT, None)).collect(),
        ..GraphProto::default()
    }
}

#[test]
fn outputs_of_control_flow_are_inferred_from_bodies() {
    let x = || Of(FLOAT, &["b", "t", "4"]);
    let go = |body| vec![attr_graph("body", body)];
    let same = body(
        &["i", "c", "v"],
        &[("Identity", &["c"], "d"), ("Relu", &["v"], "w"), ("ReduceMax", &["w"], "s")],
        &["d", "w", "s"],
    );
    assert_eq!(
        inferred(17, "Loop", &[Int(3), Omitted, x()], go(same), 2),
        ["float32[b, t, 4]", "float32[?1, 1, 1, 1]"]
    );
    // An axis that grows in every iteration is unknown. The others are known.
    let mut grows = body(&["i", "c", "v"], &[("Identity", &["c"], "d"), ("Concat", &["v", "v"], "w")], &["d", "w"]);
    grows.node[1].attribute.push(attr_int("axis", 1));
    let grown = inferred(17, "Loop", &[Int(3), Omitted, x()], go(grows), 1);
    assert!(grown[0].starts_with("float32[b, ?") && grown[0].ends_with(", 4]"), "{grown:?}");
    let scanned = body(&["s", "e"], &[("Add", &["s", "e"], "n"), ("Relu", &["n"], "o")], &["n", "o"]);
    let attributes = [
        go(scanned),
        vec![attr_int("num_scan_inputs", 1), attr_ints("scan_input_axes", &[1]), attr_ints("scan_output_axes", &[-1])],
    ]
    .concat();
    assert_eq!(
        inferred(17, "Scan", &[Of(FLOAT, &["b", "4"]), x()], attributes, 2),
        ["float32[b, 4]", "float32[b, 4, t]"]
    );
    // Branches can use outer values. If their sizes differ, the size is unknown.
    let mut doubled = body(&[], &[("Concat", &["in1", "in1"], "a")], &["a"]);
    doubled.node[0].attribute.push(attr_int("axis", 1));
    let branches = vec![
        attr_graph("then_branch", doubled),
        attr_graph("else_branch", body(&[], &[("Relu", &["in1"], "z")], &["z"])),
    ];
    let given = inferred(17, "If", &[Of(BOOL, &[]), x()], branches, 1);
    assert!(given[0].starts_with("float32[b, ?") && given[0].ends_with(", 4]"), "{given:?}");
}

/// Two linear layers after a node without a coupling rule: the channels between them are pruned.
#[test]
fn layers_after_a_barrier_are_pruned() {
    let mut n = Builder::new(2);
    let h = n.linear("x", 4, 8);
    let order = attr_ints("perm", &[1, 0, 2]);
    let h = n.op("Transpose", &[&h], std::slice::from_ref(&order));
    let (w, r) = (n.layer_weight(&[1, 32, 8], 8), n.layer_weight(&[1, 32, 8], 8));
    let h = n.op("LSTM", &[&h, &w, &r], &[attr_int("hidden_size", 8)]);
    let axes = n.ints(&[1]);
    let h = n.op("Squeeze", &[&h, &axes], &[]);
    let h = n.op("Transpose", &[&h], &[order]);
    let h = n.linear(&h, 8, 32);
    let h = n.silu(&h);
    let y = n.linear(&h, 32, 4);
    let model = n.finish(&[2, 5, 4], &y, &[2, 5, 4]);
    let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    let left = pruned.cut.before.parameters - pruned.cut.after.parameters;
    // Half of the 32: 16 rows of 8 and a bias, and 16 columns of 4.
    assert_eq!(left, 16 * (8 + 1 + 4));
    assert!(pruned.report().passed, "{:?}", pruned.report());
}
