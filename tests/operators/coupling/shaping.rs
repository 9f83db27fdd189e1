//! Operators that move, join and split axes.

use onnx_diffprune::onnx::{attr_float, attr_int, attr_ints, attr_string};

use super::In::{Floats, Int, Ints, Omitted, X};
use super::{Case, case, check, in_opset, network, outputs};
use crate::support::builder::value_of;

#[test]
fn texts() {
    check(cases());
}

pub(super) fn cases() -> Vec<Vec<Case>> {
    [reshapes(), moves(), spans(), repetitions(), images()].into_iter().flatten().collect()
}

fn reshapes() -> Vec<Vec<Case>> {
    let x = X(&[2, 12, 4, 5]);
    vec![
        case("Reshape", &[x, Ints(&[2, 3, 4, 20])], &[], "[a (b3|c4) d e], [.] -> [a b|c (d e)]"),
        case("Reshape", &[x, Ints(&[0, -1, 20])], &[], "[a b c d], [.] -> [a b (c d)]"),
        case("Reshape", &[x, Ints(&[0, -1])], &[], "[a b c d], [.] -> [a (b c d)]"),
        // The boundaries of old and new axes do not coincide.
        case(
            "Reshape",
            &[X(&[6, 4]), Ints(&[4, 6])],
            &[],
            "[a! b!], [.] -> [. .] {barrier: the new sizes [4, 6] do not divide the old ones [6, 4] evenly}",
        ),
        case("Flatten", &[x], &[], "[a b c d] -> [a (b c d)]"),
        case("Flatten", &[x], &[attr_int("axis", 0)], "[a b c d] -> [1 (a b c d)]"),
        case("Flatten", &[x], &[attr_int("axis", -1)], "[a b c d] -> [(a b c) d]"),
        // Splitting into heads: heads and head dimensions are separate axes.
        network("Transpose", "[a b c d] -> [a c b d]", |net| {
            net.graph.input = vec![value_of("x", 1, Some(&["2", "5", "12"]))];
            let shape = net.ints(&[0, 0, 3, 4]);
            let x = net.op("Reshape", &["x", &shape], &[]);
            net.op("Transpose", &[&x], &[attr_ints("perm", &[0, 2, 1, 3])]);
        }),
        // Merging heads.
        network("Reshape", "[a b c d], [.] -> [a b (c d)]", |net| {
            net.graph.input = vec![value_of("x", 1, Some(&["2", "3", "5", "4"]))];
            let shape = net.ints(&[0, 0, -1]);
            let x = net.op("Transpose", &["x"], &[attr_ints("perm", &[0, 2, 1, 3])]);
            net.op("Reshape", &[&x, &shape], &[]);
        }),
        // A Reshape that reverts another.
        network("Reshape", "[a b|c d], [.] -> [a (b|c) d]", |net| {
            net.graph.input = vec![value_of("x", 1, Some(&["2", "12", "5"]))];
            let (shape, back) = (net.ints(&[2, 3, 4, 5]), net.ints(&[2, 12, 5]));
            let x = net.op("Reshape", &["x", &shape], &[]);
            net.op("Reshape", &[&x, &back], &[]);
        }),
    ]
}

fn moves() -> Vec<Vec<Case>> {
    let x = X(&[2, 5, 6]);
    let axes = |axes: &[i64]| [attr_ints("axes", axes)];
    vec![
        case("Transpose", &[x], &[attr_ints("perm", &[0, 2, 1])], "[a b c] -> [a c b]"),
        case("Transpose", &[x], &[], "[a b c] -> [c b a]"),
        case("Squeeze", &[X(&[2, 1, 6]), Ints(&[1])], &[], "[a 1 b], [1] -> [a b]"),
        case("Squeeze", &[X(&[2, 1, 6, 1])], &[], "[a 1 b 1] -> [a b]"),
        in_opset(11, "Squeeze", &[X(&[2, 1, 6])], &axes(&[-2]), "[a 1 b] -> [a b]"),
        case("Unsqueeze", &[X(&[2, 6]), Ints(&[-1])], &[], "[a b], [1] -> [a b 1]"),
        case("Unsqueeze", &[X(&[2, 6]), Ints(&[0, 2])], &[], "[a b], [.] -> [1 a 1 b]"),
        in_opset(11, "Unsqueeze", &[X(&[2, 6])], &axes(&[1]), "[a b] -> [a 1 b]"),
        case("Shape", &[x], &[], "[a b c] -> [.]"),
        case("Size", &[x], &[], "[a b c] -> []"),
    ]
}

fn spans() -> Vec<Vec<Case>> {
    let x = X(&[2, 8, 6]);
    let one = Ints(&[1]);
    let axis = |axis| [attr_int("axis", axis)];
    let mode = |mode: &str| [attr_string("mode", mode)];
    vec![
        case("Concat", &[X(&[2, 6]), X(&[2, 4])], &axis(1), "[a b], [a c] -> [a b+c]"),
        case("Concat", &[X(&[2, 6]), X(&[3, 6]), X(&[4, 6])], &axis(-2), "[a b], [c b], [d b] -> [a+c+d b]"),
        network("Concat", "[a b], [a b] -> [a b+b]", |net| {
            net.graph.input = vec![value_of("x", 1, Some(&["2", "6"]))];
            net.op("Concat", &["x", "x"], &[attr_int("axis", 1)]);
        }),
        outputs(2, "Split", &[x, Ints(&[3, 5])], &axis(1), "[a b c], [.] -> [a b[0:3] c], [a b[3:8] c]"),
        outputs(
            2,
            "Split",
            &[x],
            &[attr_int("axis", -1), attr_int("num_outputs", 2)],
            "[a b c] -> [a b c[0:3]], [a b c[3:6]]",
        ),
        outputs(
            3,
            "Split",
            &[X(&[8, 2])],
            &[attr_int("num_outputs", 3)],
            "[a b] -> [a[0:3] b], [a[3:6] b], [a[6:8] b]",
        ),
        case("Slice", &[x, Ints(&[2]), Ints(&[6]), one], &[], "[a b c], [1], [1], [1] -> [a b[2:6] c]"),
        case("Slice", &[x, Ints(&[-3]), Ints(&[1000]), Ints(&[-1])], &[], "[a b c], [1], [1], [1] -> [a b c[3:6]]"),
        case("Slice", &[x, Ints(&[0]), Ints(&[1000]), one], &[], "[a b c], [1], [1], [1] -> [a b c]"),
        case(
            "Slice",
            &[x, Ints(&[0]), Ints(&[8]), one, Ints(&[2])],
            &[],
            "[a b1+b+c1+c+d1+d+e1+e f], [1], [1], [1], [1] -> [a b+c+d+e f]",
        ),
        // A single remaining index is not a channel axis.
        case("Slice", &[x, Ints(&[1]), Ints(&[2]), one], &[], "[a b![1] c], [1], [1], [1] -> [a 1 c]"),
        in_opset(
            9,
            "Slice",
            &[x],
            &[attr_ints("starts", &[1]), attr_ints("ends", &[3]), attr_ints("axes", &[1])],
            "[a b c] -> [a b[1:3] c]",
        ),
        case("Pad", &[x, Ints(&[0, 1, 0, 0, 2, 0])], &[], "[a b c], [.] -> [a d1!+b+e2! c]"),
        case("Pad", &[x, Ints(&[1, 2]), Omitted, Ints(&[-1])], &[], "[a b c], [.], -, [1] -> [a b d1!+c+e2!]"),
        case("Pad", &[x, Ints(&[0, 1, 0, 0, 0, 0])], &mode("reflect"), "[a b! c], [.] -> [a . c]"),
        case("Pad", &[x, Ints(&[0, -1, 0, 0, 0, 0])], &[], "[a b! c], [.] -> [a . c]"),
        in_opset(10, "Pad", &[X(&[2, 6])], &[attr_ints("pads", &[0, 0, 0, 3])], "[a b] -> [a b+c3!]"),
        case("CenterCropPad", &[x, Ints(&[4])], &[attr_ints("axes", &[1])], "[a b! c], [1] -> [a . c]"),
        case("CenterCropPad", &[x, Ints(&[2, 8, 9])], &[], "[a b c!], [.] -> [a b .]"),
    ]
}

fn repetitions() -> Vec<Vec<Case>> {
    vec![
        case("Expand", &[X(&[6, 1]), Ints(&[2, 6, 8])], &[], "[a 1], [.] -> [b* a c*]"),
        case("Expand", &[X(&[2, 6]), Ints(&[1])], &[], "[a b], [1] -> [a b]"),
        case("Tile", &[X(&[2, 6]), Ints(&[1, 3])], &[], "[a b], [.] -> [a (c3! b)]"),
        case("Tile", &[X(&[2, 6]), Ints(&[1, 1])], &[], "[a b], [.] -> [a b]"),
    ]
}

fn images() -> Vec<Vec<Case>> {
    let block = |mode: &str| [attr_int("blocksize", 2), attr_string("mode", mode)];
    let x = X(&[2, 6, 4, 5]);
    vec![
        case("DepthToSpace", &[X(&[2, 12, 4, 5])], &block("DCR"), "[a (b4! c3) d! e!] -> [a c . .]"),
        case("DepthToSpace", &[X(&[2, 12, 4, 5])], &block("CRD"), "[a (b3 c4!) d! e!] -> [a b . .]"),
        case("SpaceToDepth", &[x], &[attr_int("blocksize", 1)], "[a b c! d!] -> [a b . .]"),
        case("SpaceToDepth", &[X(&[2, 3, 4, 6])], &[attr_int("blocksize", 2)], "[a b c! d!] -> [a (e4! b) . .]"),
        case("Resize", &[x, Omitted, Omitted, Ints(&[2, 6, 8, 10])], &[], "[a b c! d!], -, -, [.] -> [a b . .]"),
        case("Resize", &[x, Omitted, Floats(&[1.0, 1.0, 2.0, 2.0])], &[], "[a b c! d!], -, [.] -> [a b . .]"),
        case("Resize", &[x, Omitted, Floats(&[2.0])], &[attr_ints("axes", &[-1])], "[a b c d!], -, [1] -> [a b c .]"),
        in_opset(9, "Upsample", &[x, Floats(&[1.0, 1.0, 2.0, 2.0])], &[], "[a b c! d!], [.] -> [a b . .]"),
        case("Col2Im", &[X(&[2, 12, 20]), Ints(&[5, 6]), Ints(&[2, 2])], &[], "[a (b3 c4!) d!], [.], [.] -> [a b . .]"),
        case("AffineGrid", &[X(&[2, 2, 3]), Ints(&[2, 6, 4, 5])], &[], "[a! b! c!], [.] -> [. . . .]"),
        case("GridSample m:GridSample", &[x, X(&[2, 3, 7, 2])], &[], "[a! b c! d!], [e! f! g! h!] -> [. b . .]"),
        case(
            "RoiAlign",
            &[x, X(&[3, 4]), super::In::Indices(&[3])],
            &[attr_int("output_height", 2), attr_int("output_width", 2), attr_float("spatial_scale", 1.0)],
            "[a! b c! d!], [e! f!], [.] -> [. b . .]",
        ),
        case(
            "MaxRoiPool",
            &[x, X(&[3, 5])],
            &[attr_ints("pooled_shape", &[2, 2])],
            "[a! b c! d!], [e! f!] -> [. b . .]",
        ),
        case("DFT", &[X(&[3, 8, 2]), Omitted, Int(1)], &[], "[a b! c!], -, [] -> [a . .]"),
        in_opset(17, "DFT", &[X(&[3, 8, 2])], &[attr_int("axis", 1)], "[a b! c!] -> [a . .]"),
        case("STFT", &[X(&[2, 32, 1]), Int(8), Omitted, Int(16)], &[], "[a! b! 1], [], -, [] -> [. . . .]"),
    ]
}
