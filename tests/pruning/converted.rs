//! Pruned files that were converted to half precision after the cut.

use bytes::Bytes;
use half::{bf16, f16};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, ModelProto, NodeProto, TensorProto, attr_int, attr_tensor, type_proto};
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, VerifyReport, verify_plan};
use prost::Message;
use tempfile::NamedTempFile;

use crate::support::builder::{Builder, node};
use crate::support::cuts::{Pruned, prune_model};
use crate::support::fixtures::runtime;

/// Builds a convolutional network with a norm, a constant of a node, a tiny and a huge constant.
fn net() -> ModelProto {
    let mut b = Builder::new(5);
    let y = b.conv("x", 4, 32, 3, 1);
    let y = b.group_norm(&y, 32, 8);
    let y = b.silu(&y);
    let mut constant = node("scale", "Constant", &[], &["scale"]);
    let values: Vec<f32> = (0..32).map(|at| 0.5 + at as f32 / 100.0).collect();
    constant.attribute.push(attr_tensor("value", TensorProto::of_floats("", &values, &[32, 1, 1])));
    b.graph.node.push(constant);
    let y = b.op("Mul", &[&y, "scale"], &[]);
    let (tiny, huge) = (b.float(3e-8), b.float(1e20));
    let y = b.op("Add", &[&y, &tiny], &[]);
    let y = b.op("Min", &[&y, &huge], &[]);
    let y = b.conv(&y, 32, 4, 3, 1);
    b.finish(&[1, 4, 8, 8], &y, &[1, 4, 8, 8])
}

fn pruned_net() -> Pruned {
    prune_model(&net(), &PruneOptions::by_magnitude(Target::Ratio(0.5)))
}

/// The kind of conversion of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Weights are cast to float32. The weight is renamed, or the value after the cast.
    Weights { renames_weight: bool },
    /// Everything is converted, with or without casts at inputs and outputs.
    All { keeps_io: bool, clamps: bool },
}

fn to_half(tensor: &mut TensorProto, dtype: DataType, clamps: bool) {
    let numbers = tensor.raw_data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let clamped = |number: f32| match number.abs() {
        size if clamps && size > 0.0 && size < 1e-7 => 1e-7_f32.copysign(number),
        size if clamps && size > 1e4 => 1e4_f32.copysign(number),
        _ => number,
    };
    let bytes = |number: f32| match dtype {
        DataType::Float16 => f16::from_f32(clamped(number)).to_le_bytes(),
        _ => bf16::from_f32(clamped(number)).to_le_bytes(),
    };
    tensor.raw_data = Bytes::from(numbers.flat_map(bytes).collect::<Vec<u8>>());
    tensor.data_type = dtype as i32;
}

fn cast(name: &str, from: &str, to: &str, dtype: DataType) -> NodeProto {
    NodeProto { attribute: vec![attr_int("to", dtype as i64)], ..node(name, "Cast", &[from], &[to]) }
}

/// Converts a file as converters do.
fn converted(model: &mut ModelProto, dtype: DataType, how: How) {
    let graph = model.graph.as_mut().unwrap();
    let is_float = |tensor: &TensorProto| tensor.data_type == DataType::Float as i32;
    graph.value_info.clear();
    match how {
        How::Weights { renames_weight } => {
            let mut casts = Vec::new();
            for tensor in graph.initializer.iter_mut().filter(|tensor| is_float(tensor) && tensor.dims.len() > 1) {
                to_half(tensor, dtype, false);
                let (name, other) = (tensor.name.clone(), format!("{}_other", tensor.name));
                let step = format!("cast_{name}");
                if renames_weight {
                    tensor.name.clone_from(&other);
                    casts.push(cast(&step, &other, &name, DataType::Float));
                    continue;
                }
                casts.push(cast(&step, &name, &other, DataType::Float));
                let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
                inputs.filter(|input| **input == name).for_each(|input| input.clone_from(&other));
            }
            graph.node.splice(0..0, casts);
        }
        How::All { keeps_io, clamps } => {
            let of_nodes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
            let tensors = graph.initializer.iter_mut().chain(of_nodes.filter_map(|attribute| attribute.t.as_mut()));
            tensors.filter(|tensor| is_float(tensor)).for_each(|tensor| to_half(tensor, dtype, clamps));
            if keeps_io {
                let names = graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
                for name in names.filter(|name| matches!(name.as_str(), "x" | "y")) {
                    *name = format!("{name}_inner");
                }
                graph.node.insert(0, cast("in", "x", "x_inner", dtype));
                graph.node.push(cast("out", "y_inner", "y", DataType::Float));
                return;
            }
            for value in graph.input.iter_mut().chain(&mut graph.output) {
                if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().unwrap().value.as_mut() {
                    tensor.elem_type = dtype as i32;
                }
            }
        }
    }
}

fn verified(pruned: &Pruned, change: impl FnOnce(&mut ModelProto)) -> VerifyReport {
    let mut model = ModelProto::decode(Bytes::from(std::fs::read(&pruned.path).unwrap())).unwrap();
    change(&mut model);
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    let file = load(file.path()).unwrap();
    verify_plan(pruned.analysis, &pruned.cut.plan, &pruned.path, &file, runtime(), &VerifyOptions::default()).unwrap()
}

const WAYS: [How; 6] = [
    How::Weights { renames_weight: true },
    How::Weights { renames_weight: false },
    How::All { keeps_io: true, clamps: false },
    How::All { keeps_io: true, clamps: true },
    How::All { keeps_io: false, clamps: false },
    How::All { keeps_io: false, clamps: true },
];

#[test]
fn converted_files_are_compared_with_the_original_rounded_in_the_same_way() {
    let pruned = pruned_net();
    for dtype in [DataType::Float16, DataType::Bfloat16] {
        for how in WAYS {
            let report = verified(&pruned, |model| converted(model, dtype, how));
            assert!(report.passed, "{dtype:?} {how:?}: {report:?}");
            let conversion = report.conversion.as_ref().unwrap();
            assert_eq!(conversion.to, dtype.spec_name(), "{how:?}");
            assert_eq!(conversion.weights_only, matches!(how, How::Weights { .. }), "{how:?}");
            assert!(report.notes.iter().any(|note| note.contains(&dtype.spec_name())), "{:?}", report.notes);
            let exact: Vec<_> = report.runs.iter().filter(|run| !run.converted).collect();
            assert!(!exact.is_empty() && exact.iter().all(|run| run.rtol == 1e-4 && run.worst() < 1e-5), "{report:?}");
        }
    }
}

#[test]
fn faults_in_converted_files_are_detected() {
    let pruned = pruned_net();
    for how in WAYS {
        let report = verified(&pruned, |model| {
            converted(model, DataType::Float16, how);
            let graph = model.graph.as_mut().unwrap();
            let is_weight = |tensor: &&mut TensorProto| tensor.dims.len() == 4;
            let weight = graph.initializer.iter_mut().find(is_weight).unwrap();
            let row = weight.raw_data.len() / weight.dims[0] as usize;
            let mut bytes = weight.raw_data.to_vec();
            bytes[..2 * row].rotate_left(row);
            weight.raw_data = bytes.into();
        });
        assert!(!report.passed, "{how:?}: swapped rows were not detected");
        let report = verified(&pruned, |model| {
            converted(model, DataType::Float16, how);
            let graph = model.graph.as_mut().unwrap();
            let relu = graph.node.iter_mut().find(|node| node.op_type == "Sigmoid").unwrap();
            relu.op_type = "Relu".to_owned();
        });
        assert!(!report.passed, "{how:?}: another activation was not detected");
    }
}

#[test]
fn an_unconverted_file_is_not_verified_as_converted() {
    let pruned = pruned_net();
    let report = verified(&pruned, |_| ());
    assert!(report.passed && report.conversion.is_none(), "{report:?}");
}
