//! Gradients through the training API of ONNX Runtime. A library without this API must report that.

mod support;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::Array;
use onnx_diffprune::gradient::pass::GradientPass;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::training::{Artifacts, TrainingOptions, TrainingPass, trained_weights};
use support::fixtures::{fixture, runtime};

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn the_training_api_computes_the_same_gradients() {
    let path = fixture("dit_tiny.onnx");
    let read = |suffix: &str| onnx_diffprune::npz::read(&path.with_extension(suffix)).unwrap();
    let model = onnx_diffprune::load::load(&path).unwrap();
    let analysis = analyse(&model).unwrap();
    let trained = trained_weights(&analysis, &[]).unwrap();
    let options = TrainingOptions {
        sizes: Sizes::new(),
        prediction: None,
        channels: None,
        trained: trained.clone(),
        outputs_gradients: true,
    };
    let artifacts = Artifacts::build(&analysis, &options).unwrap();
    let runtime = runtime();
    let mut session = match TrainingPass::new(runtime, &artifacts, &model, None) {
        Ok(session) => session,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("has no training API"), "{text}");
            assert!(error.advice().is_some_and(|advice| advice.contains("training enabled")), "{:?}", error.advice());
            println!("{} has no training API: only the message was checked", runtime.library().display());
            return;
        }
    };
    let options = GradientOptions { sizes: Sizes::new(), wanted: trained, ..GradientOptions::default() };
    let graph = GradientGraph::build(&analysis, &options).unwrap();
    let mut pass = GradientPass::new(runtime, &graph, &model, None).unwrap();
    let mut inputs: Vec<(String, Array)> = read("inputs.npz");
    inputs.extend(read("grads.npz").into_iter().filter(|(name, _)| name == TARGET));
    let expected = pass.run(&model, &inputs).unwrap();
    // The second run replaces the accumulated gradients of the first.
    session.run(&model, &inputs).unwrap();
    let found = session.run(&model, &inputs).unwrap();
    assert!((found.loss - expected.loss).abs() < 1e-5 * expected.loss, "{} {}", found.loss, expected.loss);
    assert_eq!(session.uses(), pass.uses());
    let all = expected.uses.iter().map(|values| largest(values)).fold(0.0, f32::max);
    let mut worst = 0.0f32;
    for (found, expected) in found.uses.iter().zip(&expected.uses) {
        assert_eq!(found.len(), expected.len());
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        worst = worst.max(largest(&difference) / largest(expected).max(1e-4 * all));
    }
    println!("{} uses, worst relative error {worst:.2e}", found.uses.len());
    assert!(worst < 1e-3, "{worst:.2e}");
    let mut loss = found.loss;
    for _ in 0..20 {
        session.optimize(&model, 1e-3).unwrap();
        loss = session.run(&model, &inputs).unwrap().loss;
    }
    println!("loss {} before and {loss} after 20 steps", found.loss);
    assert!(loss < 0.9 * found.loss);
    let mut less = inputs.clone();
    less.retain(|(name, _)| name != TARGET);
    assert!(session.run(&model, &less).unwrap_err().to_string().contains(TARGET));
}
