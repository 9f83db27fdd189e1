//! Outputs that agree and yet prove nothing: zeros, tiny numbers, what is not a number, and what half precision rounds.

use std::path::Path;

use bytes::Bytes;
use onnx_diffprune::onnx::{DataType, ModelProto, type_proto};
use onnx_diffprune::prune::{PruneOptions, Target};
use prost::Message;
use tempfile::NamedTempFile;

use crate::support::builder::Builder;
use crate::support::cuts::{Pruned, prune_model};

/// Two convolutions with an activation between them, and `end` behind them.
fn net(end: impl FnOnce(&mut Builder, &str) -> String) -> ModelProto {
    let mut b = Builder::new(5);
    let y = b.conv("x", 3, 16, 3, 1);
    let y = b.silu(&y);
    let y = b.conv(&y, 16, 8, 3, 1);
    let y = end(&mut b, &y);
    b.finish(&[2, 3, 8, 8], &y, &[2, 8, 8, 8])
}

fn pruned_net(model: &ModelProto) -> Pruned {
    prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)))
}

/// The pruned file with the first and the last row of its first weight swapped.
fn swapped(pruned: &Pruned) -> NamedTempFile {
    let mut model = ModelProto::decode(Bytes::from(std::fs::read(&pruned.path).unwrap())).unwrap();
    let weight = model.graph.as_mut().unwrap().initializer.iter_mut().find(|tensor| tensor.dims.len() == 4).unwrap();
    let mut raw = weight.raw_data.to_vec();
    let row = raw.len() / weight.dims[0] as usize;
    let last = raw.len() - row;
    let (head, tail) = raw.split_at_mut(last);
    head[..row].swap_with_slice(tail);
    weight.raw_data = raw.into();
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, model.encode_to_vec()).unwrap();
    file
}

/// The cut passes because of the values before the output, and a wrong one fails by them.
fn check_by_values(model: &ModelProto, not_finite: bool) {
    let pruned = pruned_net(model);
    let report = pruned.report();
    assert!(report.passed, "{report:?}");
    let output = &report.runs[0].outputs[0];
    assert_eq!(output.not_finite > 0, not_finite, "{output:?}");
    if let Some(values) = &report.values {
        assert!(values.conclusive >= 3 && values.worst_relative < 1e-4, "{values:?}");
    } else {
        // A tiny output may happen to agree by the relative tolerance too.
        assert!(output.conclusive, "{output:?}");
    }
    let report = pruned.verify(swapped(&pruned).path());
    assert!(report.runs[0].outputs[0].passed, "the output shows it without help: {report:?}");
    assert!(!report.passed, "a swapped channel went unnoticed");
    assert_eq!(report.first_difference.unwrap().op, "Conv");
}

fn verify_of(path: &Path, pruned: &Pruned) -> String {
    let report = pruned.verify(path);
    assert!(!report.passed && report.runs[0].passed(), "{report:?}");
    report.failure.unwrap()
}

#[test]
fn an_output_of_zeros_is_proved_by_the_values_before_it() {
    // As exporters leave the zero-initialised last layer of an untrained network.
    check_by_values(
        &net(|b, y| {
            let zero = b.weight_around(&[8, 1, 1], 0.0, 0.0);
            b.op("Mul", &[y, &zero], &[])
        }),
        false,
    );
}

#[test]
fn a_tiny_output_does_not_pass_by_the_absolute_tolerance_alone() {
    check_by_values(
        &net(|b, y| {
            let tiny = b.weight_around(&[8, 1, 1], 1e-8, 0.0);
            b.op("Mul", &[y, &tiny], &[])
        }),
        false,
    );
}

#[test]
fn an_output_of_nan_is_proved_by_the_values_before_it() {
    check_by_values(
        &net(|b, y| {
            let y = b.op("Abs", &[y], &[]);
            let y = b.op("Neg", &[&y], &[]);
            b.op("Sqrt", &[&y], &[])
        }),
        true,
    );
}

#[test]
fn a_network_of_zeros_proves_nothing() {
    let mut model = net(|_, y| y.to_owned());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        tensor.raw_data = vec![0; tensor.raw_data.len()].into();
    }
    let pruned = pruned_net(&model);
    let failure = verify_of(&pruned.path, &pruned);
    assert!(failure.contains("nothing is proved"), "{failure}");
}

/// The model with weights, input and output in bfloat16.
fn in_bfloat16(mut model: ModelProto) -> ModelProto {
    let graph = model.graph.as_mut().unwrap();
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.element_type() == DataType::Float) {
        // The upper half of every float32.
        let upper: Vec<u8> = tensor.raw_data.chunks(4).flat_map(|bytes| [bytes[2], bytes[3]]).collect();
        tensor.data_type = DataType::Bfloat16 as i32;
        tensor.raw_data = upper.into();
    }
    for declared in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(type_proto::Value::TensorType(tensor)) = declared.r#type.as_mut().unwrap().value.as_mut() {
            tensor.elem_type = DataType::Bfloat16 as i32;
        }
    }
    model
}

#[test]
fn a_model_that_the_library_has_no_kernels_for_is_verified_in_float32() {
    let pruned = pruned_net(&in_bfloat16(net(|_, y| y.to_owned())));
    let report = pruned.report();
    assert!(report.passed && !report.runs.is_empty(), "{report:?}");
    assert!(report.runs.iter().all(|run| run.widened) && report.worst() < 1e-4, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("own precision")), "{report:?}");
    assert!(!pruned.verify(swapped(&pruned).path()).passed, "a swapped channel went unnoticed");
}
