//! The weight update by graphs of standard operators against the fused kernel.

use std::sync::Arc;

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::collective::{Alone, Collective};
use onnx_diffprune::finetune::graph::TrainingGraph;
use onnx_diffprune::finetune::optimizer::{OptimizerKind, OptimizerOptions, WeightState};
use onnx_diffprune::finetune::pass::TrainingPass;
use onnx_diffprune::finetune::update::{At, Update, UpdateKind};
use onnx_diffprune::gradient::pass::PassOptions;
use onnx_diffprune::gradient::{GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::sizes_for;
use onnx_diffprune::runtime::Device;
use onnx_diffprune::training::trained_weights;

use crate::support::fixtures::{THREADS, analysed, runtime};

/// Returns the collective of a single process.
pub(crate) fn alone() -> Arc<dyn Collective> {
    Arc::new(Alone)
}

/// Returns the inputs of run `run`.
fn inputs(run: usize) -> Vec<(String, Array)> {
    let noise = |seed: usize| -> Vec<f32> {
        (0..2 * 256).map(|at| (((at * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0) * 1.5).collect()
    };
    let image = |seed: usize| Array { dims: vec![2, 1, 16, 16], data: ArrayData::F32(noise(seed)) };
    let steps = vec![(run as i64 * 97) % 1000, (run as i64 * 31 + 500) % 1000];
    vec![
        ("sample".to_owned(), image(run)),
        ("timestep".to_owned(), Array { dims: vec![2], data: ArrayData::I64(steps) }),
        (TARGET.to_owned(), image(run + 1000)),
    ]
}

fn pass(analysis: &Analysis) -> TrainingPass {
    let sizes = sizes_for(&analysis.facts, &[("batch".to_owned(), 2)].into());
    let wanted = trained_weights(analysis, &[]).unwrap();
    let options = GradientOptions { sizes, wanted, ..GradientOptions::default() };
    let graph = TrainingGraph::build(analysis, &options, Device::Cpu).unwrap();
    let options = PassOptions { threads: THREADS, ..PassOptions::default() };
    TrainingPass::new(runtime(), analysis, &graph, &options).unwrap()
}

/// Weights, optimizer states and gradient norms after some steps.
type Reached = (Vec<Vec<f32>>, Vec<WeightState>, Vec<f64>);

/// Records the gradients of every run of some steps, in which the kernel updates the weights. With recorded gradients,
/// other updates can differ by rounding only: a gradient that consists of rounding errors depends on every bit of the
/// weights.
fn recorded(optimizer: &OptimizerOptions, (count, runs): (usize, usize)) -> (Vec<Vec<Vec<f32>>>, Reached) {
    let mut pass = pass(analysed("ddpm_fashion16.onnx"));
    let mut update = Update::new(Some(UpdateKind::Kernel), &mut pass, optimizer, runs, &alone()).unwrap();
    let (mut gradients, mut norms) = (Vec::new(), Vec::new());
    for step in 0..count {
        for run in 0..runs {
            pass.run(&inputs(step * runs + run)).unwrap();
            let of = pass.tensors();
            gradients.push(of.gradients.iter().map(|gradient| of.transfer.read(gradient).unwrap()).collect());
            update.collect(&mut pass, run, runs).unwrap();
        }
        norms.push(update.step(&mut pass, optimizer, at(step)).unwrap());
    }
    (gradients, (pass.weights().unwrap(), update.states(&mut pass).unwrap().unwrap(), norms))
}

/// The fifth step is skipped.
fn at(step: usize) -> At {
    At { step: step as u64 + 1, rate: 1e-3, advances: step != 4 }
}

/// Repeats the steps with update graphs. A new update continues after the second step.
fn repeated(optimizer: &OptimizerOptions, gradients: &[Vec<Vec<f32>>], runs: usize) -> Reached {
    let mut pass = pass(analysed("ddpm_fashion16.onnx"));
    let mut update = Update::new(Some(UpdateKind::Graph), &mut pass, optimizer, runs, &alone()).unwrap();
    let mut norms = Vec::new();
    for (step, of_runs) in gradients.chunks(runs).enumerate() {
        if step == 2 {
            let states = update.states(&mut pass).unwrap().unwrap();
            update = Update::new(Some(UpdateKind::Graph), &mut pass, optimizer, runs, &alone()).unwrap();
            update.restore(&mut pass, Some(states)).unwrap();
        }
        for (run, values) in of_runs.iter().enumerate() {
            let of = pass.tensors();
            for (gradient, values) in of.gradients.iter_mut().zip(values) {
                of.transfer.write(values, gradient).unwrap();
            }
            update.collect(&mut pass, run, runs).unwrap();
        }
        norms.push(update.step(&mut pass, optimizer, at(step)).unwrap());
    }
    (pass.weights().unwrap(), update.states(&mut pass).unwrap().unwrap(), norms)
}

fn assert_equal(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-6 * largest, "{what}: off by {worst}, largest {largest}");
}

fn assert_same(optimizer: &OptimizerOptions, (count, runs): (usize, usize)) {
    let (gradients, (weights, states, norms)) = recorded(optimizer, (count, runs));
    let (by_graph, of_graph, graph_norms) = repeated(optimizer, &gradients, runs);
    for (found, expected) in graph_norms.iter().zip(&norms) {
        assert!((found - expected).abs() <= 1e-6 * expected, "norm {found}, expected {expected}");
    }
    let before = pass(analysed("ddpm_fashion16.onnx")).weights().unwrap();
    assert!(before.iter().zip(&weights).all(|(before, after)| before != after), "every weight should change");
    for at in 0..weights.len() {
        assert_equal(&by_graph[at], &weights[at], &format!("weight {at}"));
        assert_equal(&of_graph[at].first, &states[at].first, &format!("first moment {at}"));
        assert_equal(&of_graph[at].second, &states[at].second, &format!("second moment {at}"));
        assert_equal(&of_graph[at].average, &states[at].average, &format!("average {at}"));
    }
}

#[test]
fn twenty_steps_with_update_graphs_agree_with_the_kernel() {
    assert_same(&OptimizerOptions { weight_decay: 0.01, clip: Some(0.05), ..OptimizerOptions::default() }, (20, 1));
}

#[test]
fn sums_over_runs_agree_with_those_of_the_kernel() {
    let adam = OptimizerOptions { kind: OptimizerKind::Adam, weight_decay: 0.1, clip: None, ..Default::default() };
    assert_same(&adam, (6, 3));
    assert_same(&OptimizerOptions { ema: None, ..adam }, (2, 2));
}

#[test]
fn gradients_that_are_not_finite_change_no_weight() {
    let optimizer = OptimizerOptions::default();
    for kind in [UpdateKind::Kernel, UpdateKind::Graph] {
        let mut pass = pass(analysed("ddpm_fashion16.onnx"));
        let mut update = Update::new(Some(kind), &mut pass, &optimizer, 1, &alone()).unwrap();
        let before = pass.weights().unwrap();
        pass.run(&inputs(0)).unwrap();
        let mut gradient = {
            let of = pass.tensors();
            of.transfer.read(&of.gradients[3]).unwrap()
        };
        gradient[0] = f32::NAN;
        {
            let of = pass.tensors();
            of.transfer.write(&gradient, &mut of.gradients[3]).unwrap();
        }
        let norm = update.step(&mut pass, &optimizer, At { step: 1, rate: 1e-3, advances: true }).unwrap();
        assert!(!norm.is_finite(), "{norm}");
        assert_eq!(pass.weights().unwrap(), before);
    }
}
