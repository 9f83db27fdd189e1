//! Norms. Norms over channels use the kept channels, so that none has to be kept. Norm groups are blocks.

use onnx_diffprune::onnx::{attr_int, attr_ints};

use super::In::{W, X};
use super::{Case, case, check, in_opset, network, outputs};
use crate::support::builder::value_of;

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    let (x, rows) = (X(&[2, 6, 8, 9]), X(&[2, 5, 6]));
    let groups = |count| [attr_int("num_groups", count)];
    let eight = X(&[2, 8, 5, 6]);
    let w = W(&[6]);
    vec![
        case("BatchNormalization", &[x, w, w, w, w], &[], "[a b c d], [b], [b], [b], [b] -> [a b c d]"),
        case("InstanceNormalization", &[x, w, w], &[], "[a b c d], [b], [b] -> [a b c d]"),
        case(
            "GroupNormalization",
            &[eight, W(&[8]), W(&[8])],
            &groups(4),
            "[a (b4|c2) d e], [(b|c)], [(b|c)] -> [a (b|c) d e]",
        ),
        case("GroupNormalization", &[eight, W(&[8]), W(&[8])], &groups(1), "[a b c d], [b], [b] -> [a b c d]"),
        case("GroupNormalization", &[eight, W(&[8]), W(&[8])], &groups(8), "[a b c d], [b], [b] -> [a b c d]"),
        // Up to opset 20, scale and bias have one element per norm group.
        in_opset(
            18,
            "GroupNormalization",
            &[eight, W(&[4]), W(&[4])],
            &groups(4),
            "[a (b4|c2) d e], [b], [b] -> [a (b|c) d e]",
        ),
        in_opset(18, "GroupNormalization", &[eight, W(&[1]), W(&[1])], &groups(1), "[a b c d], [1], [1] -> [a b c d]"),
        case("LayerNormalization", &[rows, w, w], &[], "[a b c], [c], [c] -> [a b c]"),
        case("LayerNormalization", &[rows, W(&[5, 6])], &[attr_int("axis", 1)], "[a b c], [b c] -> [a b c]"),
        case("SimplifiedLayerNormalization m:SimplifiedLayerNormalization", &[rows, w], &[], "[a b c], [c] -> [a b c]"),
        in_opset(23, "RMSNormalization", &[rows, w], &[], "[a b c], [c] -> [a b c]"),
        case("LpNormalization MeanVarianceNormalization", &[x], &[], "[a b c d] -> [a b c d]"),
        case("LpNormalization", &[x], &[attr_int("axis", 1)], "[a b c d] -> [a b c d]"),
        case("MeanVarianceNormalization", &[x], &[attr_ints("axes", &[1])], "[a b c d] -> [a b c d]"),
        // LRN sums over neighbouring channels, so all channels are kept.
        case("LRN", &[x], &[attr_int("size", 3)], "[a b! c d] -> [a b! c d]"),
        case("Softmax LogSoftmax Hardmax", &[rows], &[], "[a b c] -> [a b c]"),
        case("Softmax LogSoftmax Hardmax", &[rows], &[attr_int("axis", 1)], "[a b c] -> [a b c]"),
        in_opset(11, "Softmax", &[rows], &[attr_int("axis", 1)], "[a b c] -> [a b c]"),
        case(
            "m:GroupNorm",
            &[X(&[2, 5, 6, 8]), W(&[8]), W(&[8])],
            &LAST,
            "[a b c (d4|e2)], [(d|e)], [(d|e)] -> [a b c (d|e)]",
        ),
        case("m:GroupNorm", &[eight, W(&[8]), W(&[8])], &FIRST, "[a (b4|c2) d e], [(b|c)], [(b|c)] -> [a (b|c) d e]"),
        outputs(
            2,
            "m:SkipGroupNorm",
            &[X(&[2, 5, 6, 8]), W(&[8]), W(&[8]), X(&[2, 8]), W(&[8])],
            &LAST,
            "[a b c (d4|e2)], [(d|e)], [(d|e)], [a (d|e)], [(d|e)] -> [a b c (d|e)], [a b c (d|e)]",
        ),
        case(
            "m:SkipGroupNorm",
            &[X(&[2, 5, 6, 8]), W(&[8]), W(&[8]), X(&[2, 5, 6, 8])],
            &LAST,
            "[a b c (d4|e2)], [(d|e)], [(d|e)], [a b c (d|e)] -> [a b c (d|e)]",
        ),
        case("m:SkipLayerNormalization", &[rows, rows, w, w, w], &[], "[a b c], [a b c], [c], [c], [c] -> [a b c]"),
        case("m:SkipSimplifiedLayerNormalization", &[rows, rows, w, w], &[], "[a b c], [a b c], [c], [c] -> [a b c]"),
        network("m:SkipLayerNormalization", "[a b c], [a b c], [c] -> [a b c], -, -, [a b c]", |net| {
            net.graph.input = ["x", "z"].map(|name| value_of(name, 1, Some(&["2", "5", "6"]))).to_vec();
            let gamma = net.weight(&[6]);
            net.fused_to("SkipLayerNormalization", &["x", "z", &gamma], &[], &["y", "", "", "s"]);
        }),
        // A group norm as exporters write it. The groups are an axis of their own, their channels are not.
        network("InstanceNormalization", "[a b|(c2 d5 e6)], [b], [b] -> [a b|(c d e)]", |net| {
            net.graph.input = vec![value_of("x", 1, Some(&["2", "8", "5", "6"]))];
            let shape = net.ints(&[0, 4, -1]);
            let x = net.op("Reshape", &["x", &shape], &[]);
            let (scale, bias) = (net.weight(&[4]), net.weight(&[4]));
            net.op("InstanceNormalization", &[&x, &scale, &bias], &[]);
        }),
    ]
}

/// `[N, H, W, C]` in 4 norm groups.
static LAST: std::sync::LazyLock<Vec<onnx_diffprune::onnx::AttributeProto>> =
    std::sync::LazyLock::new(|| vec![attr_int("groups", 4), attr_int("activation", 0), attr_int("channels_last", 1)]);

/// `[N, C, H, W]` in 4 norm groups.
static FIRST: std::sync::LazyLock<Vec<onnx_diffprune::onnx::AttributeProto>> =
    std::sync::LazyLock::new(|| vec![attr_int("groups", 4), attr_int("activation", 0), attr_int("channels_last", 0)]);
