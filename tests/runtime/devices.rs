//! Devices on a machine without a GPU: which are refused and why, where nodes run, and sums of gradients in bound
//! tensors, which work in CPU memory as in device memory.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use onnx_diffprune::array::{Array, ArrayData, ElementType};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{
    AccumulateOptions, Accumulated, Denoising, ThresholdMode, Visited, accumulate,
};
use onnx_diffprune::gradient::pass::{GradientPass, PassOptions};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::model::Model;
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::runtime::random_inputs::{InputSpec, draw};
use onnx_diffprune::runtime::{BoundSession, Device, RuntimeErrorKind, Session, SessionOptions};

use crate::support::fixtures::{THREADS, analysed, fixture, runtime};

fn network(options: &SessionOptions) -> Session {
    runtime().session_from_file(&fixture("ddpm_fashion16.onnx"), options).unwrap_or_else(|error| panic!("{error}"))
}

fn inputs_of(session: &Session) -> Vec<(String, Array)> {
    let specs: Vec<InputSpec> = session.inputs().iter().map(InputSpec::from).collect();
    draw(&specs, &BTreeMap::new(), 3).unwrap()
}

#[test]
fn every_device_is_usable_or_has_a_reason() {
    assert_eq!(runtime().device_status(Device::Cpu).refused, None);
    for device in [Device::Cuda(0), Device::TensorRt(0)] {
        let status = runtime().device_status(device);
        let built_in = device.providers().iter().all(|name| runtime().execution_providers().iter().any(|p| p == name));
        match &status.refused {
            None => assert!(built_in, "{status:?}"),
            Some(reason) if !built_in => assert!(reason.contains("was built without"), "{reason}"),
            Some(reason) => assert!(!reason.is_empty()),
        }
    }
}

#[test]
fn a_missing_device_is_an_error_or_a_reported_fallback() {
    // No machine has this many GPUs.
    let device = Device::Cuda(999);
    let path = fixture("ddpm_fashion16.onnx");
    let error = runtime().session_from_file(&path, &SessionOptions { device, ..Default::default() }).unwrap_err();
    assert!(matches!(error.kind(), RuntimeErrorKind::Device | RuntimeErrorKind::Model), "{error}");
    assert!(error.to_string().contains("device cuda:999"), "{error}");
    let mut session = network(&SessionOptions { device, allow_fallback: true, ..Default::default() });
    let execution = session.execution().clone();
    assert_eq!((execution.requested, execution.used), (device, Device::Cpu));
    assert!(execution.reason.unwrap().contains("device cuda:999"));
    let inputs = inputs_of(&session);
    assert_eq!(session.run(&inputs).unwrap().len(), 1);
}

#[test]
fn the_placement_of_nodes_is_reported() {
    let session = network(&SessionOptions { record_placement: true, ..Default::default() });
    let placement = session.execution().placement.clone().expect("the placement of nodes is known");
    assert_eq!(placement.providers.len(), 1);
    assert!(placement.nodes_on("CPUExecutionProvider") > 100, "{placement}");
    assert!(placement.fallen_back(Device::Cpu).is_empty());
    // The same nodes count as a fallback if another device was requested.
    assert!(!placement.fallen_back(Device::Cuda(0)).is_empty());
    assert_eq!(network(&SessionOptions::default()).execution().placement, None);
}

#[test]
fn runs_with_bound_tensors_return_the_outputs_of_a_plain_run() {
    let mut session = network(&SessionOptions::default());
    let inputs = inputs_of(&session);
    let expected = session.run(&inputs).unwrap();
    let ArrayData::F32(expected_values) = &expected[0].1.data else { panic!("float32") };
    let mut bound = BoundSession::new(session).unwrap();
    let (name, array) = &expected[0];
    let mut output = bound.device_tensor(&array.dims).unwrap();
    bound.bind_output(name, &mut output).unwrap();
    for (name, array) in &inputs {
        bound.set_input(name, array).unwrap();
    }
    bound.run().unwrap();
    assert_eq!(output.values().unwrap(), expected_values);
    // Bound inputs are kept. An input that is set again is replaced.
    let mut changed = inputs[0].1.clone();
    if let ArrayData::F32(values) = &mut changed.data {
        values.iter_mut().for_each(|value| *value += 0.5);
    }
    bound.set_input(&inputs[0].0, &changed).unwrap();
    bound.run().unwrap();
    assert_ne!(output.values().unwrap(), expected_values);
    bound.set_input(&inputs[0].0, &inputs[0].1).unwrap();
    bound.run().unwrap();
    assert_eq!(output.values().unwrap(), expected_values);
    let error = bound.set_input("timestep", &inputs[1].1.cast(ElementType::F32)).unwrap_err();
    assert_eq!(error.to_string(), "input \"timestep\" must be int64, found float32");
}

/// Samples, noise and timesteps from a formula.
struct Task {
    timesteps: Vec<f64>,
    batch: usize,
}

impl Denoising for Task {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        let count = samples.len();
        let values = |shift: f32| -> Vec<f32> {
            (samples.start * 256..samples.end * 256).map(|i| (i as f32 * 0.7 + shift + at as f32).sin()).collect()
        };
        let array = |dims: Vec<usize>, data: ArrayData| Array::new(dims, data).unwrap();
        Ok(vec![
            ("sample".to_owned(), array(vec![count, 1, 16, 16], ArrayData::F32(values(0.0)))),
            ("timestep".to_owned(), array(vec![count], ArrayData::I64(vec![self.timesteps[at] as i64; count]))),
            (TARGET.to_owned(), array(vec![count, 1, 16, 16], ArrayData::F32(values(1.5)))),
        ])
    }
}

fn model() -> &'static Model {
    &analysed("ddpm_fashion16.onnx").model
}

fn graph(micro_batch: usize) -> GradientGraph {
    let analysis = analysed("ddpm_fashion16.onnx");
    let wanted = analysis.prunable_weights();
    let sizes = Sizes::from([("batch".to_owned(), micro_batch as i64)]);
    let options = GradientOptions { sizes, wanted, ..GradientOptions::default() };
    GradientGraph::build(analysis, &options).unwrap_or_else(|error| panic!("{error}"))
}

fn pass(graph: &GradientGraph, keeps_on_device: bool) -> GradientPass {
    let options = PassOptions { threads: THREADS, keeps_on_device: Some(keeps_on_device), ..PassOptions::default() };
    GradientPass::with_options(runtime(), graph, model(), &options).unwrap_or_else(|error| panic!("{error}"))
}

fn goes_on(_: &mut Visited<'_>) -> Result<ControlFlow<()>, Error> {
    Ok(ControlFlow::Continue(()))
}

fn options(squared: bool, micro_batch: usize) -> AccumulateOptions {
    AccumulateOptions { threshold: 0.0, mode: ThresholdMode::Prefix, sums_last: false, squared, micro_batch }
}

fn assert_same(one: &Accumulated, other: &Accumulated) {
    assert_eq!(one.curve, other.curve);
    assert_eq!(one.sums.len(), other.sums.len());
    assert!(one.sums.iter().flatten().any(|value| *value != 0.0));
    for ((gradient, one), other) in one.uses.iter().zip(&one.sums).zip(&other.sums) {
        assert_eq!(one.len(), other.len(), "{}", gradient.output);
        let scale = one.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        let difference = one.iter().zip(other).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(difference <= 1e-5 * scale, "{}: {difference} of {scale}", gradient.output);
    }
}

#[test]
fn sums_on_the_device_equal_sums_on_the_cpu() {
    let task = Task { timesteps: vec![3.0, 200.0, 700.0], batch: 2 };
    // One run per timestep, then two.
    for micro_batch in [2, 1] {
        let graph = graph(micro_batch);
        let (mut direct, mut bound) = (pass(&graph, false), pass(&graph, true));
        assert_eq!(bound.execution().used, Device::Cpu);
        for squared in [false, true] {
            let how = options(squared, micro_batch);
            let mut sums = [&mut direct, &mut bound].map(|pass| {
                let mut sum = Accumulated::new(pass.uses());
                accumulate(pass, model(), &task, &how, None, &mut sum, goes_on).unwrap();
                sum
            });
            assert_eq!(sums[0].kept(), 3);
            assert_same(&sums[0], &sums[1]);
            // The comparison detects a single wrong element.
            let value = sums[1].sums.iter_mut().flatten().max_by(|a, b| a.total_cmp(b)).unwrap();
            *value *= 1.001;
            assert!(std::panic::catch_unwind(|| assert_same(&sums[0], &sums[1])).is_err());
        }
    }
}

#[test]
fn sums_on_the_device_can_be_read_and_resumed() {
    let task = Task { timesteps: vec![3.0, 200.0, 700.0], batch: 1 };
    let graph = graph(1);
    let how = options(false, 1);
    let (mut direct, mut bound) = (pass(&graph, false), pass(&graph, true));
    let mut whole = Accumulated::new(direct.uses());
    accumulate(&mut direct, model(), &task, &how, None, &mut whole, goes_on).unwrap();
    let mut begun = None;
    let mut sum = Accumulated::new(bound.uses());
    accumulate(&mut bound, model(), &task, &how, None, &mut sum, |visited| {
        if visited.visited() == 2 {
            begun = Some(visited.sum()?.clone());
        }
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_same(&whole, &sum);
    // Resumes from a copy taken half way, in a new pass.
    let mut resumed = begun.expect("the second timestep was visited");
    assert_eq!((resumed.visited, resumed.curve.len()), (2, 2));
    assert!(!resumed.complete);
    accumulate(&mut pass(&graph, true), model(), &task, &how, None, &mut resumed, goes_on).unwrap();
    assert_same(&whole, &resumed);
}

#[test]
fn the_timestep_at_which_a_prefix_ends_is_not_summed_on_the_device() {
    // The loss at the second timestep cannot reach twice the largest one, so the prefix ends.
    let task = Task { timesteps: vec![3.0, 200.0], batch: 1 };
    let graph = graph(1);
    let how = AccumulateOptions { threshold: 2.0, ..options(false, 1) };
    let mut bound = pass(&graph, true);
    let mut sum = Accumulated::new(bound.uses());
    accumulate(&mut bound, model(), &task, &how, None, &mut sum, goes_on).unwrap();
    assert_eq!((sum.visited, sum.kept(), sum.complete), (1, 0, true));
    assert!(sum.sums.iter().all(Vec::is_empty));
    // A plain run of the same pass still returns every gradient.
    let gradients = bound.run(model(), &task.inputs(0, 0..1).unwrap()).unwrap();
    assert!((gradients.loss - sum.curve[0].loss).abs() < 1e-6 * gradients.loss);
    assert!(gradients.uses.iter().flatten().any(|value| *value != 0.0));
}
