//! Every kind of layer, and every way in which its weight is stored.

use bytes::Bytes;
use half::{bf16, f16};
use onnx_diffprune::onnx::{DataType, TensorProto, attr_float, attr_int, attr_ints, attr_string};

use super::{half, network, options, refitted};
use crate::support::builder::Builder;

/// The layer after the ReLU: 8 to 4 channels.
type Second = fn(&mut Builder, &str) -> String;

fn check(what: &str, second: Second, left: f64) {
    refitted(&half(&network(false, second)), &options()).check(what, left);
}

/// Transposes `[2, 8, 8, 8]` to channels last.
fn last(b: &mut Builder, x: &str) -> String {
    b.op("Transpose", &[x], &[attr_ints("perm", &[0, 2, 3, 1])])
}

fn first(b: &mut Builder, x: &str) -> String {
    b.op("Transpose", &[x], &[attr_ints("perm", &[0, 3, 1, 2])])
}

#[test]
fn every_kind_of_layer_is_fitted() {
    check("conv", |b, y| b.conv(y, 8, 4, 3, 1), 1e-5);
    check(
        "conv_transpose",
        |b, y| {
            let (w, bias) = (b.layer_weight(&[8, 4, 3, 3], 72), b.bias(4));
            b.op("ConvTranspose", &[y, &w, &bias], &[attr_ints("pads", &[1; 4])])
        },
        1e-5,
    );
    check(
        "matmul",
        |b, y| {
            let y = last(b, y);
            let y = b.linear(&y, 8, 4);
            first(b, &y)
        },
        1e-5,
    );
    check(
        "gemm",
        |b, y| {
            let (y, flat, back) = (last(b, y), b.ints(&[128, -1]), b.ints(&[2, 8, 8, 4]));
            let y = b.op("Reshape", &[&y, &flat], &[]);
            let (w, bias) = (b.layer_weight(&[4, 8], 8), b.bias(4));
            let flags = [attr_int("transB", 1), attr_float("alpha", 0.5), attr_float("beta", 2.0)];
            let y = b.op("Gemm", &[&y, &w, &bias], &flags);
            let y = b.op("Reshape", &[&y, &back], &[]);
            first(b, &y)
        },
        1e-5,
    );
    check(
        "einsum",
        |b, y| {
            let w = b.layer_weight(&[4, 8], 8);
            b.op("Einsum", &[&w, y], &[attr_string("equation", "oc,bchw->bohw")])
        },
        1e-5,
    );
}

#[test]
fn layers_with_a_common_sum_are_fitted_together_and_residual_streams_corrected() {
    check(
        "sum",
        |b, y| {
            let (a, c) = (b.conv(y, 8, 4, 3, 1), b.conv(y, 8, 4, 1, 1));
            b.op("Add", &[&a, &c], &[])
        },
        1e-5,
    );
    check(
        "stream",
        |b, y| {
            let y = b.conv(y, 8, 4, 3, 1);
            b.op("Add", &["x", &y], &[])
        },
        1e-5,
    );
}

#[test]
fn a_weight_that_two_layers_share_is_fitted() {
    // One bias for both layers, or one for each.
    let second: [Second; 2] = [
        |b, y| {
            let (w, bias) = (b.layer_weight(&[4, 8, 1, 1], 8), b.bias(4));
            let third = b.float(0.3);
            let scaled = b.op("Mul", &[y, &third], &[]);
            let (a, c) = (b.op("Conv", &[y, &w, &bias], &[]), b.op("Conv", &[&scaled, &w, &bias], &[]));
            let a = b.op("Tanh", &[&a], &[]);
            b.op("Add", &[&a, &c], &[])
        },
        |b, y| {
            let (w, one, other) = (b.layer_weight(&[4, 8, 1, 1], 8), b.bias(4), b.bias(4));
            let third = b.float(0.3);
            let scaled = b.op("Mul", &[y, &third], &[]);
            let (a, c) = (b.op("Conv", &[y, &w, &one], &[]), b.op("Conv", &[&scaled, &w, &other], &[]));
            let a = b.op("Tanh", &[&a], &[]);
            b.op("Add", &[&a, &c], &[])
        },
    ];
    for second in second {
        check("shared", second, 1e-5);
    }
}

#[test]
fn a_weight_shared_with_a_later_dependent_layer_is_not_fitted() {
    let second: Second = |b, y| {
        // Additions of the input keep all channels, so that both uses have the same ones.
        let y = b.conv(y, 8, 4, 3, 1);
        let mut y = b.op("Add", &["x", &y], &[]);
        let w = b.layer_weight(&[4, 4, 1, 1], 4);
        for _ in 0..2 {
            let z = b.op("Conv", &[&y, &w], &[]);
            y = b.op("Add", &["x", &z], &[]);
        }
        y
    };
    let outcome = refitted(&half(&network(false, second)), &options());
    let reason = outcome.layers.iter().find_map(|layer| layer.reason.clone()).unwrap();
    assert!(reason.contains("shares its weight"), "{reason}");
    assert!(outcome.layers.iter().any(|layer| layer.errors.is_some()), "{:?}", outcome.layers);
}

/// Adds a weight that is stored in another element type and cast back.
fn cast(b: &mut Builder, dtype: DataType, bytes: impl Fn(f32) -> [u8; 2]) -> String {
    let name = b.layer_weight(&[4, 8, 3, 3], 72);
    let tensor = b.graph.initializer.last_mut().unwrap();
    let values: Vec<f32> = tensor.raw_data.as_chunks::<4>().0.iter().map(|of| f32::from_le_bytes(*of)).collect();
    tensor.data_type = dtype as i32;
    tensor.raw_data = Bytes::from(values.into_iter().flat_map(bytes).collect::<Vec<u8>>());
    b.op("Cast", &[&name], &[attr_int("to", DataType::Float as i64)])
}

fn conv_by(b: &mut Builder, y: &str, w: &str) -> String {
    let bias = b.bias(4);
    b.op("Conv", &[y, w, &bias], &[attr_ints("pads", &[1; 4])])
}

#[test]
fn computed_weights_are_fitted() {
    check(
        "moved and scaled",
        |b, y| {
            let (w, by) = (b.layer_weight(&[8, 36], 72), b.weight_around(&[4, 1, 1, 1], 1.0, 0.5));
            let shape = b.ints(&[-1, 4, 3, 3]);
            let w = b.op("Reshape", &[&w, &shape], &[]);
            let w = b.op("Transpose", &[&w], &[attr_ints("perm", &[1, 0, 2, 3])]);
            let w = b.op("Mul", &[&w, &by], &[]);
            let w = b.op("Identity", &[&w], &[]);
            conv_by(b, y, &w)
        },
        1e-5,
    );
    check(
        "float16",
        |b, y| {
            let w = cast(b, DataType::Float16, |value| f16::from_f32(value).to_le_bytes());
            conv_by(b, y, &w)
        },
        1e-4,
    );
    check(
        "bfloat16",
        |b, y| {
            let w = cast(b, DataType::Bfloat16, |value| bf16::from_f32(value).to_le_bytes());
            conv_by(b, y, &w)
        },
        1e-3,
    );
    check(
        "split",
        |b, y| {
            let (w, sizes) = (b.layer_weight(&[8, 8, 1, 1], 8), b.ints(&[4, 4]));
            let parts = b.ops("Split", &[&w, &sizes], &[attr_int("axis", 0)], 2);
            let gate = conv(b, y, &parts[1]);
            let gate = b.op("Sigmoid", &[&gate], &[]);
            let y = conv(b, y, &parts[0]);
            b.op("Mul", &[&y, &gate], &[])
        },
        1e-5,
    );
    check(
        "joined",
        |b, y| {
            let parts = [b.layer_weight(&[2, 8, 3, 3], 72), b.layer_weight(&[2, 8, 3, 3], 72)];
            let w = b.op("Concat", &[&parts[0], &parts[1]], &[attr_int("axis", 0)]);
            conv_by(b, y, &w)
        },
        1e-5,
    );
}

fn conv(b: &mut Builder, y: &str, w: &str) -> String {
    let bias = b.bias(4);
    b.op("Conv", &[y, w, &bias], &[])
}

#[test]
fn quantised_weights_are_fitted_to_their_grid() {
    let second: Second = |b, y| {
        let name = b.layer_weight(&[4, 8, 3, 3], 72);
        let tensor: &mut TensorProto = b.graph.initializer.last_mut().unwrap();
        let values: Vec<f32> = tensor.raw_data.as_chunks::<4>().0.iter().map(|of| f32::from_le_bytes(*of)).collect();
        // Leaves room on the grid for weights that grow.
        let code = |value: &f32| ((value / 0.004).round() as i8).cast_unsigned();
        tensor.data_type = DataType::Int8 as i32;
        tensor.raw_data = Bytes::from(values.iter().map(code).collect::<Vec<u8>>());
        let scale = b.floats(&[0.004; 4], &[4]);
        let w = b.op("DequantizeLinear", &[&name, &scale], &[attr_int("axis", 0)]);
        conv_by(b, y, &w)
    };
    check("int8", second, 5e-3);
}

#[test]
fn a_missing_bias_is_added() {
    // The removed channels contributed a constant, which no weight can replace.
    let outcome = refitted(
        &half(&network(true, |b, y| {
            let w = b.layer_weight(&[4, 8, 1, 1], 8);
            b.op("Conv", &[y, &w], &[])
        })),
        &options(),
    );
    outcome.check("bias", 1e-5);
}

#[test]
fn nodes_without_names_get_biases() {
    let mut model = network(true, |b, y| {
        let mut layer = || {
            let w = b.layer_weight(&[4, 8, 1, 1], 8);
            b.op("Conv", &[y, &w], &[])
        };
        let (one, other) = (layer(), layer());
        b.op("Mul", &[&one, &other], &[])
    });
    // ONNX Runtime refuses two nodes with the same name, unless they have none.
    model.graph.as_mut().unwrap().node.iter_mut().for_each(|node| node.name.clear());
    refitted(&half(&model), &options()).check("biases", 1e-5);
}

#[test]
fn layers_with_a_common_sum_get_one_bias() {
    let outcome = refitted(
        &half(&network(true, |b, y| {
            let (a, c) = (b.conv(y, 8, 4, 1, 1), b.conv(y, 8, 4, 1, 1));
            b.op("Add", &[&a, &c], &[])
        })),
        &options(),
    );
    outcome.check("biases", 1e-5);
}
