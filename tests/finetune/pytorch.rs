//! Twenty training steps against those of PyTorch on the same inputs (`scripts/make_finetune_reference.py`).

use std::collections::HashMap;
use std::path::Path;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::finetune::graph::TrainingGraph;
use onnx_diffprune::finetune::optimizer::OptimizerOptions;
use onnx_diffprune::finetune::pass::TrainingPass;
use onnx_diffprune::finetune::update::{At, Update, UpdateKind};
use onnx_diffprune::gradient::pass::PassOptions;
use onnx_diffprune::gradient::{GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::sizes_for;
use onnx_diffprune::load::load;
use onnx_diffprune::npz;
use onnx_diffprune::runtime::Device;

use crate::support::fixtures::runtime;
use crate::updates::alone;

const STEPS: usize = 20;

fn floats(array: &Array) -> Vec<f32> {
    array.to_f64().into_iter().map(|value| value as f32).collect()
}

/// Returns the rows of step `step` of an array whose first axis is the step.
fn of_step(array: &Array, step: usize) -> Array {
    let dims = array.dims[1..].to_vec();
    let length: usize = dims.iter().product();
    let part = step * length..(step + 1) * length;
    let data = match &array.data {
        ArrayData::F32(values) => ArrayData::F32(values[part].to_vec()),
        ArrayData::I64(values) => ArrayData::I64(values[part].to_vec()),
        other => panic!("unexpected elements {other:?}"),
    };
    Array { dims, data }
}

/// Returns the elements of a weight that the script stores.
fn shown(values: &[f32], count: usize) -> Vec<f32> {
    let place = |at: usize| at as f64 * (values.len() - 1) as f64 / (count - 1).max(1) as f64;
    (0..count).map(|at| values[place(at) as usize]).collect()
}

#[test]
fn twenty_steps_agree_with_pytorch() {
    twenty_steps(UpdateKind::Kernel);
}

#[test]
fn twenty_steps_with_update_graphs_agree_with_pytorch() {
    twenty_steps(UpdateKind::Graph);
}

fn twenty_steps(kind: UpdateKind) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let reference: HashMap<String, Array> =
        npz::read(&root.join("ddpm_fashion16/finetune_reference.npz")).unwrap().into_iter().collect();
    let analysis = analyse(&load(&root.join("ddpm_fashion16.onnx")).unwrap()).unwrap();
    let wanted: Vec<usize> = (0..analysis.graph.values.len())
        .filter(|value| reference.contains_key(&format!("w|{}", analysis.graph.values[*value].name)))
        .collect();
    assert_eq!(wanted.len(), 268);
    let sizes = sizes_for(&analysis.facts, &[("batch".to_owned(), 4)].into());
    let options = GradientOptions { sizes, wanted, ..GradientOptions::default() };
    let graph = TrainingGraph::build(&analysis, &options, Device::Cpu).unwrap();
    let mut pass = TrainingPass::new(runtime(), &analysis, &graph, &PassOptions::default()).unwrap();
    let optimizer = OptimizerOptions { weight_decay: 0.01, ..OptimizerOptions::default() };
    let mut update = Update::new(Some(kind), &mut pass, &optimizer, 1, &alone()).unwrap();
    let names: Vec<String> =
        analysis.graph.inputs.iter().map(|value| analysis.graph.values[*value].name.clone()).collect();
    for step in 0..STEPS {
        let inputs = [
            (names[0].clone(), of_step(&reference["x"], step)),
            (names[1].clone(), of_step(&reference["t"], step)),
            (TARGET.to_owned(), of_step(&reference["target"], step)),
        ];
        let loss = pass.run(&inputs).unwrap().loss;
        let expected = reference["losses"].to_f64()[step];
        assert!((loss - expected).abs() < 1e-4 * expected, "step {step}: loss {loss}, PyTorch's {expected}");
        let at = At { step: step as u64 + 1, rate: 1e-3, advances: true };
        update.step(&mut pass, &optimizer, at).unwrap();
    }
    let (weights, averages) = (pass.weights().unwrap(), update.averages(&mut pass).unwrap().unwrap());
    let mut compared = 0;
    for (at, weight) in graph.weights.iter().enumerate() {
        // The gradient with respect to the bias of keys is only rounding error, which Adam scales to a whole step.
        if floats(&reference[&format!("g|{}", weight.name)])[0] < 1e-6 {
            continue;
        }
        compared += 1;
        for (kind, found) in [("w", &weights[at]), ("ema", &averages[at])] {
            let expected = floats(&reference[&format!("{kind}|{}", weight.name)]);
            let found = shown(found, expected.len());
            let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-4 * largest.max(0.1), "{kind} of {}: off by {worst}, largest {largest}", weight.name);
        }
    }
    assert!(compared > 250, "{compared} weights were compared");
}
