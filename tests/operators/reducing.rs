//! Operators that sum, average or compare along axes, and quantisation.

use onnx_diffprune::onnx::{attr_int, attr_ints};

use super::around::{Around::Conv, Around::StaticConv, CHANNELS};
use super::{Fate::Kept, Fate::Removed, check};
use crate::support::builder::Builder;

/// The tests of this file.
pub(super) const ALL: &[fn()] = &[
    reductions_use_the_kept_channels,
    digits_that_an_operator_mixes_are_kept_whole,
    digits_of_channels_can_be_reduced,
    pooling_does_not_couple_channels,
    cumulative_sums_keep_their_axis_whole,
    channels_are_removed_through_quantisation,
    scales_of_quantised_weights_have_gradients,
    random_numbers_do_not_depend_on_channels,
];

const REDUCTIONS: [&str; 10] = [
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
];

/// Adds a reduction, with axes by an attribute or by an input.
fn reduce(n: &mut Builder, op: &str, v: &str, axes: &[i64], keepdims: i64) -> String {
    // Logarithms need positive inputs.
    let v = if op == "ReduceLogSum" { n.op("Abs", &[v], &[]) } else { v.to_owned() };
    let keepdims = attr_int("keepdims", keepdims);
    if n.opset >= if op == "ReduceSum" { 13 } else { 18 } {
        let axes = n.ints(axes);
        return n.op(op, &[&v, &axes], &[keepdims]);
    }
    n.op(op, &[&v], &[keepdims, attr_ints("axes", axes)])
}

#[test]
fn reductions_use_the_kept_channels() {
    for op in REDUCTIONS {
        check(op, Conv, &[11, 13, 18], Removed, |n, v| {
            let statistic = reduce(n, op, v, &[1], 1);
            (n.op("Add", &[v, &statistic], &[]), Some(CHANNELS))
        });
        check(&format!("{op} of pixels"), Conv, &[11, 13, 18], Removed, |n, v| {
            (reduce(n, op, v, &[-1, 2], 1), Some(CHANNELS))
        });
        check(op, Conv, &[13, 18], Removed, |n, v| (reduce(n, op, v, &[1], 0), None));
        check(op, Conv, &[13, 18], Removed, |n, v| {
            let mut positive = n.op("Sigmoid", &[v], &[]);
            if op == "ReduceProd" {
                // Near one, so that the product of all elements is finite.
                let small = n.float(0.01);
                let exponent = n.op("Mul", &[v, &small], &[]);
                positive = n.op("Exp", &[&exponent], &[]);
            }
            let statistic = n.op(op, &[&positive], &[]);
            (n.op("Mul", &[v, &statistic], &[]), Some(CHANNELS))
        });
    }
    check("nothing reduced", Conv, &[18], Removed, |n, v| {
        (n.op("ReduceMean", &[v], &[attr_int("noop_with_empty_axes", 1)]), Some(CHANNELS))
    });
}

/// Checks a network whose channels are split into rows of three or four, with an operator that mixes one of these
/// digits.
fn of_digits(name: &str, build: impl Fn(&mut Builder, &str) -> String) {
    check(name, StaticConv, &[17], Removed, |n, v| {
        let (split, joined) = (n.ints(&[0, 3, 4, 4, 6]), n.ints(&[0, CHANNELS, 4, 6]));
        let v = n.op("Reshape", &[v, &split], &[]);
        let v = build(n, &v);
        (n.op("Reshape", &[&v, &joined], &[]), Some(CHANNELS))
    });
}

#[test]
fn digits_that_an_operator_mixes_are_kept_whole() {
    of_digits("nothing", |n, v| n.op("Relu", &[v], &[]));
    for axis in [1, 2] {
        for op in ["Softmax", "LogSoftmax", "LpNormalization"] {
            of_digits(&format!("{op} along {axis}"), |n, v| n.op(op, &[v], &[attr_int("axis", axis)]));
        }
        of_digits(&format!("Hardmax along {axis}"), |n, v| {
            let marks = n.op("Hardmax", &[v], &[attr_int("axis", axis)]);
            n.op("Mul", &[v, &marks], &[])
        });
    }
    for axes in [&[1, 3][..], &[2, 3], &[1, 2, 3], &[2, 3, 4], &[1, 2, 3, 4]] {
        of_digits(&format!("MeanVarianceNormalization along {axes:?}"), |n, v| {
            n.op("MeanVarianceNormalization", &[v], &[attr_ints("axes", axes)])
        });
    }
    for axes in [&[1][..], &[2], &[1, 2], &[2, 3, 4], &[1, 2, 3, 4], &[1, 3]] {
        for op in ["ReduceMean", "ReduceMax", "ReduceL2"] {
            of_digits(&format!("{op} along {axes:?}"), |n, v| {
                let statistic = n.op(op, &[v], &[attr_ints("axes", axes)]);
                n.op("Sub", &[v, &statistic], &[])
            });
        }
    }
    of_digits("a layer norm by hand", |n, v| {
        let axes = attr_ints("axes", &[1, 2, 3, 4]);
        let mean = n.op("ReduceMean", &[v], std::slice::from_ref(&axes));
        let v = n.op("Sub", &[v, &mean], &[]);
        let square = n.op("Mul", &[&v, &v], &[]);
        let variance = n.op("ReduceMean", &[&square], &[axes]);
        let epsilon = n.float(1e-5);
        let variance = n.op("Add", &[&variance, &epsilon], &[]);
        let deviation = n.op("Sqrt", &[&variance], &[]);
        n.op("Div", &[&v, &deviation], &[])
    });
}

/// A digit of the channels is left as an axis.
#[test]
fn digits_of_channels_can_be_reduced() {
    for (axes, channels) in [(&[1][..], 4), (&[2], 3)] {
        check(&format!("ReduceMean along {axes:?}"), StaticConv, &[17], Removed, |n, v| {
            let split = n.ints(&[0, 3, 4, 4, 6]);
            let v = n.op("Reshape", &[v, &split], &[]);
            let attributes = [attr_ints("axes", axes), attr_int("keepdims", 0)];
            (n.op("ReduceMean", &[&v], &attributes), Some(channels))
        });
    }
}

#[test]
fn pooling_does_not_couple_channels() {
    for op in ["MaxPool", "AveragePool", "LpPool"] {
        for ceil in [0, 1] {
            let opsets: &[i64] = if op == "LpPool" && ceil == 1 { &[18] } else { &[11, 13, 18] };
            check(op, Conv, opsets, Removed, |n, v| {
                let mut attributes = vec![
                    attr_ints("kernel_shape", &[3, 3]),
                    attr_ints("strides", &[2, 2]),
                    attr_ints("pads", &[1, 1, 1, 1]),
                ];
                attributes.extend((ceil == 1).then(|| attr_int("ceil_mode", 1)));
                (n.op(op, &[v], &attributes), Some(CHANNELS))
            });
        }
    }
    for op in ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"] {
        check(op, Conv, &[9, 13], Removed, |n, v| (n.op(op, &[v], &[]), Some(CHANNELS)));
    }
}

#[test]
fn cumulative_sums_keep_their_axis_whole() {
    for (axis, fate) in [(2, Removed), (1, Kept)] {
        check("CumSum", Conv, &[11, 14], fate, |n, v| {
            let axis = n.ints_of(&[axis], &[]);
            (n.op("CumSum", &[v, &axis], &[]), Some(CHANNELS))
        });
    }
    for (exclusive, reverse) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        let attributes = [attr_int("exclusive", exclusive), attr_int("reverse", reverse)];
        check("CumSum of pixels", Conv, &[14], Removed, |n, v| {
            let axis = n.ints_of(&[3], &[]);
            (n.op("CumSum", &[v, &axis], &attributes), Some(CHANNELS))
        });
        check("CumProd", Conv, &[26], Removed, |n, v| {
            let (axis, one) = (n.ints_of(&[3], &[]), n.float(1.0));
            let near_one = n.op("Sigmoid", &[v], &[]);
            let near_one = n.op("Add", &[&near_one, &one], &[]);
            (n.op("CumProd", &[&near_one, &axis], &attributes), Some(CHANNELS))
        });
    }
}

#[test]
fn channels_are_removed_through_quantisation() {
    check("one scale", Conv, &[10, 13], Removed, |n, v| {
        let scale = n.float(0.05);
        let v = n.op("QuantizeLinear", &[v, &scale], &[]);
        (n.op("DequantizeLinear", &[&v, &scale], &[]), Some(CHANNELS))
    });
    check("a scale per channel", Conv, &[13], Removed, |n, v| {
        let scales = n.floats(&[0.05; CHANNELS as usize], &[CHANNELS]);
        let v = n.op("QuantizeLinear", &[v, &scales], &[attr_int("axis", 1)]);
        (n.op("DequantizeLinear", &[&v, &scales], &[attr_int("axis", -3)]), Some(CHANNELS))
    });
}

/// Integer weights with float scales.
#[test]
fn scales_of_quantised_weights_have_gradients() {
    for (per_channel, has_zero_point) in [(true, true), (true, false), (false, true), (false, false)] {
        check("DequantizeLinear of a constant", Conv, &[13, 21], Removed, |n, v| {
            let values: Vec<f32> = (0..CHANNELS * CHANNELS).map(|at| (at * 37 % 101) as f32).collect();
            let (weight, one) = (n.floats(&values, &[CHANNELS, CHANNELS, 1, 1]), n.float(1.0));
            let integers = n.op("QuantizeLinear", &[&weight, &one], &[]);
            let sizes: &[i64] = if per_channel { &[CHANNELS] } else { &[] };
            let scale = n.weight(sizes);
            let middle = n.floats(&[40.0; CHANNELS as usize][..if per_channel { CHANNELS as usize } else { 1 }], sizes);
            let middle = n.op("QuantizeLinear", &[&middle, &one], &[]);
            let mut inputs = vec![integers.as_str(), &scale];
            inputs.extend(has_zero_point.then_some(middle.as_str()));
            let weight = n.op("DequantizeLinear", &inputs, &[attr_int("axis", 0)]);
            (n.op("Conv", &[v, &weight], &[]), Some(CHANNELS))
        });
    }
}

#[test]
fn random_numbers_do_not_depend_on_channels() {
    check("RandomNormal", Conv, &[13], Removed, |n, v| {
        let zero = n.float(0.0);
        let noise = n.op("RandomNormal", &[], &[attr_ints("shape", &[1, 1, 1])]);
        let noise = n.op("Mul", &[&noise, &zero], &[]);
        (n.op("Add", &[v, &noise], &[]), Some(CHANNELS))
    });
}
