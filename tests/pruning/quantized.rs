//! Quantised networks and weights of rare types: they are pruned like their float counterparts, and verified without
//! false alarms.

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::load::from_bytes;
use onnx_diffprune::onnx::{
    AttributeProto, DataType, ModelProto, SparseTensorProto, TensorProto, attr_int, attr_tensor,
};
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;

use std::path::Path;

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::support::builder::{Builder, node, value};
use crate::support::cuts::{Pruned, prune_model};

fn pruned_half(model: &ModelProto) -> Pruned {
    prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)))
}

/// Adds an initializer of any type. Returns its name.
fn raw(b: &mut Builder, dtype: DataType, dims: &[i64], bytes: Vec<u8>) -> String {
    let name = format!("raw_{}", b.graph.initializer.len());
    b.graph.initializer.push(TensorProto {
        name: name.clone(),
        data_type: dtype as i32,
        dims: dims.to_vec(),
        raw_data: Bytes::from(bytes),
        ..TensorProto::default()
    });
    name
}

/// Takes an initializer out of the network. Returns its elements and shape.
fn take(b: &mut Builder, name: &str) -> (Vec<f32>, Vec<i64>) {
    let at = b.graph.initializer.iter().position(|tensor| tensor.name == name).unwrap();
    let tensor = &b.graph.initializer[at];
    let values = tensor.raw_data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let dims = tensor.dims.clone();
    // Names of initializers contain their position, so it must not be removed from the list.
    b.graph.initializer[at].name = format!("{name}_taken");
    (values, dims)
}

/// The quantisation of a weight.
#[derive(Clone, Copy)]
struct Form {
    dtype: DataType,
    /// The axis of the scales. `None`: one scale for all elements.
    axis: Option<usize>,
    zero_point: i64,
}

const INT8: Form = Form { dtype: DataType::Int8, axis: Some(0), zero_point: 0 };

fn integer(dtype: DataType, value: i64) -> Vec<u8> {
    match dtype {
        DataType::Int8 | DataType::Uint8 => value.to_le_bytes()[..1].to_vec(),
        DataType::Int16 | DataType::Uint16 => value.to_le_bytes()[..2].to_vec(),
        DataType::Int32 => value.to_le_bytes()[..4].to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Adds a weight or bias behind a DequantizeLinear. Returns the value's name and its dequantised elements.
fn quantized(b: &mut Builder, weight: &str, form: Form) -> (String, Vec<f32>) {
    let (values, dims) = take(b, weight);
    let inner: i64 = form.axis.map_or(1, |axis| dims[axis + 1..].iter().product());
    let count = form.axis.map_or(1, |axis| dims[axis]);
    let steps = match form.dtype {
        DataType::Int8 | DataType::Uint8 => 100.0,
        DataType::Int16 | DataType::Uint16 => 20_000.0,
        _ => 1e6,
    };
    let of = |at: usize| (at as i64 / inner % count) as usize;
    let mut scales = vec![0.0f32; count as usize];
    for (at, value) in values.iter().enumerate() {
        scales[of(at)] = scales[of(at)].max(value.abs() / steps);
    }
    let mut bytes = Vec::new();
    let mut stands_for = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let step = (value / scales[of(at)]).round();
        bytes.extend(integer(form.dtype, step as i64 + form.zero_point));
        stands_for.push(step * scales[of(at)]);
    }
    let parameter_dims: &[i64] = if form.axis.is_some() { &[count] } else { &[] };
    let q = raw(b, form.dtype, &dims, bytes);
    let s = b.floats(&scales, parameter_dims);
    let zeros = (0..count).flat_map(|_| integer(form.dtype, form.zero_point)).collect();
    let z = raw(b, form.dtype, parameter_dims, zeros);
    let axis = [attr_int("axis", form.axis.unwrap_or(0) as i64)];
    (b.op("DequantizeLinear", &[&q, &s, &z], &axis), stands_for)
}

/// Rounds activations to 256 levels.
fn rounded(b: &mut Builder, x: &str, dtype: DataType, zero_point: i64) -> String {
    let s = b.float(0.04);
    let z = raw(b, dtype, &[], integer(dtype, zero_point));
    let q = b.op("QuantizeLinear", &[x, &s, &z], &[]);
    b.op("DequantizeLinear", &[&q, &s, &z], &[])
}

/// The quantisation of weights, biases and activations in a chain of convolutions.
#[derive(Clone, Copy, Default)]
struct Kinds {
    weight: Option<Form>,
    bias: Option<Form>,
    /// Type and zero point.
    activation: Option<(DataType, i64)>,
}

/// Builds a chain of convolutions, and its float counterpart with the same numbers.
fn chain(kinds: Kinds) -> (ModelProto, ModelProto) {
    let build = |is_twin: bool| {
        let mut b = Builder::new(3);
        let mut y = "x".to_owned();
        for (from, to) in [(4, 24), (24, 16), (16, 4)] {
            let parts = [(b.layer_weight(&[to, from, 3, 3], from * 9), kinds.weight), (b.bias(to), kinds.bias)];
            let mut inputs = vec![y.clone()];
            for (weight, form) in parts {
                let Some(form) = form else {
                    inputs.push(weight);
                    continue;
                };
                let dims = b.graph.initializer.iter().find(|tensor| tensor.name == weight).unwrap().dims.clone();
                let (name, numbers) = quantized(&mut b, &weight, form);
                inputs.push(if is_twin { b.floats(&numbers, &dims) } else { name });
            }
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            y = b.op("Conv", &inputs, &[onnx_diffprune::onnx::attr_ints("pads", &[1; 4])]);
            if to > 4 {
                y = b.op("Relu", &[&y], &[]);
            }
            if let Some((dtype, zero_point)) = kinds.activation.filter(|_| !is_twin) {
                y = rounded(&mut b, &y, dtype, zero_point);
            }
        }
        let mut model = b.finish(&[1, 4, 8, 8], &y, &[1, 4, 8, 8]);
        model.graph.as_mut().unwrap().drop_dead();
        model
    };
    (build(false), build(true))
}

fn kept(pruned: &Pruned) -> Vec<Vec<usize>> {
    pruned.cut.plan.groups.iter().filter(|group| group.reason.is_none()).map(|group| group.kept.clone()).collect()
}

/// Writes a modified copy of the pruned file.
fn changed(pruned: &Pruned, change: impl FnOnce(&mut ModelProto)) -> NamedTempFile {
    let mut model = ModelProto::decode(Bytes::from(std::fs::read(&pruned.path).unwrap())).unwrap();
    change(&mut model);
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    file
}

/// Swaps the first two rows of the first weight with this element type.
fn swap_rows(model: &mut ModelProto, dtype: DataType) {
    let is_weight = |tensor: &&mut TensorProto| tensor.data_type == dtype as i32 && tensor.dims.len() > 1;
    let weight = model.graph.as_mut().unwrap().initializer.iter_mut().find(is_weight).unwrap();
    let row = weight.raw_data.len() / weight.dims[0] as usize;
    let mut bytes = weight.raw_data.to_vec();
    bytes[..2 * row].rotate_left(row);
    weight.raw_data = bytes.into();
}

#[test]
fn quantised_weights_and_biases_are_cut_like_their_float_counterparts() {
    let uint8 = Form { dtype: DataType::Uint8, axis: Some(0), zero_point: 119 };
    let scalar = Form { axis: None, ..INT8 };
    let int16 = Form { dtype: DataType::Int16, ..scalar };
    let bias = Form { dtype: DataType::Int32, axis: Some(0), zero_point: 0 };
    let cases = [
        (Some(INT8), Some(bias)),
        (Some(INT8), Some(Form { axis: None, ..bias })),
        (Some(INT8), None),
        (None, Some(bias)),
        (Some(scalar), Some(bias)),
        (Some(uint8), Some(bias)),
        (Some(Form { axis: None, ..uint8 }), None),
        (Some(int16), None),
        (Some(Form { dtype: DataType::Uint16, axis: Some(0), zero_point: 30_000 }), Some(bias)),
    ];
    for (weight, bias) in cases {
        let (model, twin) = chain(Kinds { weight, bias, activation: None });
        let (pruned, twin) = (pruned_half(&model), pruned_half(&twin));
        let what = weight.map(|form| (form.dtype, form.axis));
        assert_eq!(kept(&pruned), kept(&twin), "{what:?}");
        let counted = |pruned: &Pruned| [pruned.cut.before, pruned.cut.after].map(|cost| (cost.parameters, cost.macs));
        assert_eq!(counted(&pruned), counted(&twin), "{what:?}");
        assert!(pruned.share() < 0.45, "{what:?}: {}", pruned.share());
        let report = pruned.report();
        assert!(report.passed && report.worst() < 1e-5, "{what:?}: {report:?}");
        if let Some(form) = weight {
            let wrong = changed(&pruned, |model| swap_rows(model, form.dtype));
            assert!(!pruned.verify(wrong.path()).passed, "{what:?}: swapped rows were not detected");
        }
    }
}

#[test]
fn quantised_activations_are_verified_with_and_without_their_rounding() {
    let bias = Form { dtype: DataType::Int32, axis: Some(0), zero_point: 0 };
    for (dtype, zero_point) in [(DataType::Uint8, 128), (DataType::Int8, 0), (DataType::Uint8, 3)] {
        for (weight, bias) in [(Some(INT8), Some(bias)), (None, None)] {
            let (model, _) = chain(Kinds { weight, bias, activation: Some((dtype, zero_point)) });
            let pruned = pruned_half(&model);
            let report = pruned.report();
            assert!(report.passed, "{dtype:?}: {report:?}");
            let (unrounded, rounded): (Vec<_>, Vec<_>) = report.runs.iter().partition(|run| run.unrounded);
            assert!(!rounded.is_empty() && !unrounded.is_empty(), "{report:?}");
            assert!(rounded.iter().all(|run| (0.01..0.1).contains(&run.rtol)), "{report:?}");
            assert!(unrounded.iter().all(|run| run.rtol == 1e-4 && run.worst() < 1e-5), "{report:?}");
            assert!(report.notes.is_empty(), "{report:?}");
            // With activations rounded to 256 levels, this change would be hidden.
            let nudged = changed(&pruned, |model| {
                let graph = model.graph.as_mut().unwrap();
                let is_weight = |tensor: &&mut TensorProto| tensor.dims.len() == 4;
                let weight = graph.initializer.iter_mut().find(is_weight).unwrap();
                let mut bytes = weight.raw_data.to_vec();
                match weight.element_type() {
                    DataType::Int8 => bytes[0] = bytes[0].wrapping_add(8),
                    _ => {
                        let value = f32::from_le_bytes(bytes[..4].try_into().unwrap()) + 0.02;
                        bytes[..4].copy_from_slice(&value.to_le_bytes());
                    }
                }
                weight.raw_data = bytes.into();
            });
            assert!(!pruned.verify(nudged.path()).passed, "{dtype:?}: a nudged weight was not detected");
        }
    }
}

#[test]
fn integer_operators_between_the_steps_pass_without_rounding_too() {
    let mut b = Builder::new(9);
    let y = b.conv("x", 4, 16, 3, 1);
    let (s, z) = (b.float(0.05), raw(&mut b, DataType::Uint8, &[], vec![100]));
    let (s2, z2) = (b.float(0.04), raw(&mut b, DataType::Uint8, &[], vec![90]));
    let q = b.op("QuantizeLinear", &[&y, &s, &z], &[]);
    let q = b.op("MaxPool", &[&q], &[onnx_diffprune::onnx::attr_ints("kernel_shape", &[2, 2])]);
    let q = b.op("Transpose", &[&q], &[onnx_diffprune::onnx::attr_ints("perm", &[0, 1, 3, 2])]);
    let y = b.op("DequantizeLinear", &[&q, &s2, &z2], &[]);
    let y = b.conv(&y, 16, 4, 3, 1);
    let pruned = pruned_half(&b.finish(&[1, 4, 8, 8], &y, &[1, 4, 7, 7]));
    let report = pruned.report();
    assert!(report.passed && report.runs.iter().any(|run| run.unrounded), "{report:?}");
}

/// Builds two linear layers whose weights are made by `weight`, which takes the shape and returns a name.
fn linear(mut weight: impl FnMut(&mut Builder, &[i64]) -> String) -> ModelProto {
    let mut b = Builder::new(7);
    let first = weight(&mut b, &[32, 64]);
    let y = b.op("MatMul", &["x", &first], &[]);
    let y = b.op("Sigmoid", &[&y], &[]);
    let second = weight(&mut b, &[64, 32]);
    let y = b.op("MatMul", &[&y, &second], &[]);
    b.finish(&[3, 5, 32], &y, &[3, 5, 32])
}

fn check_linear(what: &str, model: &ModelProto) -> Pruned {
    let pruned = pruned_half(model);
    let report = pruned.report();
    assert!(report.passed, "{what}: {report:?}");
    assert!(report.runs.iter().any(|run| run.worst() < 1e-5 && run.rtol == 1e-4), "{what}: {report:?}");
    assert!((0.5..0.51).contains(&pruned.share()), "{what}: {}", pruned.share());
    pruned
}

#[test]
fn integer_weights_of_matrix_products_are_verified_in_float() {
    // ONNX Runtime would fuse these into products that round their activations.
    for axis in [None, Some(0), Some(1)] {
        for (dtype, zero_point) in [(DataType::Int8, 0), (DataType::Uint8, 128)] {
            let form = Form { dtype, axis, zero_point };
            check_linear(
                &format!("{dtype:?} {axis:?}"),
                &linear(|b, dims| {
                    let weight = b.layer_weight(dims, dims[0]);
                    quantized(b, &weight, form).0
                }),
            );
        }
    }
}

/// Returns bytes of moderate numbers in types of eight and sixteen bits.
fn small(count: i64, width: usize, low: u8, high: u8) -> Vec<u8> {
    let high_byte = |at: i64| (low + (at * 37 % i64::from(high - low)) as u8) | if at % 3 == 0 { 0x80 } else { 0 };
    (0..count).flat_map(|at| [vec![(at * 11) as u8; width - 1], vec![high_byte(at)]].concat()).collect()
}

#[test]
fn weights_of_types_that_where_does_not_support_are_masked_in_another() {
    let to_float = [attr_int("to", DataType::Float as i64)];
    for dtype in [
        DataType::Float8e4m3fn,
        DataType::Float8e4m3fnuz,
        DataType::Float8e5m2,
        DataType::Float8e5m2fnuz,
        DataType::Bfloat16,
        DataType::Float16,
        DataType::Int8,
        DataType::Uint8,
        DataType::Int16,
        DataType::Uint16,
    ] {
        let width = dtype.byte_size().unwrap();
        // The first byte of a number near 1/4 is 0x2C in eight bits, 0x3E in sixteen.
        let (low, high) = match dtype {
            DataType::Bfloat16 => (0x3C, 0x3F),
            DataType::Float16 => (0x28, 0x34),
            _ => (0x20, 0x30),
        };
        let pruned = check_linear(
            &format!("{dtype:?}"),
            &linear(|b, dims| {
                let bytes = small(dims.iter().product(), width, low, high);
                let weight = raw(b, dtype, dims, bytes);
                let weight = b.op("Cast", &[&weight], &to_float);
                let scale = b.float(if dtype.byte_size() == Some(1) { 0.05 } else { 0.01 });
                b.op("Mul", &[&weight, &scale], &[])
            }),
        );
        let wrong = changed(&pruned, |model| swap_rows(model, dtype));
        assert!(!pruned.verify(wrong.path()).passed, "{dtype:?}: swapped rows were not detected");
    }
}

#[test]
fn eight_bit_floats_behind_a_scale_are_cut() {
    let model = linear(|b, dims| {
        let bytes = small(dims.iter().product(), 1, 0x20, 0x30);
        let (weight, scale) = (raw(b, DataType::Float8e4m3fn, dims, bytes), b.float(0.125));
        let zero = raw(b, DataType::Float8e4m3fn, &[], vec![0]);
        b.op("DequantizeLinear", &[&weight, &scale, &zero], &[])
    });
    check_linear("float8", &model);
}

#[test]
fn a_boolean_mask_is_cut() {
    let mut b = Builder::new(7);
    let y = b.linear("x", 10, 16);
    let mask = raw(&mut b, DataType::Bool, &[1, 16], (0..16).map(|at| u8::from(at % 3 > 0)).collect());
    let zero = b.float(0.0);
    let y = b.op("Where", &[&mask, &y, &zero], &[]);
    let y = b.linear(&y, 16, 10);
    let pruned = pruned_half(&b.finish(&[3, 10], &y, &[3, 10]));
    assert!(pruned.report().passed && pruned.share() < 0.6, "{:?}", pruned.report());
}

#[test]
fn blocks_with_one_scale_each_are_removed_as_a_whole() {
    let block = 8;
    let model = linear(|b, dims| {
        let count: i64 = dims.iter().product();
        let bytes = (0..count).map(|at| (at * 53 % 199) as u8).collect();
        let weight = raw(b, DataType::Int8, dims, bytes);
        let blocks = [dims[0] / block, dims[1]];
        let scale = b.weight_around(&blocks, 0.002, 0.001);
        let attributes: [AttributeProto; 2] = [attr_int("axis", 0), attr_int("block_size", block)];
        b.op("DequantizeLinear", &[&weight, &scale], &attributes)
    });
    let pruned = check_linear("blocks", &model);
    // The second layer sums over the channels of the first, which are therefore removed in blocks of eight.
    let group = pruned.cut.plan.groups.iter().find(|group| group.reason.is_none()).unwrap();
    assert_eq!((group.channels, group.kept.len()), (8, 4), "{group:?}");
    let columns = pruned.cut.plan.tensors.iter().flat_map(|tensor| tensor.keep.values());
    let columns = columns.clone().find(|kept| kept.len() == 32).unwrap();
    assert!(columns.chunks(8).all(|block| block[0] % 8 == 0 && block[7] == block[0] + 7), "{columns:?}");
}

#[test]
fn packed_weights_are_kept_and_others_pruned() {
    let mut b = Builder::new(7);
    let packed = raw(&mut b, DataType::Int4, &[16, 32], (0..256).map(|at| (at * 31 % 251) as u8).collect());
    let scale = b.weight_around(&[32], 0.05, 0.02);
    let w = b.op("DequantizeLinear", &[&packed, &scale], &[attr_int("axis", 1)]);
    let y = b.op("MatMul", &["x", &w], &[]);
    let y = b.op("Sigmoid", &[&y], &[]);
    let y = b.linear(&y, 32, 64);
    let y = b.op("Sigmoid", &[&y], &[]);
    let y = b.linear(&y, 64, 16);
    let mut model = b.finish(&[3, 16], &y, &[3, 16]);
    model.ir_version = 10;
    let pruned = pruned_half(&model);
    assert!(pruned.report().passed, "{:?}", pruned.report());
    let groups = &pruned.cut.plan.groups;
    let reason = groups.iter().find(|group| group.channels == 32).unwrap().reason.clone().unwrap();
    assert!(reason.contains("int4"), "{reason}");
    assert_eq!(groups.iter().find(|group| group.channels == 64).unwrap().kept.len(), 32);
}

#[test]
fn a_sparse_weight_is_kept_with_a_reason() {
    let mut b = Builder::new(7);
    let y = b.op("MatMul", &["x", "sparse"], &[]);
    let y = b.op("Relu", &[&y], &[]);
    let y = b.linear(&y, 32, 64);
    let y = b.op("Relu", &[&y], &[]);
    let y = b.linear(&y, 64, 16);
    let mut model = b.finish(&[3, 16], &y, &[3, 16]);
    let places: Vec<i64> = (0..200).map(|at| at * 2 + 1).collect();
    let values: Vec<f32> = places.iter().map(|at| (*at as f32).sin()).collect();
    model.graph.as_mut().unwrap().sparse_initializer.push(SparseTensorProto {
        values: Some(TensorProto::of_floats("sparse", &values, &[200])),
        indices: Some(TensorProto::of_ints("", &places, &[200])),
        dims: vec![16, 32],
    });
    let pruned = pruned_half(&model);
    assert!(pruned.report().passed, "{:?}", pruned.report());
    let groups = &pruned.cut.plan.groups;
    let reason = groups.iter().find(|group| group.channels == 32).unwrap().reason.clone().unwrap();
    assert!(reason.contains("sparse, a sparse initializer"), "{reason}");
    assert_eq!(groups.iter().find(|group| group.channels == 64).unwrap().kept.len(), 32);
    assert!(pruned.cut.warnings.iter().any(|warning| warning.contains("sparse initializer")));
}

#[test]
fn tables_of_zeros_do_not_count_as_parameters() {
    let build = |zeros: f32| {
        let mut b = Builder::new(7);
        let y = b.linear("x", 16, 32);
        let table = TensorProto::of_floats("", &vec![zeros; 3 * 32], &[3, 32]);
        let mut constant = node("table", "Constant", &[], &["table"]);
        constant.attribute.push(attr_tensor("value", table));
        b.graph.node.push(constant);
        let y = b.op("Add", &[&y, "table"], &[]);
        let y = b.linear(&y, 32, 16);
        b.finish(&[3, 16], &y, &[3, 16])
    };
    let parameters = |model: &ModelProto| {
        let model = from_bytes(Path::new("net.onnx"), model.encode_to_vec().into()).unwrap();
        let analysis = analyse(&model).unwrap();
        let cut = cut(&analysis, &PruneOptions::by_magnitude(Target::Ratio(0.5)), None).unwrap();
        (cut.before.parameters, cut.after.parameters)
    };
    let of_layers = |hidden: u64| 16 * hidden + hidden + hidden * 16 + 16;
    assert_eq!(parameters(&build(0.0)), (of_layers(32), of_layers(16)));
    assert_eq!(parameters(&build(0.5)), (of_layers(32) + 96, of_layers(16) + 48));
}

#[test]
fn a_quantised_output_is_compared() {
    let mut b = Builder::new(3);
    let y = b.conv("x", 4, 16, 3, 1);
    let y = b.conv(&y, 16, 4, 3, 1);
    let (s, z) = (b.float(0.04), raw(&mut b, DataType::Uint8, &[], vec![128]));
    let q = b.op("QuantizeLinear", &[&y, &s, &z], &[]);
    let mut model = b.finish(&[1, 4, 8, 8], &q, &[1, 4, 8, 8]);
    model.graph.as_mut().unwrap().output = vec![onnx_diffprune::onnx::ValueInfoProto {
        r#type: crate::support::builder::value_of("y", 2, Some(&["1", "4", "8", "8"])).r#type,
        ..value("y", &[1, 4, 8, 8])
    }];
    let pruned = pruned_half(&model);
    assert!(pruned.report().passed, "{:?}", pruned.report());
    let wrong = changed(&pruned, |model| swap_rows(model, DataType::Float));
    assert!(!pruned.verify(wrong.path()).passed);
}
