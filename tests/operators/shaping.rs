//! Operators that pass on, cut, join or repeat axes.

use onnx_diffprune::onnx::{TensorProto, attr_int, attr_ints, attr_string, attr_tensor};

use super::around::{Around::Conv, Around::MatMul, Around::StaticConv, CHANNELS};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    channels_are_removed_through_elementwise_copies,
    axes_of_size_one_can_be_added_and_removed,
    repeated_values_follow_the_channels_they_are_combined_with,
    blocks_of_pixels_are_moved_to_channels_and_back,
    padded_channels_are_kept,
    interpolation_does_not_couple_channels,
    tokens_are_split_into_heads,
];

type Built = (String, Option<i64>);

fn whole(value: String) -> Built {
    (value, Some(CHANNELS))
}

#[test]
fn channels_are_removed_through_elementwise_copies() {
    check("Identity", Conv, &[9, 21], Removed, |n, v| whole(n.op("Identity", &[v], &[])));
    check("Dropout", Conv, &[9, 12, 13], Removed, |n, v| whole(n.op("Dropout", &[v], &[])));
    check("Cast", Conv, &[9, 13, 20], Removed, |n, v| {
        let wide = n.op("Cast", &[v], &[attr_int("to", 11)]);
        whole(n.op("Cast", &[&wide], &[attr_int("to", 1)]))
    });
    check("CastLike", Conv, &[15], Removed, |n, v| {
        let like = n.float(1.0);
        whole(n.op("CastLike", &[v, &like], &[]))
    });
    check("Clip", Conv, &[11, 13], Removed, |n, v| {
        let (low, high) = (n.float(-0.5), n.float(0.5));
        whole(n.op("Clip", &[v, &low, &high], &[]))
    });
    check("Where", Conv, &[9, 16], Removed, |n, v| {
        // A maximum: both operands are equal where the selection changes, so the loss has a derivative.
        let other = n.weight(&[CHANNELS, 1, 1]);
        let condition = n.op("Greater", &[v, &other], &[]);
        whole(n.op("Where", &[&condition, v, &other], &[]))
    });
    check("Trilu", Conv, &[14], Removed, |n, v| whole(n.op("Trilu", &[v], &[])));
    check("Trilu of com.microsoft", Conv, &[13], Removed, |n, v| {
        whole(n.fused("Trilu", &[v], &[attr_int("upper", 0)], 1).remove(0))
    });
}

fn squeeze(n: &mut Builder, op: &str, v: &str, axis: i64) -> String {
    if n.opset < 13 {
        return n.op(op, &[v], &[attr_ints("axes", &[axis])]);
    }
    let axes = n.ints(&[axis]);
    n.op(op, &[v, &axes], &[])
}

#[test]
fn axes_of_size_one_can_be_added_and_removed() {
    check("Unsqueeze and Squeeze", Conv, &[11, 13, 21], Removed, |n, v| {
        let v = squeeze(n, "Unsqueeze", v, 2);
        let v = n.op("Relu", &[&v], &[]);
        whole(squeeze(n, "Squeeze", &v, -3))
    });
    check("Flatten", StaticConv, &[9, 13], Removed, |n, v| {
        let w = n.weight(&[CHANNELS * 24, 4]);
        let v = n.op("Flatten", &[v], &[]);
        (n.op("MatMul", &[&v, &w], &[]), None)
    });
}

#[test]
fn repeated_values_follow_the_channels_they_are_combined_with() {
    check("Expand to a constant shape", Conv, &[9, 13], Removed, |n, v| {
        let (one, shape) = (n.weight(&[1, 1, 1, 1]), n.ints(&[1, CHANNELS, 1, 1]));
        let bias = n.op("Expand", &[&one, &shape], &[]);
        whole(n.op("Add", &[v, &bias], &[]))
    });
    check("Expand to a computed shape", Conv, &[13], Removed, |n, v| {
        let (row, index, rest) = (n.weight(&[1, CHANNELS, 1, 1]), n.ints(&[0]), n.ints(&[CHANNELS, 1, 1]));
        let shape = n.op("Shape", &[v], &[]);
        let batch = n.op("Gather", &[&shape, &index], &[]);
        let shape = n.op("Concat", &[&batch, &rest], &[attr_int("axis", 0)]);
        let bias = n.op("Expand", &[&row, &shape], &[]);
        whole(n.op("Add", &[v, &bias], &[]))
    });
    check("copies that only a weight consumes", Conv, &[13], Removed, |n, v| {
        let shape = n.ints(&[1, 6, 1, 1]);
        let mean = n.op("ReduceMean", &[v], &[attr_ints("axes", &[1])]);
        let copies = n.op("Expand", &[&mean, &shape], &[]);
        (n.op("Concat", &[v, &copies], &[attr_int("axis", 1)]), Some(CHANNELS + 6))
    });
    check("ConstantOfShape", Conv, &[9, 20], Removed, |n, v| {
        let shape = n.ints(&[1, CHANNELS, 1, 1]);
        let value = attr_tensor("value", TensorProto::of_floats("", &[0.5], &[1]));
        let bias = n.op("ConstantOfShape", &[&shape], &[value]);
        whole(n.op("Add", &[v, &bias], &[]))
    });
    check("Tile of channels", Conv, &[9, 13], Removed, |n, v| {
        let repeats = n.ints(&[1, 3, 1, 1]);
        (n.op("Tile", &[v, &repeats], &[]), Some(3 * CHANNELS))
    });
    check("Tile of pixels", Conv, &[9, 13], Removed, |n, v| {
        let repeats = n.ints(&[1, 1, 2, 2]);
        whole(n.op("Tile", &[v, &repeats], &[]))
    });
}

#[test]
fn blocks_of_pixels_are_moved_to_channels_and_back() {
    for mode in ["DCR", "CRD"] {
        check(mode, Conv, &[11, 13], Removed, |n, v| {
            let attributes = [attr_int("blocksize", 2), attr_string("mode", mode)];
            (n.op("DepthToSpace", &[v], &attributes), Some(CHANNELS / 4))
        });
    }
    check("SpaceToDepth", StaticConv, &[9, 13], Removed, |n, v| {
        (n.op("SpaceToDepth", &[v], &[attr_int("blocksize", 2)]), Some(4 * CHANNELS))
    });
}

/// Adds a Pad, by an attribute or by an input.
fn pad(n: &mut Builder, v: &str, mode: &str, pads: &[i64]) -> String {
    let mode = attr_string("mode", mode);
    if n.opset < 11 {
        return n.op("Pad", &[v], &[mode, attr_ints("pads", pads)]);
    }
    let pads = n.ints(pads);
    n.op("Pad", &[v, &pads], &[mode])
}

#[test]
fn padded_channels_are_kept() {
    for mode in ["constant", "reflect", "edge"] {
        check(mode, Conv, &[9, 11, 13, 18], Removed, |n, v| whole(pad(n, v, mode, &[0, 0, 1, 1, 0, 0, 1, 1])));
    }
    let channels = [0, 2, 0, 0, 0, 1, 0, 0];
    check("of channels", Conv, &[9, 11, 13, 18], Removed, |n, v| {
        (pad(n, v, "constant", &channels), Some(CHANNELS + 3))
    });
    check("of channels by reflection", Conv, &[13], Kept, |n, v| (pad(n, v, "reflect", &channels), Some(CHANNELS + 3)));
    check("of negative size", Conv, &[13], Kept, |n, v| {
        (pad(n, v, "constant", &[0, -2, 0, 0, 0, 0, 0, 0]), Some(CHANNELS - 2))
    });
    check("by computed amounts", Conv, &[11, 13, 18], Removed, |n, v| {
        // As many rows below the image as it has.
        let (shape, two) = (n.op("Shape", &[v], &[]), n.ints(&[2]));
        let rows = n.op("Gather", &[&shape, &two], &[attr_int("axis", 0)]);
        let (none, last) = (n.ints(&[0; 6]), n.ints(&[0]));
        let pads = n.op("Concat", &[&none, &rows, &last], &[attr_int("axis", 0)]);
        whole(n.op("Pad", &[v, &pads], &[attr_string("mode", "constant")]))
    });
    check("of named axes", Conv, &[18], Removed, |n, v| {
        let (pads, value, axes) = (n.ints(&[2, 1]), n.float(0.5), n.ints(&[1]));
        (n.op("Pad", &[v, &pads, &value, &axes], &[]), Some(CHANNELS + 3))
    });
}

#[test]
fn interpolation_does_not_couple_channels() {
    check("Upsample", Conv, &[9], Removed, |n, v| {
        let scales = n.floats(&[1.0, 1.0, 2.0, 2.0], &[4]);
        whole(n.op("Upsample", &[v, &scales], &[]))
    });
    check("Resize 10", Conv, &[10], Removed, |n, v| {
        let scales = n.floats(&[1.0, 1.0, 2.0, 2.0], &[4]);
        whole(n.op("Resize", &[v, &scales], &[]))
    });
    for mode in ["nearest", "linear", "cubic"] {
        for scale in [2.0, 0.5] {
            check(mode, Conv, &[11, 13, 19], Removed, |n, v| {
                let (region, scales) = (n.floats(&[], &[0]), n.floats(&[1.0, 1.0, scale, scale], &[4]));
                whole(n.op("Resize", &[v, &region, &scales], &[attr_string("mode", mode)]))
            });
        }
        check("sizes of all axes", StaticConv, &[11, 18], Removed, |n, v| {
            let (none, sizes) = (n.floats(&[], &[0]), n.ints(&[2, CHANNELS, 8, 12]));
            whole(n.op("Resize", &[v, &none, &none, &sizes], &[attr_string("mode", mode)]))
        });
    }
    check("sizes that are computed", Conv, &[11, 13, 18], Removed, |n, v| {
        let (zero, one, two, four) = (n.ints(&[0]), n.ints(&[1]), n.ints(&[2]), n.ints(&[4]));
        let (none, factor, channels) = (n.floats(&[], &[0]), n.ints(&[2, 2]), n.ints(&[CHANNELS]));
        let shape = n.op("Shape", &[v], &[]);
        let batch = n.op("Slice", &[&shape, &zero, &one, &zero], &[]);
        let image = n.op("Slice", &[&shape, &two, &four, &zero], &[]);
        let image = n.op("Mul", &[&image, &factor], &[]);
        let sizes = n.op("Concat", &[&batch, &channels, &image], &[attr_int("axis", 0)]);
        whole(n.op("Resize", &[v, &none, &none, &sizes], &[attr_string("mode", "nearest")]))
    });
    check("scales of named axes", Conv, &[18], Removed, |n, v| {
        let scales = n.floats(&[2.0, 2.0], &[2]);
        whole(n.op("Resize", &[v, "", &scales], &[attr_ints("axes", &[2, 3])]))
    });
}

#[test]
fn tokens_are_split_into_heads() {
    check("Reshape and Transpose", MatMul, &[9, 13], Removed, |n, v| {
        let (heads, tokens) = (n.ints(&[0, -1, 3, 4]), n.ints(&[0, -1, CHANNELS]));
        let v = n.op("Reshape", &[v, &heads], &[]);
        let v = n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 2, 1, 3])]);
        let v = n.op("Transpose", &[&v], &[attr_ints("perm", &[0, 2, 1, 3])]);
        whole(n.op("Reshape", &[&v, &tokens], &[]))
    });
}
