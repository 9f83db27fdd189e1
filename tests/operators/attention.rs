//! Fused attention and rotary embeddings.

use onnx_diffprune::onnx::{AttributeProto, attr_int, attr_ints};

use super::around::{Around::MatMul, CHANNELS};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    attention_with_separate_inputs_loses_heads_or_dimensions,
    attention_with_packed_inputs_loses_heads_or_dimensions,
    attention_with_a_fused_projection_loses_heads_or_dimensions,
    rotary_embeddings_lose_heads_or_pairs,
    the_standard_rotary_embedding_loses_heads_or_pairs,
];

const C: i64 = CHANNELS;

fn project(n: &mut Builder, v: &str, columns: i64) -> String {
    let w = n.weight(&[C, columns]);
    n.op("MatMul", &[v, &w], &[])
}

/// Returns a mask of visible keys, `[N, L]`: int32, most of them one.
fn visible(n: &mut Builder) -> String {
    above(n, -0.5)
}

/// Returns a mask of the keys whose first input is above a limit, `[N, L]`: int32.
fn above(n: &mut Builder, limit: f32) -> String {
    let (first, low) = (n.ints_of(&[0], &[]), n.float(limit));
    let entry = n.op("Gather", &["x", &first], &[attr_int("axis", 2)]);
    let mask = n.op("Greater", &[&entry, &low], &[]);
    n.op("Cast", &[&mask], &[attr_int("to", 6)])
}

fn reshape(n: &mut Builder, v: &str, shape: &[i64]) -> String {
    let shape = n.ints(shape);
    n.op("Reshape", &[v, &shape], &[])
}

/// The channels of the first layer are the queries, so they can be removed only with those of the attention.
#[test]
fn attention_with_separate_inputs_loses_heads_or_dimensions() {
    for heads in [1, 3] {
        let attributes = [attr_int("num_heads", heads)];
        let attend = |n: &mut Builder, inputs: &[&str]| n.fused("MultiHeadAttention", inputs, &attributes, 1).remove(0);
        check("MultiHeadAttention", MatMul, &[17], Removed, |n, v| {
            let (k, value) = (project(n, v, C), project(n, v, C));
            (attend(n, &[v, &k, &value]), Some(C))
        });
        check("MultiHeadAttention with wider values", MatMul, &[17], Removed, |n, v| {
            let (k, value) = (project(n, v, C), project(n, v, 2 * C));
            (attend(n, &[v, &k, &value]), Some(2 * C))
        });
        check("MultiHeadAttention with a bias", MatMul, &[17], Removed, |n, v| {
            let (k, value, bias) = (project(n, v, C), project(n, v, C), n.weight(&[3 * C]));
            (attend(n, &[v, &k, &value, &bias]), Some(C))
        });
        check("MultiHeadAttention with scores to add", MatMul, &[17], Removed, |n, v| {
            let (k, value) = (project(n, v, C), project(n, v, C));
            let transposed = n.op("Transpose", &[v], &[attr_ints("perm", &[0, 2, 1])]);
            let scores = n.op("MatMul", &[v, &transposed], &[]);
            let axes = n.ints(&[1]);
            let scores = n.op("Unsqueeze", &[&scores, &axes], &[]);
            let per_head = n.weight(&[1, heads, 1, 1]);
            let scores = n.op("Mul", &[&scores, &per_head], &[]);
            (attend(n, &[v, &k, &value, "", "", &scores]), Some(C))
        });
        check("MultiHeadAttention with keys and values by head", MatMul, &[17], Removed, |n, v| {
            let mut by_head = |v: &str| {
                let x = project(n, v, C);
                let x = reshape(n, &x, &[0, 0, heads, C / heads]);
                n.op("Transpose", &[&x], &[attr_ints("perm", &[0, 2, 1, 3])])
            };
            let (k, value) = (by_head(v), by_head(v));
            (attend(n, &[v, &k, &value]), Some(C))
        });
        check("MultiHeadAttention with hidden keys", MatMul, &[17], Removed, |n, v| {
            let (k, value, mask) = (project(n, v, C), project(n, v, C), visible(n));
            (attend(n, &[v, &k, &value, "", &mask]), Some(C))
        });
        check("MultiHeadAttention with a mask of zeros, ones and twos", MatMul, &[17], Removed, |n, v| {
            let (k, value, mask, more) = (project(n, v, C), project(n, v, C), visible(n), above(n, 0.5));
            let mask = n.op("Add", &[&mask, &more], &[]);
            (attend(n, &[v, &k, &value, "", &mask]), Some(C))
        });
        check("MultiHeadAttention without later keys", MatMul, &[17], Removed, |n, v| {
            let (k, value) = (project(n, v, C), project(n, v, C));
            let attributes = [attr_int("num_heads", heads), attr_int("unidirectional", 1)];
            (n.fused("MultiHeadAttention", &[v, &k, &value], &attributes, 1).remove(0), Some(C))
        });
        check("MultiHeadAttention without later keys of another length", MatMul, &[17], Removed, |n, v| {
            let (start, end, axis) = (n.ints(&[0]), n.ints(&[2]), n.ints(&[1]));
            let first = n.op("Slice", &[v, &start, &end, &axis], &[]);
            let (k, value) = (project(n, &first, C), project(n, &first, C));
            let attributes = [attr_int("num_heads", heads), attr_int("unidirectional", 1)];
            (n.fused("MultiHeadAttention", &[v, &k, &value], &attributes, 1).remove(0), Some(C))
        });
        check("MultiHeadAttention with a scale", MatMul, &[17], Removed, |n, v| {
            let (k, value) = (project(n, v, C), project(n, v, C));
            let mut attributes = attributes.to_vec();
            attributes.push(onnx_diffprune::onnx::attr_float("scale", 0.3));
            (n.fused("MultiHeadAttention", &[v, &k, &value], &attributes, 1).remove(0), Some(C))
        });
    }
}

/// An addition after the attention couples its output with the first layer.
#[test]
fn attention_with_packed_inputs_loses_heads_or_dimensions() {
    for heads in [1, 3] {
        let attributes = [attr_int("num_heads", heads)];
        check("MultiHeadAttention with packed keys and values", MatMul, &[17], Removed, |n, v| {
            let kv = project(n, v, 2 * C);
            let kv = reshape(n, &kv, &[0, 0, heads, 2, C / heads]);
            let y = n.fused("MultiHeadAttention", &[v, &kv], &attributes, 1).remove(0);
            (n.op("Add", &[v, &y], &[]), Some(C))
        });
        check("MultiHeadAttention with all packed", MatMul, &[17], Removed, |n, v| {
            let qkv = project(n, v, 3 * C);
            let qkv = reshape(n, &qkv, &[0, 0, heads, 3, C / heads]);
            let y = n.fused("MultiHeadAttention", &[&qkv], &attributes, 1).remove(0);
            (n.op("Add", &[v, &y], &[]), Some(C))
        });
    }
}

#[test]
fn attention_with_a_fused_projection_loses_heads_or_dimensions() {
    for heads in [1, 3] {
        for sizes in [None, Some([C, C, C]), Some([2 * C, 2 * C, C])] {
            let mut attributes = vec![attr_int("num_heads", heads)];
            attributes.extend(sizes.map(|sizes| attr_ints("qkv_hidden_sizes", &sizes)));
            let columns = sizes.map_or(3 * C, |sizes| sizes.iter().sum());
            check("Attention of com.microsoft", MatMul, &[17], Removed, |n, v| {
                let (w, b) = (n.weight(&[C, columns]), n.weight(&[columns]));
                let y = n.fused("Attention", &[v, &w, &b], &attributes, 1).remove(0);
                (n.op("Add", &[v, &y], &[]), Some(C))
            });
            check("Attention of com.microsoft with hidden keys", MatMul, &[17], Removed, |n, v| {
                let (w, b, mask) = (n.weight(&[C, columns]), n.weight(&[columns]), visible(n));
                let y = n.fused("Attention", &[v, &w, &b, &mask], &attributes, 1).remove(0);
                (n.op("Add", &[v, &y], &[]), Some(C))
            });
            check("Attention of com.microsoft without later keys", MatMul, &[17], Removed, |n, v| {
                let (w, b) = (n.weight(&[C, columns]), n.weight(&[columns]));
                let mut attributes = attributes.clone();
                attributes.push(attr_int("unidirectional", 1));
                let y = n.fused("Attention", &[v, &w, &b], &attributes, 1).remove(0);
                (n.op("Add", &[v, &y], &[]), Some(C))
            });
        }
    }
}

/// Rotates queries `v` by ONNX Runtime's RotaryEmbedding or the standard one. The caches have `pairs` columns.
fn rotate(n: &mut Builder, v: &str, standard: bool, pairs: i64, attributes: &[AttributeProto]) -> String {
    let (cos, sin) = (n.weight(&[64, pairs]), n.weight(&[64, pairs]));
    if standard {
        // One position per token, counted from one.
        let (zero, one) = (n.ints_of(&[0], &[]), n.ints_of(&[1], &[]));
        let entry = n.op("Gather", &["x", &zero], &[attr_int("axis", 2)]);
        let entry = n.op("Cast", &[&entry], &[attr_int("to", 7)]);
        let ones = n.op("Max", &[&entry, &one], &[]);
        let ones = n.op("Min", &[&ones, &one], &[]);
        let positions = n.op("CumSum", &[&ones, &one], &[]);
        return n.op("RotaryEmbedding", &[v, &cos, &sin, &positions], attributes);
    }
    let start = n.ints(&[0]);
    n.fused("RotaryEmbedding", &[v, &start, &cos, &sin], attributes, 1).remove(0)
}

#[test]
fn rotary_embeddings_lose_heads_or_pairs() {
    for interleaved in [0, 1] {
        let style = attr_int("interleaved", interleaved);
        for heads in [1, 3] {
            let attributes = [style.clone(), attr_int("num_heads", heads)];
            check("RotaryEmbedding", MatMul, &[17], Removed, |n, v| {
                (rotate(n, v, false, C / heads / 2, &attributes), Some(C))
            });
            check("RotaryEmbedding before attention", MatMul, &[17], Removed, |n, v| {
                let (k, value) = (project(n, v, C), project(n, v, C));
                let q = rotate(n, v, false, C / heads / 2, &attributes);
                let k = rotate(n, &k, false, C / heads / 2, &attributes);
                let heads = [attr_int("num_heads", heads)];
                (n.fused("MultiHeadAttention", &[&q, &k, &value], &heads, 1).remove(0), Some(C))
            });
        }
        check("RotaryEmbedding whose heads follow from the caches", MatMul, &[17], Removed, |n, v| {
            (rotate(n, v, false, 2, std::slice::from_ref(&style)), Some(C))
        });
    }
    check("RotaryEmbedding of a part", MatMul, &[17], Kept, |n, v| {
        let attributes = [attr_int("num_heads", 1), attr_int("rotary_embedding_dim", 8)];
        (rotate(n, v, false, 4, &attributes), Some(C))
    });
}

#[test]
fn the_standard_rotary_embedding_loses_heads_or_pairs() {
    for (interleaved, heads) in [(0, 1), (0, 3), (1, 1), (1, 3)] {
        let attributes = [attr_int("interleaved", interleaved), attr_int("num_heads", heads)];
        check("RotaryEmbedding of ai.onnx", MatMul, &[23], Removed, |n, v| {
            let q = project(n, v, C);
            let q = rotate(n, &q, true, C / heads / 2, &attributes);
            (n.op("Add", &[v, &q], &[]), Some(C))
        });
    }
}
