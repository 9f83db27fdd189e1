//! Outputs that agree without proving anything: zeros, tiny numbers, NaN, and rounding in float16.

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, ModelProto, attr_float, type_proto};
use onnx_diffprune::plan::kept_axes;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, verify};

use crate::support::builder::Builder;
use crate::support::cuts::{Pruned, prune_model};
use crate::support::fixtures::runtime;

/// Builds two convolutions with an activation between them, followed by the nodes of `end`.
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

/// Returns the output of the second convolution.
fn second_conv(model: &ModelProto) -> String {
    let mut convs = model.graph.as_ref().unwrap().node.iter().filter(|node| node.op_type == "Conv");
    convs.nth(1).unwrap().output[0].clone()
}

/// Asserts that the cut passes by the values before the output, and that a misaligned cut, on which file and plan
/// agree, fails by them.
fn check_by_values(model: &ModelProto, not_finite: bool) {
    let pruned = pruned_net(model);
    let report = pruned.report();
    assert!(report.passed, "{report:?}");
    let output = &report.runs[0].outputs[0];
    assert_eq!(output.not_finite > 0, not_finite, "{output:?}");
    let values = report.values.as_ref().unwrap();
    assert!(values.conclusive >= 3 && values.worst_relative < 1e-5, "{values:?}");
    let report = pruned.verify_misaligned(&second_conv(model), 1, 1);
    assert!(report.runs[0].outputs[0].passed, "the output alone detects the wrong cut: {report:?}");
    assert!(!report.passed, "a wrong cut was not detected");
    assert_eq!(report.first_difference.unwrap().op, "Conv");
}

#[test]
fn an_output_of_zeros_is_verified_by_the_values_before_it() {
    // As exporters write the zero-initialised last layer of an untrained network.
    let model = net(|b, y| {
        let zero = b.weight_around(&[8, 1, 1], 0.0, 0.0);
        b.op("Mul", &[y, &zero], &[])
    });
    check_by_values(&model, false);
    assert!(!pruned_net(&model).report().runs[0].outputs[0].conclusive);
}

#[test]
fn a_tiny_output_does_not_pass_by_absolute_tolerance_alone() {
    check_by_values(
        &net(|b, y| {
            let tiny = b.weight_around(&[8, 1, 1], 1e-8, 0.0);
            b.op("Mul", &[y, &tiny], &[])
        }),
        false,
    );
}

#[test]
fn an_output_of_nan_is_verified_by_the_values_before_it() {
    check_by_values(
        &net(|b, y| {
            let y = b.op("Abs", &[y], &[]);
            let y = b.op("Neg", &[&y], &[]);
            b.op("Sqrt", &[&y], &[])
        }),
        true,
    );
}

/// Builds norms over values that are constant for an input of zeros, so that the results consist of rounding errors.
fn ill_conditioned() -> ModelProto {
    let mut b = Builder::new(7);
    let mut y = "x".to_owned();
    for (from, to) in [(3, 64), (64, 64), (64, 64)] {
        y = b.conv(&y, from, to, 3, 1);
        let (scale, offset) = (b.weight_around(&[to], 1.0, 0.0), b.weight_around(&[to], 0.0, 0.0));
        y = b.op("InstanceNormalization", &[&y, &scale, &offset], &[attr_float("epsilon", 1e-14)]);
        y = b.silu(&y);
    }
    let y = b.conv(&y, 64, 8, 3, 1);
    b.finish(&[2, 3, 16, 16], &y, &[2, 8, 16, 16])
}

#[test]
fn outputs_that_consist_of_rounding_errors_are_inconclusive_not_failed() {
    let pruned = pruned_net(&ill_conditioned());
    let zeros = Array::new(vec![2, 3, 16, 16], ArrayData::F32(vec![0.0; 2 * 3 * 256])).unwrap();
    let options = VerifyOptions { inputs: Some(vec![("x".to_owned(), zeros)]), ..VerifyOptions::default() };
    let kept = kept_axes(&pruned.cut.plan, pruned.analysis, &pruned.path).unwrap();
    let report = verify(pruned.analysis, &kept, &load(&pruned.path).unwrap(), runtime(), &options).unwrap();
    let output = &report.runs[0].outputs[0];
    assert!(report.passed, "{report:?}");
    assert!(output.relative > 1e-4, "the network is not ill-conditioned: {output:?}");
    assert!(!output.conclusive && output.moved_by_rounding.is_some(), "{output:?}");
    assert!(report.notes.iter().any(|note| note.contains("inconclusive")), "{:?}", report.notes);
    // Random inputs have no such exception.
    let drawn = pruned.report();
    assert!(drawn.passed && drawn.runs.iter().flat_map(|run| &run.outputs).all(|o| o.moved_by_rounding.is_none()));
}

/// Builds a convolution, a branch of two convolutions behind a gate, and a last convolution.
fn gated(gate: impl FnOnce(&mut Builder) -> String, zero_last: bool) -> (ModelProto, String) {
    let mut b = Builder::new(9);
    let stem = b.conv("x", 3, 16, 3, 1);
    let y = b.conv(&stem, 16, 16, 3, 1);
    let y = b.op("Relu", &[&y], &[]);
    let branch = if zero_last {
        let (w, bias) = (b.weight_around(&[16, 16, 1, 1], 0.0, 0.0), b.weight_around(&[16], 0.0, 0.0));
        b.op("Conv", &[&y, &w, &bias], &[])
    } else {
        b.conv(&y, 16, 16, 3, 1)
    };
    let gate = gate(&mut b);
    let closed = b.op("Mul", &[&branch, &gate], &[]);
    let sum = b.op("Add", &[&stem, &closed], &[]);
    let y = b.conv(&sum, 16, 8, 3, 1);
    (b.finish(&[2, 3, 8, 8], &y, &[2, 8, 8, 8]), branch)
}

/// Asserts that a branch behind a gate is verified, and that a misaligned cut of it is detected.
fn check_gate(gate: impl FnOnce(&mut Builder) -> String, zero_last: bool, is_open: bool) {
    let (model, branch) = gated(gate, zero_last);
    let pruned = pruned_net(&model);
    let report = pruned.report();
    let values = report.values.as_ref().unwrap();
    assert!(report.passed && values.unproven.is_empty(), "{report:?}");
    assert_eq!(values.opened == 0, is_open, "{values:?}");
    let report = pruned.verify_misaligned(&branch, 1, 1);
    assert!(report.runs[0].outputs[0].passed, "the output alone detects the wrong cut: {report:?}");
    let first = report.first_difference.as_ref().map(|first| &first.value);
    assert_eq!(first, Some(&branch), "a wrong cut behind the gate was not detected: {report:?}");
}

#[test]
fn a_branch_behind_a_closed_gate_is_verified() {
    for zero_last in [false, true] {
        // LayerScale at zero, as a vector along channels and as a scalar.
        check_gate(|b| b.weight_around(&[16, 1, 1], 0.0, 0.0), zero_last, false);
        check_gate(|b| b.float(0.0), zero_last, false);
        check_gate(|b| b.float(1e-7), zero_last, !zero_last);
        // A gate that only large inputs open.
        let of_input = |b: &mut Builder| {
            let axes = b.ints(&[1, 2, 3]);
            let mean = b.op("ReduceMean", &["x", &axes], &[]);
            let threshold = b.float(8.0);
            let below = b.op("Sub", &[&mean, &threshold], &[]);
            b.op("Relu", &[&below], &[])
        };
        check_gate(of_input, zero_last, false);
    }
}

#[test]
fn a_network_of_zeros_is_verified_on_noise() {
    let mut model = net(|_, y| y.to_owned());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        tensor.raw_data = vec![0; tensor.raw_data.len()].into();
    }
    let pruned = pruned_net(&model);
    let report = pruned.report();
    let values = report.values.as_ref().unwrap();
    assert!(report.passed && values.opened > 0 && values.unproven.is_empty(), "{report:?}");
    assert!(!report.runs[0].outputs[0].conclusive, "{report:?}");
    let report = pruned.verify_misaligned(&second_conv(&model), 1, 1);
    assert!(!report.passed && report.runs[0].passed(), "{report:?}");
}

#[test]
fn inconclusive_values_are_counted_and_listed() {
    // Whatever the convolutions compute, the sign of a positive value is one.
    let model = net(|b, y| {
        let y = b.op("Softplus", &[y], &[]);
        b.op("Sign", &[&y], &[])
    });
    let report = pruned_net(&model).report().clone();
    assert!(report.passed, "{report:?}");
    let mut inner = Builder::new(6);
    let y = inner.conv("x", 3, 16, 3, 1);
    let y = inner.op("Softplus", &[&y], &[]);
    let y = inner.op("Sign", &[&y], &[]);
    let y = inner.conv(&y, 16, 8, 3, 1);
    let model = inner.finish(&[2, 3, 8, 8], &y, &[2, 8, 8, 8]);
    let report = pruned_net(&model).report().clone();
    let values = report.values.as_ref().unwrap();
    assert!(report.passed && values.unproven.len() == 1, "{values:?}");
    assert_eq!((values.unproven[0].op.as_str(), values.compared - values.conclusive), ("Sign", 1));
}

/// Converts weights, input and output of the model to bfloat16.
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
fn a_model_without_kernels_for_its_type_is_verified_in_float32() {
    let pruned = pruned_net(&in_bfloat16(net(|_, y| y.to_owned())));
    let report = pruned.report();
    assert!(report.passed && !report.runs.is_empty(), "{report:?}");
    assert!(report.runs.iter().all(|run| run.widened) && report.worst() < 1e-4, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("own precision")), "{report:?}");
    let report = pruned.verify_misaligned(&second_conv(&net(|_, y| y.to_owned())), 1, 1);
    assert!(!report.passed, "a wrong cut was not detected");
}
