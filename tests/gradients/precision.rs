//! Gradients with factors in float16. `scripts/check_precision.py` runs such a graph in an evaluator that really rounds
//! to float16. ONNX Runtime computes it in float32 on the CPU.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::error::Error;
use onnx_diffprune::gradient::accumulate::{AccumulateOptions, Accumulated, Denoising, ThresholdMode, accumulate};
use onnx_diffprune::gradient::pass::{GradientPass, PassOptions};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, Precision, TARGET};
use onnx_diffprune::graph::model::Model;
use onnx_diffprune::graph::sizes::sizes_for;
use onnx_diffprune::inputs::random_inputs;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, TensorProto};

use crate::support::builder::Builder;
use crate::support::files::save;
use crate::support::fixtures::{THREADS, analysed, runtime};

/// A task with the same inputs at one timestep.
struct Task {
    inputs: Vec<(String, Array)>,
}

impl Denoising for Task {
    fn timesteps(&self) -> &[f64] {
        &[1.0]
    }

    fn batch(&self) -> usize {
        1
    }

    fn inputs(&self, _: usize, _: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        Ok(self.inputs.clone())
    }
}

fn array(dims: &[i64], value: impl Fn(usize) -> f64) -> Array {
    let dims: Vec<usize> = dims.iter().map(|size| *size as usize).collect();
    let values: Vec<f64> = (0..dims.iter().product()).map(value).collect();
    Array::from_f64(ElementType::F32, dims, &values).unwrap()
}

fn pass(graph: &GradientGraph, model: &Model, is_bound: bool) -> GradientPass {
    let options = PassOptions { threads: THREADS, keeps_on_device: Some(is_bound), ..PassOptions::default() };
    GradientPass::with_options(runtime(), graph, model, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the sums of one timestep.
fn sums(pass: &mut GradientPass, model: &Model, task: &Task) -> Result<Accumulated, Error> {
    let mode = ThresholdMode::Prefix;
    let how = AccumulateOptions { threshold: 0.0, mode, sums_last: false, squared: false, micro_batch: 1 };
    let mut sum = Accumulated::new(pass.uses());
    accumulate(pass, model, task, &how, None, &mut sum, |_| Ok(ControlFlow::Continue(())))?;
    Ok(sum)
}

/// Returns the largest difference of an array relative to its largest element.
fn worst(one: &Accumulated, other: &Accumulated) -> f64 {
    let largest = |values: &[f32]| values.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    let of_all = one.sums.iter().map(|values| largest(values)).fold(0.0, f64::max);
    let errors = one.sums.iter().zip(&other.sums).map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        assert!(difference.iter().all(|value| value.is_finite()));
        largest(&difference) / largest(a).max(1e-4 * of_all)
    });
    errors.fold(0.0, f64::max)
}

/// Checks by their names that exactly the nodes that sum products have float16 inputs and outputs.
fn check_names(graph: &GradientGraph) {
    let nodes = &graph.model.graph.as_ref().unwrap().node;
    let mut products = 0;
    for node in nodes.iter().filter(|node| node.op_type != "Cast") {
        let sums = onnx_diffprune::ops::find(&node.domain, &node.op_type).unwrap().sums_products();
        products += usize::from(sums);
        let names = node.input.iter().chain(&node.output).filter(|name| !name.is_empty());
        assert!(names.map(|name| name.starts_with("__half/")).all(|is_half| is_half == sums), "{node:?}");
    }
    assert!(products > 50);
}

fn compare(name: &str, tolerance: f64) {
    let analysis = analysed(name);
    let model = &analysis.model;
    let sizes = sizes_for(&analysis.facts, &[("batch".to_owned(), 2)].into());
    let wanted = analysis.prunable_weights();
    let mut inputs = random_inputs(analysis, &sizes, 1).unwrap();
    for (_, array) in inputs.iter_mut().filter(|(_, array)| array.element_type().is_float()) {
        *array = array.cast(ElementType::F32);
    }
    let of = |precision| {
        let options =
            GradientOptions { sizes: sizes.clone(), wanted: wanted.clone(), precision, ..GradientOptions::default() };
        GradientGraph::build(analysis, &options).unwrap_or_else(|error| panic!("{error}"))
    };
    let (single, half) = (of(Precision::Float32), of(Precision::Float16));
    inputs.push((TARGET.to_owned(), array(&single.target_shape, |at| (at as f64 * 0.7).sin())));
    let task = Task { inputs };
    check_names(&half);
    let expected = sums(&mut pass(&single, model, false), model, &task).unwrap();
    let found = sums(&mut pass(&half, model, false), model, &task).unwrap();
    let bound = sums(&mut pass(&half, model, true), model, &task).unwrap();
    assert_eq!(found.sums, bound.sums);
    let error = worst(&expected, &found);
    println!("{name}: worst relative error {error:.1e}");
    assert!(error < tolerance, "{error}");
}

#[test]
fn float16_factors_change_gradients_by_rounding_alone() {
    // Float32 weights are rounded ...
    compare("dit_tiny.onnx", 1e-2);
    compare("ddpm_fashion16.onnx", 1e-2);
    // ... and float16 weights are unchanged.
    compare("sd15_tiny_fp16.onnx", 1e-2);
}

/// Builds `y = x w c` with `w = 0`: the gradient of the loss with respect to w is `-2 target x c / n`.
fn steep(folder: &Path) -> Model {
    let mut b = Builder::new(1);
    let (w, c) = (b.weight_around(&[8], 0.0, 0.0), b.float(3e38));
    let y = b.op("Mul", &["x", &w], &[]);
    let y = b.op("Mul", &[&y, &c], &[]);
    load(&save(folder, &b.finish(&[1, 8], &y, &[1, 8]))).unwrap()
}

#[test]
fn an_overflowing_run_is_repeated_with_a_smaller_loss_scale() {
    let folder = tempfile::tempdir().unwrap();
    let model = steep(folder.path());
    let analysis = analyse(&model).unwrap();
    let wanted = vec![analysis.graph.value("weight_0").unwrap()];
    let options = GradientOptions { wanted, precision: Precision::Float16, ..GradientOptions::default() };
    let graph = GradientGraph::build(&analysis, &options).unwrap();
    let task = |target: f64| Task {
        inputs: vec![("x".to_owned(), array(&[1, 8], |_| 1.0)), (TARGET.to_owned(), array(&[1, 8], |_| target))],
    };
    for is_bound in [false, true] {
        let mut pass = pass(&graph, &model, is_bound);
        // 2 / n times the scale times c is infinite at a scale of 8, and finite at 4.
        assert_eq!(pass.loss_scale(), Some(8.0));
        let found = sums(&mut pass, &model, &task(-1.0)).unwrap();
        assert_eq!(pass.loss_scale(), Some(4.0));
        assert_eq!(found.sums, [[0.25 * 3e38f32; 8]]);
        assert_eq!(found.curve[0].loss, 1.0);
        let error = sums(&mut pass, &model, &task(-1e8)).unwrap_err().to_string();
        assert!(
            error.contains("float16") && error.contains("not finite") && error.contains("loss scale of"),
            "{error}"
        );
    }
}

#[test]
fn float16_weights_are_used_without_conversion() {
    let analysis = analysed("sd15_tiny_fp16.onnx");
    let options = GradientOptions {
        sizes: sizes_for(&analysis.facts, &Default::default()),
        wanted: analysis.prunable_weights(),
        precision: Precision::Float16,
        ..GradientOptions::default()
    };
    let graph = GradientGraph::build(analysis, &options).unwrap();
    let tensors: &[TensorProto] = &graph.model.graph.as_ref().unwrap().initializer;
    let original = |name: &str| analysis.model.graph().initializer.iter().find(|tensor| tensor.name == name);
    let mut same = 0;
    for tensor in tensors.iter().filter(|tensor| tensor.element_type() == DataType::Float16) {
        if let Some(original) = tensor.name.strip_prefix("__half/").and_then(original) {
            assert_eq!(tensor.raw_data, original.raw_data);
            same += 1;
        }
    }
    assert!(same > 50, "{same}");
}
