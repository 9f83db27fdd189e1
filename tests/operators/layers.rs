//! Layers with weights, and norms.

use onnx_diffprune::onnx::{attr_float, attr_int, attr_ints, attr_string};

use super::around::{
    Around::{Conv, MatMul, StaticConv},
    CHANNELS,
};
use super::decided::body;
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    convolutions_lose_channels,
    transposed_convolutions_lose_channels,
    grouped_convolutions_take_products_of_channels,
    outputs_without_consumers_do_not_keep_channels,
    products_lose_channels,
    norms_use_the_kept_channels,
    softmax_uses_the_kept_channels,
    hardmax_has_a_zero_gradient,
    standard_attention_loses_heads_or_dimensions,
    heads_that_share_keys_have_gradients,
    heads_that_share_keys_are_removed_with_them,
    attention_masks_have_gradients,
    branches_that_depend_on_inputs_are_barriers,
    scattered_elements_keep_all_channels,
];

const C: i64 = CHANNELS;

#[test]
fn convolutions_lose_channels() {
    for (name, group, per_group) in [("Conv", 1, C), ("depthwise Conv", C, 1), ("grouped Conv", 2, C / 2)] {
        for (stride, dilation) in [(1, 1), (2, 1), (1, 2)] {
            check(name, StaticConv, &[9, 13], Removed, |n, v| {
                let (w, b) = (n.weight(&[C, per_group, 3, 3]), n.weight(&[C]));
                let attributes = [
                    attr_ints("pads", &[1, 1, 1, 1]),
                    attr_ints("strides", &[stride, stride]),
                    attr_ints("dilations", &[dilation, dilation]),
                    attr_int("group", group),
                ];
                (n.op("Conv", &[v, &w, &b], &attributes), Some(C))
            });
        }
        check(name, StaticConv, &[13], Removed, |n, v| {
            let w = n.weight(&[C, per_group, 2, 3]);
            let attributes = [attr_string("auto_pad", "SAME_LOWER"), attr_int("group", group)];
            (n.op("Conv", &[v, &w], &attributes), Some(C))
        });
    }
}

#[test]
fn transposed_convolutions_lose_channels() {
    for (name, group, per_group) in [("ConvTranspose", 1, C), ("depthwise ConvTranspose", C, 1)] {
        for stride in [1, 2] {
            check(name, StaticConv, &[9, 13], Removed, |n, v| {
                let (w, b) = (n.weight(&[C, per_group, 3, 3]), n.weight(&[C]));
                let strides = attr_ints("strides", &[stride, stride]);
                let attributes = [attr_ints("pads", &[1, 0, 1, 1]), strides, attr_int("group", group)];
                (n.op("ConvTranspose", &[v, &w, &b], &attributes), Some(C))
            });
        }
        // A kernel longer than the stride, and one shorter than it, without padding.
        for kernel in [3, 1] {
            check(name, StaticConv, &[9, 13], Removed, |n, v| {
                let w = n.weight(&[C, per_group, kernel, kernel]);
                let strides = attr_ints("strides", &[2, 2]);
                let attributes = [attr_string("auto_pad", "SAME_UPPER"), strides, attr_int("group", group)];
                (n.op("ConvTranspose", &[v, &w], &attributes), Some(C))
            });
        }
    }
}

/// Adds a 1x1 convolution with groups.
fn grouped(n: &mut Builder, v: &str, from: i64, to: i64, group: i64) -> String {
    let w = n.weight(&[to, from / group, 1, 1]);
    n.op("Conv", &[v, &w], &[attr_int("group", group)])
}

/// The input channels of a grouped convolution are a product themselves: of repetitions, of the positions in a block of
/// pixels, of the groups of the previous convolution, or of digits from a Reshape.
#[test]
fn grouped_convolutions_take_products_of_channels() {
    for (group, filters) in [(2, 2), (2, 8), (3, 3), (4, 4), (6, 6), (12, 12), (24, 24), (24, 48), (8, 24)] {
        check(&format!("{filters} filters in {group} groups, of repetitions"), StaticConv, &[13], Removed, |n, v| {
            let repeats = n.ints(&[1, 2, 1, 1]);
            let v = n.op("Tile", &[v, &repeats], &[]);
            (grouped(n, &v, 2 * C, filters, group), Some(filters))
        });
    }
    for (group, filters) in [(2, 2), (4, 4), (16, 16), (48, 48)] {
        check(
            &format!("{filters} filters in {group} groups, of the pixels of a block"),
            StaticConv,
            &[13],
            Removed,
            |n, v| {
                let v = n.op("SpaceToDepth", &[v], &[attr_int("blocksize", 2)]);
                (grouped(n, &v, 4 * C, filters, group), Some(filters))
            },
        );
    }
    for (group, filters) in [(2, 2), (4, 4), (6, 6), (3, 9)] {
        check(
            &format!("{filters} filters in {group} groups, of a pixel shuffle"),
            StaticConv,
            &[13],
            Removed,
            |n, v| {
                let w = n.weight(&[4 * C, C, 1, 1]);
                let v = n.op("Conv", &[v, &w], &[]);
                let v = n.op("DepthToSpace", &[&v], &[attr_int("blocksize", 2), attr_string("mode", "CRD")]);
                (grouped(n, &v, C, filters, group), Some(filters))
            },
        );
    }
    for (first, columns, group, filters) in [(2, 4, 2, 2), (12, 2, 12, 12), (4, 3, 2, 2), (2, 6, 12, 12), (3, 1, 3, 6)]
    {
        check(
            &format!("{filters} filters in {group} groups, of {first} groups"),
            StaticConv,
            &[13],
            Removed,
            |n, v| {
                let w = n.weight(&[C, columns, 1, 1]);
                let v = n.op("ConvTranspose", &[v, &w], &[attr_int("group", first)]);
                (grouped(n, &v, first * columns, filters, group), Some(filters))
            },
        );
    }
    // Shuffled channels: four blocks of rows of three. Any channel can be combined with any other.
    for (group, filters, fate) in [(2, 2, Removed), (4, 8, Removed), (3, 3, Kept)] {
        check(
            &format!("{filters} filters in {group} groups, of shuffled channels"),
            StaticConv,
            &[13],
            fate,
            |n, v| {
                let (split, joined) = (n.ints(&[0, 3, 4, 4, 6]), n.ints(&[0, C, 4, 6]));
                let v = n.op("Reshape", &[v, &split], &[]);
                let v = n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 2, 1, 3, 4])]);
                let v = n.op("Reshape", &[&v, &joined], &[]);
                (grouped(n, &v, C, filters, group), Some(filters))
            },
        );
    }
    // One channel of a block is left, which the previous convolution computes four times.
    check("a pixel shuffle to one channel", StaticConv, &[13], Removed, |n, v| {
        let w = n.weight(&[4, C, 1, 1]);
        let v = n.op("Conv", &[v, &w], &[]);
        (n.op("DepthToSpace", &[&v], &[attr_int("blocksize", 2)]), Some(1))
    });
    check("one filter for the channels of an input of the network", StaticConv, &[13], Kept, |n, v| {
        let x = grouped(n, "x", 8, 4, 4);
        let y = grouped(n, &x, 4, C, 4);
        (n.op("Concat", &[v, &y], &[attr_int("axis", 1)]), None)
    });
}

/// Exporters name optional outputs that have no consumer: the indices of maxima, moments, a mask.
#[test]
fn outputs_without_consumers_do_not_keep_channels() {
    check("MaxPool", Conv, &[11, 13, 18], Removed, |n, v| {
        let attributes = [attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1, 1, 1, 1])];
        (n.ops("MaxPool", &[v], &attributes, 2).swap_remove(0), Some(C))
    });
    check("MaxPool whose indices are used", Conv, &[13], Kept, |n, v| {
        let attributes = [attr_ints("kernel_shape", &[3, 3]), attr_ints("pads", &[1, 1, 1, 1])];
        let outputs = n.ops("MaxPool", &[v], &attributes, 2);
        let places = n.op("Cast", &[&outputs[1]], &[attr_int("to", 1)]);
        (n.op("Mul", &[&outputs[0], &places], &[]), Some(C))
    });
    check("Dropout", Conv, &[11, 13], Removed, |n, v| (n.ops("Dropout", &[v], &[], 2).swap_remove(0), Some(C)));
    check("LayerNormalization", MatMul, &[17], Removed, |n, v| {
        let (scale, bias) = (n.weight(&[C]), n.weight(&[C]));
        (n.ops("LayerNormalization", &[v, &scale, &bias], &[], 3).swap_remove(0), Some(C))
    });
}

/// Reshapes `[2, C, 4, 6]` to rows `[48, C]`.
fn rows(n: &mut Builder, v: &str) -> String {
    let shape = n.ints(&[-1, C]);
    let v = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 3, 1])]);
    n.op("Reshape", &[&v, &shape], &[])
}

#[test]
fn products_lose_channels() {
    for (trans_a, trans_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        check("Gemm", StaticConv, &[9, 11, 13], Removed, |n, v| {
            let mut x = rows(n, v);
            if trans_a == 1 {
                x = n.op("Transpose", &[&x], &[attr_ints("perm", &[1, 0])]);
            }
            let (w, b) = (n.weight(if trans_b == 1 { &[5, C] } else { &[C, 5] }), n.weight(&[5]));
            let attributes = [
                attr_int("transA", trans_a),
                attr_int("transB", trans_b),
                attr_float("alpha", 0.5),
                attr_float("beta", 0.3),
            ];
            (n.op("Gemm", &[&x, &w, &b], &attributes), None)
        });
    }
    for equation in ["nchw,dc->ndhw", "nchw,cd->ndhw", "nc...,dc->nd...", "n c ... , c d -> n d ..."] {
        check("Einsum", Conv, &[13], Removed, |n, v| {
            let w = n.weight(&[C, C]);
            let y = n.op("Einsum", &[v, &w], &[attr_string("equation", equation)]);
            (y, Some(C))
        });
    }
    check("Einsum of activations", MatMul, &[13], Removed, |n, v| {
        let equation = |text: &str| [attr_string("equation", text)];
        let scores = n.op("Einsum", &[v, v], &equation("bid,bjd->bij"));
        (n.op("Einsum", &[&scores, v], &equation("bij,bjd->bid")), Some(C))
    });
    check("Einsum with ellipses", MatMul, &[13], Removed, |n, v| {
        let equation = |text: &str| [attr_string("equation", text)];
        let w = n.weight(&[C, C]);
        // The letters of the result are in alphabetical order, after the ellipsis.
        let y = n.op("Einsum", &[v, &w], &equation("...c,cd"));
        let scores = n.op("Einsum", &[v, &y], &equation("...id,...jd->...ij"));
        // An axis of size one broadcasts, and an operand of lower rank is aligned to the last axes.
        let scale = n.weight(&[1, C]);
        let y = n.op("Einsum", &[&y, &scale], &equation("b...,...->b..."));
        (n.op("Einsum", &[&scores, &y], &equation("bij,bjd->bid")), Some(C))
    });
    check("TransposeMatMul", MatMul, &[13], Removed, |n, v| {
        let w = n.weight(&[C, C]);
        let y = n.fused("TransposeMatMul", &[v, &w], &[attr_int("transB", 1), attr_float("alpha", 0.5)], 1).remove(0);
        (y, Some(C))
    });
    check("a product with a vector", MatMul, &[9, 13], Removed, |n, v| {
        let w = n.weight(&[C]);
        (n.op("MatMul", &[v, &w], &[]), None)
    });
    check("a product from a vector", MatMul, &[13], Removed, |n, v| {
        let w = n.weight(&[C]);
        let v = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 1])]);
        (n.op("MatMul", &[&w, &v], &[]), None)
    });
    for activation in ["Relu", "LeakyRelu", "Sigmoid", "Tanh"] {
        check("FusedGemm", StaticConv, &[13], Removed, |n, v| {
            let (x, w, b) = (rows(n, v), n.weight(&[C, 5]), n.weight(&[5]));
            let attributes = [attr_string("activation", activation), attr_float("activation_alpha", 0.2)];
            (n.fused("FusedGemm", &[&x, &w, &b], &attributes, 1).remove(0), None)
        });
    }
}

#[test]
fn norms_use_the_kept_channels() {
    let epsilon = attr_float("epsilon", 1e-3);
    for inputs in [2, 3] {
        check("LayerNormalization", MatMul, &[17], Removed, |n, v| {
            let parameters: Vec<String> = (1..inputs).map(|_| n.weight(&[C])).collect();
            let inputs: Vec<&str> = std::iter::once(v).chain(parameters.iter().map(String::as_str)).collect();
            (n.op("LayerNormalization", &inputs, std::slice::from_ref(&epsilon)), Some(C))
        });
    }
    check("RMSNormalization", MatMul, &[23], Removed, |n, v| {
        let scale = n.weight(&[C]);
        (n.op("RMSNormalization", &[v, &scale], std::slice::from_ref(&epsilon)), Some(C))
    });
    for (opset, size) in [(18, 3), (21, C)] {
        check("GroupNormalization", Conv, &[opset], Removed, |n, v| {
            let (scale, bias) = (n.weight(&[size]), n.weight(&[size]));
            let attributes = [attr_int("num_groups", 3), epsilon.clone()];
            (n.op("GroupNormalization", &[v, &scale, &bias], &attributes), Some(C))
        });
    }
    check("InstanceNormalization", Conv, &[9, 13], Removed, |n, v| {
        let (scale, bias) = (n.weight(&[C]), n.weight(&[C]));
        (n.op("InstanceNormalization", &[v, &scale, &bias], std::slice::from_ref(&epsilon)), Some(C))
    });
    check("BatchNormalization", Conv, &[9, 13, 15], Removed, |n, v| {
        let (scale, bias, mean) = (n.weight(&[C]), n.weight(&[C]), n.weight(&[C]));
        let variance = n.floats(&[0.5, 1.0, 1.5, 2.0, 0.7, 1.1, 0.9, 1.3, 0.6, 1.2, 0.8, 1.4], &[C]);
        (n.op("BatchNormalization", &[v, &scale, &bias, &mean, &variance], &[]), Some(C))
    });
    for p in [1, 2] {
        check("LpNormalization", Conv, &[9, 22], Removed, |n, v| {
            let y = n.op("LpNormalization", &[v], &[attr_int("axis", 1), attr_int("p", p)]);
            (y, Some(C))
        });
    }
}

#[test]
fn softmax_uses_the_kept_channels() {
    for op in ["Softmax", "LogSoftmax"] {
        check(op, StaticConv, &[13], Removed, |n, v| (n.op(op, &[v], &[attr_int("axis", 1)]), Some(C)));
        let pixels = format!("{op} of pixels");
        check(&pixels, StaticConv, &[13], Removed, |n, v| (n.op(op, &[v], &[attr_int("axis", 3)]), Some(C)));
        // Before opset 13, all axes from the given one on form one distribution.
        check(&pixels, StaticConv, &[9, 11], Removed, |n, v| (n.op(op, &[v], &[attr_int("axis", 2)]), Some(C)));
    }
}

/// The index of the largest element is constant in a neighbourhood.
#[test]
fn hardmax_has_a_zero_gradient() {
    check("Hardmax", MatMul, &[13], Removed, |n, v| {
        let mark = n.op("Hardmax", &[v], &[attr_int("axis", 2)]);
        (n.op("Add", &[v, &mark], &[]), Some(C))
    });
}

#[test]
fn standard_attention_loses_heads_or_dimensions() {
    for (heads, is_causal) in [(1, 0), (3, 0), (3, 1)] {
        check("Attention", MatMul, &[23], Removed, |n, v| {
            let mut project = |v: &str| {
                let w = n.weight(&[C, C]);
                n.op("MatMul", &[v, &w], &[])
            };
            let (q, k, value) = (project(v), project(v), project(v));
            let attributes =
                [attr_int("q_num_heads", heads), attr_int("kv_num_heads", heads), attr_int("is_causal", is_causal)];
            (n.op("Attention", &[&q, &k, &value], &attributes), Some(C))
        });
    }
}

/// Four heads of queries, two of keys and values.
#[test]
fn heads_that_share_keys_have_gradients() {
    check("Attention of shared keys", MatMul, &[23], Removed, |n, v| {
        let mut project = |v: &str, columns: i64| {
            let w = n.weight(&[C, columns]);
            n.op("MatMul", &[v, &w], &[])
        };
        let (q, k, value) = (project(v, 16), project(v, 8), project(v, 6));
        let attributes = [attr_int("q_num_heads", 4), attr_int("kv_num_heads", 2)];
        (n.op("Attention", &[&q, &k, &value], &attributes), Some(C))
    });
}

/// The same by head: whole heads of keys and values are removed with the queries that share them.
#[test]
fn heads_that_share_keys_are_removed_with_them() {
    check("Attention of shared keys by head", MatMul, &[23], Removed, |n, v| {
        let mut by_head = |heads: i64, dims: i64| {
            let w = n.weight(&[C, heads * dims]);
            let shape = n.ints(&[0, 0, heads, dims]);
            let v = n.op("MatMul", &[v, &w], &[]);
            let v = n.op("Reshape", &[&v, &shape], &[]);
            n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 2, 1, 3])])
        };
        let (q, k, value) = (by_head(4, 4), by_head(2, 4), by_head(2, 3));
        let y = n.op("Attention", &[&q, &k, &value], &[]);
        let y = n.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let flat = n.ints(&[0, 0, C]);
        (n.op("Reshape", &[&y, &flat], &[]), Some(C))
    });
}

/// The addend of the scores depends on the activations, so it has a gradient.
#[test]
fn attention_masks_have_gradients() {
    check("Attention with scores to add", MatMul, &[23], Removed, |n, v| {
        let w = n.weight(&[C, C]);
        let k = n.op("MatMul", &[v, &w], &[]);
        let transposed = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 1])]);
        let scores = n.op("MatMul", &[v, &transposed], &[]);
        let (axes, factor) = (n.ints(&[1]), n.weight(&[1, 1, 1, 1]));
        let scores = n.op("Unsqueeze", &[&scores, &axes], &[]);
        let scores = n.op("Mul", &[&scores, &factor], &[]);
        let attributes = [attr_int("q_num_heads", 3), attr_int("kv_num_heads", 3)];
        (n.op("Attention", &[v, &k, v, &scores], &attributes), Some(C))
    });
    // In every sample, only the first few keys are visible.
    check("Attention with lengths", MatMul, &[24], Removed, |n, v| {
        let w = n.weight(&[C, C]);
        let k = n.op("MatMul", &[v, &w], &[]);
        let (first, one, low) = (n.ints_of(&[0], &[]), n.ints(&[1]), n.float(0.5));
        let entry = n.op("Gather", &["x", &first], &[attr_int("axis", 2)]);
        let seen = n.op("Greater", &[&entry, &low], &[]);
        let seen = n.op("Cast", &[&seen], &[attr_int("to", 7)]);
        let count = n.op("ReduceSum", &[&seen, &one], &[attr_int("keepdims", 0)]);
        let count = n.op("Max", &[&count, &one], &[]);
        let attributes = [attr_int("q_num_heads", 3), attr_int("kv_num_heads", 3)];
        (n.op("Attention", &[v, &k, v, "", "", "", &count], &attributes), Some(C))
    });
    check("Attention by head with a mask", MatMul, &[23], Removed, |n, v| {
        let shape = n.ints(&[0, 0, 3, C / 3]);
        let mut by_head = |v: &str| {
            let w = n.weight(&[C, C]);
            let v = n.op("MatMul", &[v, &w], &[]);
            let v = n.op("Reshape", &[&v, &shape], &[]);
            n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 2, 1, 3])])
        };
        let (q, k, value) = (by_head(v), by_head(v), by_head(v));
        let (first, low, axes) = (n.ints_of(&[0], &[]), n.float(-0.5), n.ints(&[1, 2]));
        let entry = n.op("Gather", &["x", &first], &[attr_int("axis", 2)]);
        let mask = n.op("Greater", &[&entry, &low], &[]);
        let mask = n.op("Unsqueeze", &[&mask, &axes], &[]);
        let rows = n.op("Shape", &[v], &[]);
        let (one, place) = (n.ints(&[1]), n.ints(&[1]));
        let length = n.op("Gather", &[&rows, &place], &[]);
        let shape = n.op("Concat", &[&one, &one, &length, &one], &[attr_int("axis", 0)]);
        let mask = n.op("Expand", &[&mask, &shape], &[]);
        let y = n.op("Attention", &[&q, &k, &value, &mask], &[attr_float("scale", 0.4)]);
        let y = n.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let flat = n.ints(&[0, 0, C]);
        (n.op("Reshape", &[&y, &flat], &[]), Some(C))
    });
}

/// Bodies of If are barriers. Their initializers have no other consumers.
#[test]
fn branches_that_depend_on_inputs_are_barriers() {
    check("If", Conv, &[13], Kept, |n, v| {
        let zero = n.float(0.0);
        let mean = n.op("ReduceMean", &["x"], &[attr_int("keepdims", 0)]);
        let condition = n.op("Greater", &[&mean, &zero], &[]);
        let branches = ["then_branch", "else_branch"].map(|name| {
            let values: Vec<f32> =
                (0..C).map(|at| at as f32 * 0.1 - if name == "then_branch" { 0.5 } else { 0.2 }).collect();
            let bias = n.floats(&values, &[C, 1, 1]);
            body(name, "Add", &[&bias, &bias])
        });
        let bias = n.op("If", &[&condition], &branches);
        n.declare(&bias, &["12", "1", "1"]);
        (n.op("Add", &[v, &bias], &[]), Some(C))
    });
}

#[test]
fn scattered_elements_keep_all_channels() {
    for reduction in [None, Some("add")] {
        check("ScatterElements", StaticConv, &[18], Kept, |n, v| {
            let indices = n.ints_of(&[3, 1, 0, 2], &[1, 1, 2, 2]);
            let updates = n.weight(&[1, 1, 2, 2]);
            let mut attributes = vec![attr_int("axis", 2)];
            attributes.extend(reduction.map(|name| attr_string("reduction", name)));
            (n.op("ScatterElements", &[v, &indices, &updates], &attributes), Some(C))
        });
    }
    check("Scatter", StaticConv, &[9], Kept, |n, v| {
        let (indices, updates) = (n.ints_of(&[3, 1, 0, 2], &[1, 1, 2, 2]), n.weight(&[1, 1, 2, 2]));
        (n.op("Scatter", &[v, &indices, &updates], &[attr_int("axis", 2)]), Some(C))
    });
}
