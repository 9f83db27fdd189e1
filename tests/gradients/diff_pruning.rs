//! Diff-Pruning on a trained network against PyTorch: losses, the stopping timestep, and importance per channel.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use onnx_diffprune::array::{Array, ArrayData};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{AccumulateOptions, Accumulated, Denoising, ThresholdMode, accumulate};
use onnx_diffprune::gradient::pass::GradientPass;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::Sizes;

use crate::support::fixtures::{THREADS, analysed, fixture, runtime};

/// The samples and noise of the reference.
pub(crate) struct Fixed {
    timesteps: Vec<f64>,
    alphas_cumprod: Vec<f64>,
    x0: Array,
    noise: Array,
}

impl Denoising for Fixed {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn batch(&self) -> usize {
        self.x0.dims[0]
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        let t = self.timesteps[at];
        let a = self.alphas_cumprod[t as usize];
        let per_sample: usize = self.x0.dims[1..].iter().product();
        let range = samples.start * per_sample..samples.end * per_sample;
        let (ArrayData::F32(x0), ArrayData::F32(noise)) = (&self.x0.data, &self.noise.data) else {
            panic!("the reference should be float32")
        };
        let x_t = x0[range.clone()].iter().zip(&noise[range.clone()]);
        let x_t = x_t.map(|(x, e)| (a.sqrt() * f64::from(*x) + (1.0 - a).sqrt() * f64::from(*e)) as f32).collect();
        let dims = [&[samples.len()], &self.x0.dims[1..]].concat();
        let array = |dims: Vec<usize>, data: ArrayData| Array::new(dims, data).expect("sizes should agree");
        Ok(vec![
            ("sample".to_owned(), array(dims.clone(), ArrayData::F32(x_t))),
            ("timestep".to_owned(), array(vec![samples.len()], ArrayData::I64(vec![t as i64; samples.len()]))),
            (TARGET.to_owned(), array(dims, ArrayData::F32(noise[range].to_vec()))),
        ])
    }
}

pub(crate) struct Reference {
    pub(crate) task: Fixed,
    losses: Vec<f64>,
    stop: usize,
}

pub(crate) fn reference() -> Reference {
    let arrays: BTreeMap<String, Array> = onnx_diffprune::npz::read(&fixture("ddpm_fashion16/reference.npz"))
        .expect("it can be read")
        .into_iter()
        .collect();
    let task = Fixed {
        timesteps: (0..1000).map(f64::from).collect(),
        alphas_cumprod: arrays["alphas_cumprod"].to_f64(),
        x0: arrays["x0"].clone(),
        noise: arrays["noise"].clone(),
    };
    Reference { task, losses: arrays["losses"].to_f64(), stop: arrays["stop"].to_f64()[0] as usize }
}

/// Sums over the given timesteps. Prints and returns the result.
fn run(task: &Fixed, options: &AccumulateOptions) -> (Accumulated, BTreeMap<String, Vec<f32>>) {
    let analysis = analysed("ddpm_fashion16.onnx");
    let model = &analysis.model;
    let wanted: Vec<usize> = (0..analysis.graph.values.len())
        .filter(|value| analysis.graph.values[*value].initializer.is_some())
        .filter(|value| analysis.facts.values[*value].as_ref().is_some_and(|fact| fact.is_float()))
        .collect();
    let sizes = Sizes::from([("batch".to_owned(), options.micro_batch as i64)]);
    let graph = GradientGraph::build(analysis, &GradientOptions { sizes, wanted, ..GradientOptions::default() })
        .unwrap_or_else(|error| panic!("{error}"));
    let mut pass = GradientPass::new(runtime(), &graph, model, THREADS).unwrap_or_else(|error| panic!("{error}"));
    let mut sum = Accumulated::new(pass.uses());
    accumulate(&mut pass, model, task, options, None, &mut sum, |_| Ok(ControlFlow::Continue(())))
        .unwrap_or_else(|error| panic!("{error}"));
    let mut by_name: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (gradient, values) in sum.uses.iter().zip(&sum.sums) {
        let total = by_name.entry(analysis.graph.values[gradient.value].name.clone()).or_default();
        total.resize(values.len(), 0.0);
        total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
    }
    // Weights times gradients, for the comparison.
    for tensor in &model.graph().initializer {
        let Some(values) = by_name.get_mut(&tensor.name) else { continue };
        let bytes = model.tensor_bytes(tensor).expect("the weight can be read");
        let weights = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        values.iter_mut().zip(weights).for_each(|(value, weight)| *value *= weight);
    }
    (sum, by_name)
}

/// Returns the largest difference of an index's importance, relative to the largest importance along its axis.
fn worst_difference(products: &BTreeMap<String, Vec<f32>>, expected: &Path) -> f64 {
    let dims: BTreeMap<&str, Vec<usize>> = analysed("ddpm_fashion16.onnx")
        .model
        .graph()
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.dims.iter().map(|size| *size as usize).collect()))
        .collect();
    let mut worst = (0.0f64, String::new());
    let mut count = 0;
    let all = onnx_diffprune::npz::read(expected).expect("it can be read");
    let largest = all.iter().flat_map(|(_, array)| array.to_f64()).fold(0.0f64, |m, v| m.max(v.abs()));
    for (key, expected) in &all {
        let [name, axis, kind] = key.split('|').collect::<Vec<_>>()[..] else { panic!("{key}") };
        let Some(products) = products.get(name) else { panic!("no gradient with respect to {name}") };
        let (dims, axis) = (&dims[name], axis.parse::<usize>().expect("an axis"));
        let inner: usize = dims[axis + 1..].iter().product();
        let mut found = vec![0.0; dims[axis]];
        for (at, product) in products.iter().enumerate() {
            let product = f64::from(*product);
            found[at / inner % dims[axis]] += if kind == "abs" { product.abs() } else { product };
        }
        let expected = expected.to_f64();
        // Signed sums cancel, so their error is relative to their terms. The gradient of a key's bias is only rounding
        // error.
        let scale = expected.iter().fold(1e-4 * largest, |scale, value| scale.max(value.abs()));
        let difference = expected.iter().zip(&found).fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
        if difference / scale > worst.0 {
            worst = (difference / scale, key.clone());
        }
        count += 1;
    }
    println!("{count} axes, worst difference {:.2e} at {}", worst.0, worst.1);
    worst.0
}

#[test]
fn losses_stopping_timestep_and_importance_agree_with_pytorch() {
    let Reference { task, losses, stop } = reference();
    let options = AccumulateOptions {
        threshold: 0.05,
        mode: ThresholdMode::Prefix,
        sums_last: false,
        squared: false,
        micro_batch: 32,
    };
    let (sum, products) = run(&task, &options);
    for (point, expected) in sum.curve.iter().zip(&losses) {
        assert!((point.loss - expected).abs() < 1e-4 * expected, "L_{} is {}, not {expected}", point.t, point.loss);
    }
    assert_eq!((sum.kept(), sum.visited), (stop, stop + 1), "the threshold should stop at the timestep of PyTorch");
    assert!(sum.complete && !sum.curve[stop].kept);
    assert!(worst_difference(&products, &fixture("ddpm_fashion16/importance_diff_pruning.npz")) < 1e-3);
}

#[test]
fn strides_and_micro_batches_produce_the_same_sums() {
    let Reference { mut task, .. } = reference();
    task.timesteps = (0..100).map(|at| f64::from(10 * at)).collect();
    let options = AccumulateOptions {
        threshold: 0.0,
        mode: ThresholdMode::Prefix,
        sums_last: false,
        squared: false,
        micro_batch: 16,
    };
    let (sum, products) = run(&task, &options);
    assert_eq!(sum.kept(), 100);
    assert!(worst_difference(&products, &fixture("ddpm_fashion16/importance_all_stride10.npz")) < 1e-3);
}
