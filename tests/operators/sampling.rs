//! Operators that sample images at computed positions, transform along positions, or combine neighbours.

use onnx_diffprune::onnx::{attr_float, attr_int, attr_ints, attr_string};

use super::around::{
    Around::{Conv, StaticConv},
    CHANNELS,
};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    images_are_sampled_channel_by_channel,
    volumes_are_sampled_channel_by_channel,
    columns_lose_the_channels_of_their_image,
    cropped_axes_keep_all_channels,
    transforms_along_positions_leave_channels_alone,
    operators_over_neighbouring_channels_keep_all_channels,
];

const C: i64 = CHANNELS;

#[test]
fn images_are_sampled_channel_by_channel() {
    // Positions inside and outside of the image, beyond one reflection. None is where the derivative jumps.
    let places: Vec<f32> = (0..2 * 3 * 5 * 2).map(|at| ((at * 37 % 61) as f32 / 30.0 - 1.0) * 1.7).collect();
    for (opset, mode) in [(16, "bilinear"), (16, "nearest"), (16, "bicubic"), (20, "linear"), (22, "cubic")] {
        for (padding, align) in
            [("zeros", 0), ("zeros", 1), ("border", 0), ("border", 1), ("reflection", 0), ("reflection", 1)]
        {
            let attributes =
                [attr_string("mode", mode), attr_string("padding_mode", padding), attr_int("align_corners", align)];
            let what = format!("GridSample {mode} {padding} {align}");
            check(&what, StaticConv, &[opset], Removed, |n, v| {
                let grid = n.floats(&places, &[2, 3, 5, 2]);
                (n.op("GridSample", &[v, &grid], &attributes), Some(C))
            });
            let name = match mode {
                "nearest" => "nearest GridSample at learned positions".to_owned(),
                _ => format!("{what} at learned positions"),
            };
            check(&name, StaticConv, &[opset], Removed, |n, v| {
                let grid = learned(n, &places, &[2, 3, 5, 2]);
                (n.op("GridSample", &[v, &grid], &attributes), Some(C))
            });
        }
    }
    check("GridSample of com.microsoft", StaticConv, &[13, 17], Removed, |n, v| {
        let grid = n.floats(&places, &[2, 3, 5, 2]);
        (n.fused("GridSample", &[v, &grid], &[attr_int("align_corners", 1)], 1).remove(0), Some(C))
    });
    check("GridSample of com.microsoft at learned positions", StaticConv, &[13], Removed, |n, v| {
        let grid = learned(n, &places, &[2, 3, 5, 2]);
        (n.fused("GridSample", &[v, &grid], &[], 1).remove(0), Some(C))
    });
    check("GridSample of com.microsoft at learned positions, later", StaticConv, &[17], Removed, |n, v| {
        let grid = learned(n, &places, &[2, 3, 5, 2]);
        (n.fused("GridSample", &[v, &grid], &[], 1).remove(0), Some(C))
    });
    check("AffineGrid", StaticConv, &[20], Removed, |n, v| {
        let (theta, size) = (n.weight(&[2, 2, 3]), n.ints(&[2, C, 3, 5]));
        let grid = n.op("AffineGrid", &[&theta, &size], &[]);
        (n.op("GridSample", &[v, &grid], &[]), Some(C))
    });
    check("RoiAlign", Conv, &[16], Removed, |n, v| {
        let rois = n.floats(&[0.0, 0.0, 2.0, 2.0, 1.0, 0.0, 3.0, 2.0], &[2, 4]);
        let batch = n.ints(&[0, 0]);
        let size = [attr_int("output_height", 2), attr_int("output_width", 3)];
        (n.op("RoiAlign", &[v, &rois, &batch], &size), Some(C))
    });
    check("MaxRoiPool", StaticConv, &[13], Removed, |n, v| {
        let rois = n.floats(&[0.0, 0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 0.0, 3.0, 2.0], &[2, 5]);
        (n.op("MaxRoiPool", &[v, &rois], &[attr_ints("pooled_shape", &[2, 2])]), Some(C))
    });
}

/// Positions to which a weight adds small offsets.
fn learned(net: &mut Builder, places: &[f32], dims: &[i64]) -> String {
    let (places, moved) = (net.floats(places, dims), net.weight_around(dims, 0.0, 0.05));
    net.op("Add", &[&places, &moved], &[])
}

/// Reshapes `[2, channels, 4, 6]` to volumes `[2, channels, 2, 2, 6]`.
fn volumes(net: &mut Builder, images: &str) -> String {
    let shape = net.ints(&[2, -1, 2, 2, 6]);
    net.op("Reshape", &[images, &shape], &[])
}

#[test]
fn volumes_are_sampled_channel_by_channel() {
    let places: Vec<f32> = (0..2 * 3 * 2 * 4 * 3).map(|at| ((at * 37 % 61) as f32 / 30.0 - 1.0) * 1.7).collect();
    let back = |n: &mut Builder, y: &str| {
        let shape = n.ints(&[2, C, 6, 4]);
        n.op("Reshape", &[y, &shape], &[])
    };
    for mode in ["linear", "nearest"] {
        for (padding, align) in [("zeros", 1), ("border", 0), ("reflection", 0), ("reflection", 1)] {
            let attributes =
                [attr_string("mode", mode), attr_string("padding_mode", padding), attr_int("align_corners", align)];
            check(&format!("GridSample {mode} {padding} {align} of volumes"), StaticConv, &[20], Removed, |n, v| {
                let v = volumes(n, v);
                let grid = match mode {
                    "nearest" => n.floats(&places, &[2, 3, 2, 4, 3]),
                    _ => learned(n, &places, &[2, 3, 2, 4, 3]),
                };
                let y = n.op("GridSample", &[&v, &grid], &attributes);
                (back(n, &y), Some(C))
            });
        }
    }
    for align in [0, 1] {
        check("AffineGrid of volumes", StaticConv, &[20], Removed, |n, v| {
            let v = volumes(n, v);
            let (theta, size) = (n.weight_around(&[2, 3, 4], 0.1, 0.3), n.ints(&[2, C, 3, 2, 4]));
            let grid = n.op("AffineGrid", &[&theta, &size], &[attr_int("align_corners", align)]);
            let y = n.op("GridSample", &[&v, &grid], &[attr_int("align_corners", align)]);
            (back(n, &y), Some(C))
        });
    }
}

#[test]
fn columns_lose_the_channels_of_their_image() {
    check("Col2Im", StaticConv, &[18], Removed, |n, v| {
        let shape = n.ints(&[2, C, 24]);
        let columns = n.op("Reshape", &[v, &shape], &[]);
        let (image, block) = (n.ints(&[5, 7]), n.ints(&[2, 2]));
        (n.op("Col2Im", &[&columns, &image, &block], &[]), Some(C / 4))
    });
    check("Col2Im with strides", StaticConv, &[18], Removed, |n, v| {
        let shape = n.ints(&[2, C, 24]);
        let columns = n.op("Reshape", &[v, &shape], &[]);
        let (image, block) = (n.ints(&[8, 6]), n.ints(&[3, 2]));
        let attributes =
            [attr_ints("strides", &[2, 1]), attr_ints("dilations", &[1, 2]), attr_ints("pads", &[1, 0, 0, 2])];
        (n.op("Col2Im", &[&columns, &image, &block], &attributes), Some(C / 6))
    });
}

#[test]
fn cropped_axes_keep_all_channels() {
    for (axes, shape, fate) in [
        (Some(vec![2, -1]), vec![3, 8], Removed),
        (Some(vec![1, 2]), vec![C, 2], Removed),
        (None, vec![2, C, 3, 6], Removed),
        (Some(vec![2, 3]), vec![7, 3], Removed),
        (Some(vec![1]), vec![C - 2], Kept),
    ] {
        check("CenterCropPad", StaticConv, &[18], fate, |n, v| {
            let channels = if fate == Kept { C - 2 } else { C };
            let shape = n.ints(&shape);
            let attributes: Vec<_> = axes.iter().map(|axes| attr_ints("axes", axes)).collect();
            (n.op("CenterCropPad", &[v, &shape], &attributes), Some(channels))
        });
    }
}

#[test]
fn transforms_along_positions_leave_channels_alone() {
    for opset in [17, 20] {
        check("DFT", StaticConv, &[opset], Removed, |n, v| {
            let last = n.ints(&[4]);
            let x = n.op("Unsqueeze", &[v, &last], &[]);
            let y = if opset < 20 {
                n.op("DFT", &[&x], &[attr_int("axis", 3)])
            } else {
                let axis = n.ints_of(&[3], &[]);
                n.op("DFT", &[&x, "", &axis], &[])
            };
            let axes = n.ints(&[4]);
            let y = if opset < 18 {
                n.op("ReduceL2", &[&y], &[attr_ints("axes", &[4]), attr_int("keepdims", 0)])
            } else {
                n.op("ReduceL2", &[&y, &axes], &[attr_int("keepdims", 0)])
            };
            (y, Some(C))
        });
    }
    let turned = |n: &mut Builder, v: &str, perm: &[i64], axes: [i64; 2]| {
        let x = n.op("Transpose", &[v], &[attr_ints("perm", perm)]);
        let lengths = n.ints(&[2, 3, 1, 4, 2, 1, 3, 2, 4, 1, 2, 3][..if axes[1] == 0 { 2 } else { 4 }]);
        let attributes = [attr_int("time_axis", axes[0]), attr_int("batch_axis", axes[1])];
        let y = n.op("ReverseSequence", &[&x, &lengths], &attributes);
        let mut back = [0; 4];
        perm.iter().enumerate().for_each(|(at, axis)| back[*axis as usize] = at as i64);
        n.op("Transpose", &[&y], &[attr_ints("perm", &back)])
    };
    check("ReverseSequence", StaticConv, &[13], Removed, |n, v| (turned(n, v, &[0, 2, 1, 3], [1, 0]), Some(C)));
    check("ReverseSequence of channels", StaticConv, &[13], Kept, |n, v| {
        (turned(n, v, &[0, 1, 2, 3], [1, 0]), Some(C))
    });
    for (axis, fate) in [(2, Removed), (1, Kept)] {
        check("Compress", StaticConv, &[13], fate, |n, v| {
            let condition = n.ints(&[1, 0, 1, 1]);
            let condition = n.op("Cast", &[&condition], &[attr_int("to", 9)]);
            let y = n.op("Compress", &[v, &condition], &[attr_int("axis", axis)]);
            (y, Some(if axis == 1 { 3 } else { C }))
        });
    }
    check("Det", StaticConv, &[13], Removed, |n, v| {
        let (starts, ends, axes) = (n.ints(&[1]), n.ints(&[5]), n.ints(&[3]));
        let x = n.op("Slice", &[v, &starts, &ends, &axes], &[]);
        let y = n.op("Det", &[&x], &[]);
        let axes = n.ints(&[2, 3]);
        (n.op("Unsqueeze", &[&y, &axes], &[]), Some(C))
    });
}

#[test]
fn operators_over_neighbouring_channels_keep_all_channels() {
    for size in [3, 5] {
        check("LRN", Conv, &[13], Kept, |n, v| {
            let attributes = [attr_int("size", size), attr_float("alpha", 0.5), attr_float("beta", 0.6)];
            (n.op("LRN", &[v], &attributes), Some(C))
        });
    }
    for axes in [None, Some([1, 2, 3])] {
        check("MeanVarianceNormalization", Conv, &[13], Removed, |n, v| {
            let attributes: Vec<_> = axes.iter().map(|axes| attr_ints("axes", axes)).collect();
            (n.op("MeanVarianceNormalization", &[v], &attributes), Some(C))
        });
    }
}
