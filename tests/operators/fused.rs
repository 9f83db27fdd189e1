//! Operators that ONNX Runtime's optimizers fuse: norms with a preceding addition, convolutions and norms with channels
//! last, gated activations.

use onnx_diffprune::onnx::{AttributeProto, attr_float, attr_int, attr_ints, attr_string};

use super::around::{
    Around::{Conv, MatMul},
    CHANNELS,
};
use super::{Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    skip_norms_use_the_kept_channels_of_a_sum,
    fused_group_norms_keep_every_group,
    convolutions_with_channels_last_lose_channels,
    the_addend_of_a_fused_convolution_loses_the_same_channels,
    gated_activations_lose_both_halves,
    fused_products_transpose_their_inputs,
    fused_products_apply_an_activation,
    a_softmax_of_a_fused_product_acts_on_what_is_kept,
    a_product_with_fast_gelu_loses_what_its_bias_loses,
];

const C: i64 = CHANNELS;

#[test]
fn skip_norms_use_the_kept_channels_of_a_sum() {
    let epsilon = attr_float("epsilon", 1e-5);
    for (op, count) in [("SkipLayerNormalization", 3), ("SkipSimplifiedLayerNormalization", 2)] {
        for parameters in 1..=count {
            check(op, MatMul, &[17], Removed, |n, v| {
                let skip = n.op("Sigmoid", &[v], &[]);
                let vectors: Vec<String> = (0..parameters).map(|_| n.weight(&[C])).collect();
                let inputs: Vec<&str> = [v, &skip].into_iter().chain(vectors.iter().map(String::as_str)).collect();
                (n.fused(op, &inputs, std::slice::from_ref(&epsilon), 1).remove(0), Some(C))
            });
        }
        check(&format!("{op} with the sum"), MatMul, &[17], Removed, |n, v| {
            let (skip, gamma) = (n.op("Sigmoid", &[v], &[]), n.weight(&[C]));
            let outputs =
                n.fused_to(op, &[v, &skip, &gamma], std::slice::from_ref(&epsilon), &["normalised", "", "", "sum"]);
            (n.op("Mul", &[&outputs[0], &outputs[3]], &[]), Some(C))
        });
    }
    check("simplified layer norm", MatMul, &[17], Removed, |n, v| {
        let gamma = n.weight(&[C]);
        let y = n.op("SimplifiedLayerNormalization", &[v, &gamma], &[attr_int("axis", -1), epsilon.clone()]);
        (y, Some(C))
    });
}

/// Transposes `[N, C, H, W]` to `[N, H, W, C]`, or back.
fn move_channels(n: &mut Builder, v: &str, to_last: bool) -> String {
    let perm: &[i64] = if to_last { &[0, 2, 3, 1] } else { &[0, 3, 1, 2] };
    n.op("Transpose", &[v], &[attr_ints("perm", perm)])
}

#[test]
fn fused_group_norms_keep_every_group() {
    for channels_last in [true, false] {
        for activation in [0, 1] {
            let attributes = [
                attr_int("groups", 3),
                attr_int("activation", activation),
                attr_int("channels_last", i64::from(channels_last)),
                attr_float("epsilon", 1e-5),
            ];
            let around = |n: &mut Builder, v: &str, build: &dyn Fn(&mut Builder, &str) -> String| {
                let x = if channels_last { move_channels(n, v, true) } else { v.to_owned() };
                let y = build(n, &x);
                if channels_last { move_channels(n, &y, false) } else { y }
            };
            check("GroupNorm", Conv, &[17], Removed, |n, v| {
                let y = around(n, v, &|n, x| {
                    let (gamma, beta) = (n.weight(&[C]), n.weight(&[C]));
                    n.fused("GroupNorm", &[x, &gamma, &beta], &attributes, 1).remove(0)
                });
                (y, Some(C))
            });
            check("SkipGroupNorm", Conv, &[17], Removed, |n, v| {
                let y = around(n, v, &|n, x| {
                    let (gamma, beta, bias) = (n.weight(&[C]), n.weight(&[C]), n.weight(&[C]));
                    let skip = n.op("Sigmoid", &[x], &[]);
                    let outputs = n.fused("SkipGroupNorm", &[x, &gamma, &beta, &skip, &bias], &attributes, 2);
                    n.op("Add", &[&outputs[0], &outputs[1]], &[])
                });
                (y, Some(C))
            });
            check("SkipGroupNorm of a vector", Conv, &[17], Removed, |n, v| {
                let skip = n.op("GlobalAveragePool", &[v], &[]);
                let skip = n.op("Flatten", &[&skip], &[]);
                let y = around(n, v, &|n, x| {
                    let (gamma, beta) = (n.weight(&[C]), n.weight(&[C]));
                    n.fused("SkipGroupNorm", &[x, &gamma, &beta, &skip], &attributes, 1).remove(0)
                });
                (y, Some(C))
            });
        }
    }
    check("GroupNorm of one channel a group", Conv, &[17], Removed, |n, v| {
        let x = move_channels(n, v, true);
        let (gamma, beta) = (n.weight(&[C]), n.weight(&[C]));
        let y = n.fused("GroupNorm", &[&x, &gamma, &beta], &[attr_int("groups", C)], 1).remove(0);
        (move_channels(n, &y, false), Some(C))
    });
}

#[test]
fn convolutions_with_channels_last_lose_channels() {
    for (name, group, per_group, strides) in
        [("NhwcConv", 1, C, [1, 1]), ("depthwise NhwcConv", C, 1, [1, 1]), ("grouped NhwcConv", 2, C / 2, [1, 1])]
    {
        check(name, Conv, &[13, 17], Removed, |n, v| {
            let x = move_channels(n, v, true);
            let (w, b) = (n.weight(&[C, 3, 3, per_group]), n.weight(&[C]));
            let attributes = [
                attr_ints("kernel_shape", &[3, 3]),
                attr_ints("pads", &[1, 1, 1, 1]),
                attr_ints("strides", &strides),
                attr_int("group", group),
            ];
            let y = n.fused("NhwcConv", &[&x, &w, &b], &attributes, 1).remove(0);
            let y = n.op("Add", &[&x, &y], &[]);
            (move_channels(n, &y, false), Some(C))
        });
    }
    check("NhwcConv with a stride", Conv, &[17], Removed, |n, v| {
        let x = move_channels(n, v, true);
        let w = n.weight(&[7, 2, 2, C]);
        let y = n.fused("NhwcConv", &[&x, &w], &[attr_ints("strides", &[2, 2])], 1).remove(0);
        (move_channels(n, &y, false), Some(7))
    });
}

/// Builds an attribute of floats.
fn floats(name: &str, values: &[f32]) -> AttributeProto {
    // ONNX numbers the types of attributes: 6 is a list of floats.
    AttributeProto { name: name.to_owned(), r#type: 6, floats: values.to_vec(), ..AttributeProto::default() }
}

#[test]
fn the_addend_of_a_fused_convolution_loses_the_same_channels() {
    check("FusedConv", Conv, &[13, 17], Removed, |n, v| {
        let (w, b) = (n.weight(&[C, C, 1, 1]), n.weight(&[C]));
        let activation = attr_string("activation", "Relu");
        (n.fused("FusedConv", &[v, &w, &b, v], &[activation], 1).remove(0), Some(C))
    });
    for (name, parameters) in [
        ("LeakyRelu", vec![0.2]),
        ("Sigmoid", vec![]),
        ("Tanh", vec![]),
        ("Clip", vec![-0.5, 0.7]),
        ("HardSigmoid", vec![0.3, 0.4]),
    ] {
        check(&format!("FusedConv with {name}"), Conv, &[13], Removed, |n, v| {
            let (w, b) = (n.weight(&[C, C, 1, 1]), n.weight(&[C]));
            let mut attributes = vec![attr_string("activation", name)];
            attributes.extend((!parameters.is_empty()).then(|| floats("activation_params", &parameters)));
            (n.fused("FusedConv", &[v, &w, &b], &attributes, 1).remove(0), Some(C))
        });
    }
}

#[test]
fn gated_activations_lose_both_halves() {
    check("BiasSplitGelu", MatMul, &[17], Removed, |n, v| {
        let (w, b) = (n.weight(&[C, 2 * C]), n.weight(&[2 * C]));
        let wide = n.op("MatMul", &[v, &w], &[]);
        let y = n.fused("BiasSplitGelu", &[&wide, &b], &[], 1).remove(0);
        (n.op("Add", &[v, &y], &[]), Some(C))
    });
    check("BiasSplitGelu of the first layer", MatMul, &[17], Removed, |n, v| {
        let b = n.weight(&[C]);
        (n.fused("BiasSplitGelu", &[v, &b], &[], 1).remove(0), Some(C / 2))
    });
    check("BiasAdd", MatMul, &[17], Removed, |n, v| {
        let (skip, b) = (n.op("Sigmoid", &[v], &[]), n.weight(&[C]));
        (n.fused("BiasAdd", &[v, &b, &skip], &[], 1).remove(0), Some(C))
    });
    for op in ["QuickGelu", "Gelu", "FastGelu"] {
        check(op, MatMul, &[17], Removed, |n, v| (n.fused(op, &[v], &[], 1).remove(0), Some(C)));
    }
    for op in ["BiasGelu", "FastGelu"] {
        check(op, MatMul, &[17], Removed, |n, v| {
            let b = n.weight(&[C]);
            (n.fused(op, &[v, &b], &[], 1).remove(0), Some(C))
        });
    }
}

#[test]
fn fused_products_transpose_their_inputs() {
    let project = |n: &mut Builder, v: &str| {
        let (w, shape) = (n.weight(&[C, C]), n.ints(&[0, 0, 3, C / 3]));
        let v = n.op("MatMul", &[v, &w], &[]);
        n.op("Reshape", &[&v, &shape], &[])
    };
    // Attention of `[N, L, heads, D]` over the heads of every token, in the forms that optimizers fuse transposes into.
    check("FusedMatMul", MatMul, &[17], Removed, |n, v| {
        let (q, k) = (project(n, v), project(n, v));
        let scores = n.fused("FusedMatMul", &[&q, &k], &[attr_int("transB", 1)], 1).remove(0);
        let scores = n.fused("FusedMatMul", &[&scores, &q], &[attr_int("transA", 1)], 1).remove(0);
        let shape = n.ints(&[0, 0, C]);
        let y = n.op("Reshape", &[&scores, &shape], &[]);
        (n.op("Add", &[v, &y], &[]), Some(C))
    });
    // Transposes `[L, N, heads, D]` to `[N, heads, L, D]`.
    check("FusedMatMul with batches transposed", MatMul, &[17], Removed, |n, v| {
        let mut side = |v: &str| {
            let x = project(n, v);
            n.op("Transpose", &[&x], &[attr_ints("perm", &[1, 0, 2, 3])])
        };
        let (q, k) = (side(v), side(v));
        let both = [attr_int("transBatchA", 1), attr_int("transBatchB", 1), attr_int("transB", 1)];
        let scores = n.fused("FusedMatMul", &[&q, &k], &both, 1).remove(0);
        let scores = n.op("Softmax", &[&scores], &[attr_int("axis", -1)]);
        let y = n.fused("FusedMatMul", &[&scores, &k], &[attr_int("transBatchB", 1)], 1).remove(0);
        let y = n.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let shape = n.ints(&[0, 0, C]);
        let y = n.op("Reshape", &[&y, &shape], &[]);
        (n.op("Add", &[v, &y], &[]), Some(C))
    });
}

#[test]
fn fused_products_apply_an_activation() {
    for (name, parameters) in [
        ("Relu", vec![]),
        ("Sigmoid", vec![]),
        ("Softplus", vec![]),
        ("Softsign", vec![]),
        ("Tanh", vec![]),
        ("Elu", vec![("activation_alpha", 0.7)]),
        ("LeakyRelu", vec![("activation_alpha", 0.2)]),
        ("ThresholdedRelu", vec![("activation_alpha", 0.1)]),
        ("HardSigmoid", vec![("activation_alpha", 0.3), ("activation_beta", 0.4)]),
        ("Selu", vec![("activation_alpha", 1.5), ("activation_gamma", 1.2)]),
    ] {
        check(&format!("FusedMatMulActivation with {name}"), MatMul, &[13, 17], Removed, |n, v| {
            let w = n.weight(&[7, C]);
            let mut attributes = vec![attr_string("activation", name), attr_int("transB", 1), attr_float("alpha", 0.5)];
            attributes.extend(parameters.iter().map(|(name, value)| attr_float(name, *value)));
            (n.fused("FusedMatMulActivation", &[v, &w], &attributes, 1).remove(0), Some(7))
        });
    }
}

#[test]
fn a_softmax_of_a_fused_product_acts_on_what_is_kept() {
    for activation in ["Softmax", "LogSoftmax"] {
        // Over channels, over positions, and over samples.
        for axis in [None, Some(2), Some(1), Some(0)] {
            let name = format!("FusedMatMulActivation with {activation} along {axis:?}");
            check(&name, MatMul, &[9, 12, 17], Removed, |n, v| {
                let w = n.weight(&[C, C]);
                let mut attributes = vec![attr_string("activation", activation)];
                attributes.extend(axis.map(|axis| attr_int("activation_axis", axis)));
                (n.fused("FusedMatMulActivation", &[v, &w], &attributes, 1).remove(0), Some(C))
            });
        }
    }
    // `[L, N, heads, D]` becomes `[N, heads, L, D]`.
    check("FusedMatMulActivation with batches transposed", MatMul, &[17], Removed, |n, v| {
        let mut side = |v: &str| {
            let (w, shape) = (n.weight(&[C, C]), n.ints(&[0, 0, 3, C / 3]));
            let x = n.op("MatMul", &[v, &w], &[]);
            let x = n.op("Reshape", &[&x, &shape], &[]);
            n.op("Transpose", &[&x], &[attr_ints("perm", &[1, 0, 2, 3])])
        };
        let (q, k, x) = (side(v), side(v), side(v));
        let names = ["transBatchA", "transBatchB", "transB"];
        let mut attributes: Vec<AttributeProto> = names.map(|name| attr_int(name, 1)).to_vec();
        attributes.push(attr_string("activation", "Softmax"));
        let shares = n.fused("FusedMatMulActivation", &[&q, &k], &attributes, 1).remove(0);
        let attributes = [attr_int("transA", 1), attr_int("transBatchB", 1), attr_string("activation", "Tanh")];
        let y = n.fused("FusedMatMulActivation", &[&shares, &x], &attributes, 1).remove(0);
        let y = n.op("Transpose", &[&y], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let shape = n.ints(&[0, 0, C]);
        let y = n.op("Reshape", &[&y, &shape], &[]);
        (n.op("Add", &[v, &y], &[]), Some(C))
    });
}

#[test]
fn a_product_with_fast_gelu_loses_what_its_bias_loses() {
    for has_bias in [false, true] {
        check(&format!("GemmFastGelu, with a bias: {has_bias}"), MatMul, &[13, 17], Removed, |n, v| {
            let mut inputs = vec![v.to_owned(), n.weight(&[C, C])];
            inputs.extend(has_bias.then(|| n.weight(&[C])));
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let y = n.fused("GemmFastGelu", &inputs, &[], 1).remove(0);
            (n.op("Add", &[v, &y], &[]), Some(C))
        });
    }
}
