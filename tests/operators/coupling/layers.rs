//! Convolutions, products, and pooling.

use onnx_diffprune::onnx::{attr_float, attr_int, attr_ints, attr_string};

use super::In::{W, X};
use super::{Case, case, check, in_opset};

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    [convolutions(), transposed(), products(), pools()].into_iter().flatten().collect()
}

fn convolutions() -> Vec<Vec<Case>> {
    let x = X(&[2, 6, 8, 9]);
    let group = |count| [attr_int("group", count)];
    let relu = [attr_string("activation", "Relu")];
    vec![
        case("Conv m:FusedConv", &[x, W(&[4, 6, 3, 5]), W(&[4])], &[], "[a b c! d!], [e b f! g!], [e] -> [a e . .]"),
        case("Conv", &[x, W(&[4, 6, 1, 1])], &[], "[a b c! d!], [e b 1 1] -> [a e . .]"),
        case("Conv", &[X(&[2, 6, 8]), W(&[4, 6, 3])], &[], "[a b c!], [d b e!] -> [a d .]"),
        // Every group is kept. All groups lose the same number of filters, and the same input channels.
        case(
            "Conv",
            &[x, W(&[4, 3, 3, 5]), W(&[4])],
            &group(2),
            "[a (b2! c3) d! e!], [(f2!|g2) c h! i!], [(f!|g)] -> [a (f!|g) . .]",
        ),
        // Depthwise: whole groups are removed.
        case("Conv", &[x, W(&[6, 1, 3, 5]), W(&[6])], &group(6), "[a b c! d!], [b 1 e! f!], [b] -> [a b . .]"),
        case(
            "Conv",
            &[x, W(&[12, 1, 3, 5]), W(&[12])],
            &group(6),
            "[a b c! d!], [(b e2!) 1 f! g!], [(b e!)] -> [a (b e!) . .]",
        ),
        case("Conv", &[x, W(&[2, 3, 3, 5])], &group(2), "[a (b2 c3) d! e!], [b c f! g!] -> [a b . .]"),
        // A weight that is computed from an input of the network.
        case("Conv", &[x, X(&[4, 6, 3, 5])], &[], "[a b c! d!], [e b f! g!] -> [a e . .]"),
        case(
            "m:FusedConv",
            &[x, W(&[4, 6, 1, 1]), W(&[4]), X(&[2, 4, 8, 9])],
            &relu,
            "[a b c! d!], [e b 1 1], [e], [a e f! g!] -> [a e . .]",
        ),
        case(
            "m:NhwcConv",
            &[X(&[2, 8, 9, 6]), W(&[4, 3, 5, 6]), W(&[4])],
            &[],
            "[a b! c! d], [e f! g! d], [e] -> [a . . e]",
        ),
        case("m:NhwcConv", &[X(&[2, 8, 9, 6]), W(&[6, 3, 5, 1])], &group(6), "[a b! c! d], [d e! f! 1] -> [a . . d]"),
    ]
}

fn transposed() -> Vec<Vec<Case>> {
    let x = X(&[2, 6, 8, 9]);
    let group = |count| [attr_int("group", count)];
    vec![
        case("ConvTranspose", &[x, W(&[6, 4, 3, 5]), W(&[4])], &[], "[a b c! d!], [b e f! g!], [e] -> [a e . .]"),
        case(
            "ConvTranspose",
            &[x, W(&[6, 4, 3, 5]), W(&[8])],
            &group(2),
            "[a (b2!|c3) d! e!], [(b!|c) f g! h!], [(i2! f)] -> [a (i! f) . .]",
        ),
        case("ConvTranspose", &[x, W(&[6, 1, 3, 5]), W(&[6])], &group(6), "[a b c! d!], [b 1 e! f!], [b] -> [a b . .]"),
        case(
            "ConvTranspose",
            &[x, W(&[6, 2, 3, 5]), W(&[12])],
            &group(6),
            "[a b c! d!], [b e f! g!], [(b e)] -> [a (b e) . .]",
        ),
    ]
}

fn products() -> Vec<Vec<Case>> {
    let equation = |text: &str| [attr_string("equation", text)];
    let both = [attr_int("transA", 1), attr_int("transB", 1)];
    let relu = [attr_string("activation", "Relu")];
    let scaled = [attr_float("alpha", 0.5)];
    let activation = |name| attr_string("activation", name);
    let (first_moves, softmax) = ([attr_int("transBatchA", 1), activation("Relu")], [activation("Softmax")]);
    let of_rows = [attr_int("transA", 1), attr_int("transB", 1), activation("Softmax"), attr_int("activation_axis", 1)];
    vec![
        case("MatMul", &[X(&[2, 5, 6]), W(&[6, 4])], &[], "[a b c], [c d] -> [a b d]"),
        case("MatMul", &[X(&[2, 3, 5, 6]), X(&[2, 3, 6, 4])], &[], "[a b c d], [a b d e] -> [a b c e]"),
        case("MatMul", &[X(&[2, 1, 5, 6]), X(&[3, 6, 4])], &[], "[a 1 b c], [d c e] -> [a d b e]"),
        case("MatMul", &[X(&[6]), W(&[6, 4])], &[], "[a], [a b] -> [b]"),
        case("MatMul", &[X(&[2, 5, 6]), W(&[6])], &[], "[a b c], [c] -> [a b]"),
        case("m:FusedMatMul m:TransposeMatMul", &[X(&[5, 6]), W(&[6, 4])], &scaled, "[a b], [b c] -> [a c]"),
        case("m:FusedMatMul m:TransposeMatMul", &[X(&[3, 6, 5]), X(&[3, 4, 6])], &both, "[a b c], [a d b] -> [a c d]"),
        case("m:FusedMatMulActivation", &[X(&[2, 5, 6]), W(&[6, 4])], &relu, "[a b c], [c d] -> [a b d]"),
        case("m:FusedMatMulActivation", &[X(&[2, 5, 6]), W(&[6, 4])], &softmax, "[a b c], [c d] -> [a b d]"),
        case("m:FusedMatMulActivation", &[X(&[3, 6, 5]), X(&[3, 4, 6])], &of_rows, "[a b c], [a d b] -> [a c d]"),
        // The first axis of A moves behind the second.
        case("m:FusedMatMulActivation", &[X(&[5, 3, 6]), X(&[3, 6, 4])], &first_moves, "[a b c], [b c d] -> [b a d]"),
        case(
            "m:FusedMatMulActivation",
            &[X(&[5, 6]), X(&[6, 4])],
            &[activation("Hardmax")],
            "[a! b!], [c! d!] -> ? {barrier: the fused activation Hardmax can't be lowered}",
        ),
        case("m:GemmFastGelu", &[X(&[2, 5, 6]), W(&[6, 4])], &[], "[a b c], [c d] -> [a b d]"),
        case("m:GemmFastGelu", &[X(&[2, 5, 6]), W(&[6, 4]), W(&[4])], &[], "[a b c], [c d], [d] -> [a b d]"),
        case("Gemm m:FusedGemm", &[X(&[5, 6]), W(&[6, 4]), W(&[4])], &[], "[a b], [b c], [c] -> [a c]"),
        case("Gemm", &[X(&[5, 6]), W(&[4, 6])], &[attr_int("transB", 1)], "[a b], [c b] -> [a c]"),
        case("Gemm", &[X(&[6, 5]), W(&[6, 4]), W(&[5, 1])], &[attr_int("transA", 1)], "[a b], [a c], [b 1] -> [b c]"),
        case("Gemm", &[X(&[6, 5]), W(&[4, 6]), X(&[5, 4])], &both, "[a b], [c a], [b c] -> [b c]"),
        case("m:FusedGemm", &[X(&[5, 6]), W(&[6, 4])], &relu, "[a b], [b c] -> [a c]"),
        case("Einsum", &[X(&[2, 5, 6]), X(&[2, 6, 4])], &equation("bij,bjk->bik"), "[a b c], [a c d] -> [a b d]"),
        case(
            "Einsum",
            &[X(&[2, 3, 5, 6]), X(&[2, 3, 7, 6])],
            &equation("bhid,bhjd->bhij"),
            "[a b c d], [a b e d] -> [a b c e]",
        ),
        case("Einsum", &[X(&[2, 5, 6])], &equation("...ij->...ji"), "[a b c] -> [a c b]"),
        case(
            "Einsum",
            &[X(&[5, 5])],
            &equation("ii->i"),
            "[a! b!] -> ? {barrier: a letter occurs twice in one operand}",
        ),
        // Without `->`, the output has the letters that occur once, in alphabetical order.
        case("Einsum", &[X(&[5, 6]), W(&[6, 4])], &equation("cb,ba"), "[a b], [b c] -> [c a]"),
    ]
}

fn pools() -> Vec<Vec<Case>> {
    let kernel = [attr_ints("kernel_shape", &[2, 2])];
    let x = X(&[2, 6, 8, 9]);
    vec![
        case("MaxPool AveragePool LpPool", &[x], &kernel, "[a b c! d!] -> [a b . .]"),
        case("GlobalMaxPool GlobalAveragePool GlobalLpPool", &[x], &[], "[a b c! d!] -> [a b 1 1]"),
        in_opset(10, "MaxPool", &[X(&[2, 6, 8])], &[attr_ints("kernel_shape", &[3])], "[a b c!] -> [a b .]"),
    ]
}
