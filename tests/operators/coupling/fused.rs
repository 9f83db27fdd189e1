//! Attention and other fused operators.

use onnx_diffprune::onnx::{attr_int, attr_ints};

use super::In::{Indices, Omitted, W, X};
use super::{Case, case, check, in_opset};

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    [simple(), rotations(), attention(), joint_attention(), multi_head_attention()].into_iter().flatten().collect()
}

fn simple() -> Vec<Vec<Case>> {
    let (x, b) = (X(&[2, 5, 6]), W(&[6]));
    vec![
        case("m:BiasGelu m:FastGelu", &[x, b], &[], "[a b c], [c] -> [a b c]"),
        case("m:Gelu m:FastGelu", &[x], &[], "[a b c] -> [a b c]"),
        case("m:BiasAdd", &[x, b, x], &[], "[a b c], [c], [a b c] -> [a b c]"),
        // The same index is removed from both halves.
        case("m:BiasSplitGelu", &[X(&[2, 5, 12]), W(&[12])], &[], "[a b (c2! d6)], [(c! d)] -> [a b d]"),
    ]
}

/// Dimension `i` is rotated with dimension `i + 4`, or `2 i` with `2 i + 1` if they are interleaved.
fn rotations() -> Vec<Vec<Case>> {
    let (cos, sin) = (W(&[7, 4]), W(&[7, 4]));
    let (x, flat, positions) = (X(&[2, 3, 5, 8]), X(&[2, 5, 24]), Indices(&[2, 5]));
    let heads = attr_int("num_heads", 3);
    let interleaved = attr_int("interleaved", 1);
    let part = [heads.clone(), attr_int("rotary_embedding_dim", 4)];
    vec![
        in_opset(
            23,
            "RotaryEmbedding",
            &[x, cos, sin, positions],
            &[],
            "[a b c (d2! e4)], [f! e], [g! e], [. .] -> [a b c (d! e)]",
        ),
        in_opset(
            23,
            "RotaryEmbedding",
            &[flat, cos, sin, positions],
            &[attr_int("num_heads", 3)],
            "[a b (c3 (d2! e4))], [f! e], [g! e], [. .] -> [a b (c (d! e))]",
        ),
        case(
            "m:RotaryEmbedding",
            &[x, positions, cos, sin],
            &[interleaved],
            "[a b c (d4 e2!)], [. .], [f! d], [g! d] -> [a b c (d e!)]",
        ),
        case(
            "m:RotaryEmbedding",
            &[x, positions, W(&[7, 2]), W(&[7, 2])],
            &part,
            "[a b c d!], [. .], [e! f!], [g! h!] -> [a b c d!]",
        ),
    ]
}

/// The axis along keys and values keeps its length: a key of zeros is not a missing key.
fn attention() -> Vec<Vec<Case>> {
    let heads = |q, kv| [attr_int("q_num_heads", q), attr_int("kv_num_heads", kv)];
    let four = [X(&[2, 3, 5, 8]), X(&[2, 3, 7, 8]), X(&[2, 3, 7, 6])];
    vec![
        in_opset(23, "Attention", &four, &[], "[a b c d], [a b e! d], [a b f! g] -> [a b c g]"),
        in_opset(
            23,
            "Attention",
            &[four[0], four[1], four[2], X(&[5, 7])],
            &[],
            "[a b c d], [a b e! d], [a b f! g], [h! i!] -> [a b c g]",
        ),
        in_opset(
            23,
            "Attention",
            &[X(&[2, 5, 24]), X(&[2, 7, 24]), X(&[2, 7, 18])],
            &heads(3, 3),
            "[a b (c3 d8)], [a e! (c d)], [a f! (c g6)] -> [a b (c g)]",
        ),
        // Two heads of Q share one head of K and V.
        in_opset(
            23,
            "Attention",
            &[X(&[2, 5, 32]), X(&[2, 7, 16]), X(&[2, 7, 12])],
            &heads(4, 2),
            "[a b ((c2 d2!) e8)], [a f! (c e)], [a g! (c h6)] -> [a b (c d! h)]",
        ),
        in_opset(
            23,
            "Attention",
            &[X(&[2, 4, 5, 8]), X(&[2, 2, 7, 8]), X(&[2, 2, 7, 6])],
            &[],
            "[a (b2 c2!) d e], [a b f! e], [a b g! h] -> [a (b c!) d h]",
        ),
    ]
}

/// Queries, keys and values from one weight.
fn joint_attention() -> Vec<Vec<Case>> {
    let x = X(&[2, 5, 6]);
    let sizes = |sizes: &[i64]| [attr_int("num_heads", 3), attr_ints("qkv_hidden_sizes", sizes)];
    let joint = "[a b! c], [c (d3 e4)+(d e)+(d f4)], [(d e)+(d e)+(d f)]";
    vec![
        case(
            "m:Attention",
            &[x, W(&[6, 36]), W(&[36])],
            &[attr_int("num_heads", 3)],
            &format!("{joint} -> [a b! (d f)]"),
        ),
        case(
            "m:Attention",
            &[x, W(&[6, 42]), W(&[42])],
            &sizes(&[12, 12, 18]),
            "[a b! c], [c (d3 e4)+(d e)+(d f6)], [(d e)+(d e)+(d f)] -> [a b! (d f)]",
        ),
        case(
            "m:Attention",
            &[x, W(&[6, 36]), W(&[36]), Omitted, Omitted, X(&[2, 3, 5, 5])],
            &[attr_int("num_heads", 3)],
            &format!("{joint}, -, -, [g! d h! i!] -> [a b! (d f)]"),
        ),
    ]
}

fn multi_head_attention() -> Vec<Vec<Case>> {
    let heads = [attr_int("num_heads", 3)];
    let (q, k, v) = (X(&[2, 5, 24]), X(&[2, 7, 24]), X(&[2, 7, 18]));
    vec![
        case("m:MultiHeadAttention", &[q, k, v], &heads, "[a b (c3 d8)], [a e! (c d)], [a f! (c g6)] -> [a b (c g)]"),
        case(
            "m:MultiHeadAttention",
            &[q, k, v, W(&[66])],
            &heads,
            "[a b (c3 d8)], [a e! (c d)], [a f! (c g6)], [(c d)+(c d)+(c g)] -> [a b (c g)]",
        ),
        case(
            "m:MultiHeadAttention",
            &[q, X(&[2, 3, 7, 8]), X(&[2, 3, 7, 6])],
            &heads,
            "[a b (c3 d8)], [a c e! d], [a c f! g] -> [a b (c g)]",
        ),
        case("m:MultiHeadAttention", &[X(&[2, 5, 3, 3, 8])], &heads, "[a b! c d! e] -> [a b! (c e)]"),
        case("m:MultiHeadAttention", &[q, X(&[2, 7, 3, 2, 8])], &heads, "[a b (c3 d8)], [a e! c f! d] -> [a b (c d)]"),
        case(
            "m:MultiHeadAttention",
            &[q, k, v, Omitted, X(&[2, 7]), X(&[1, 3, 5, 7])],
            &heads,
            "[a b (c3 d8)], [a e! (c d)], [a f! (c g6)], -, [h! i!], [1 c j! k!] -> [a b (c g)]",
        ),
    ]
}
