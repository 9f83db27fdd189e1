//! Gradients against those of PyTorch: every array of `NAME.grads.npz` beside a model.
//!
//! `GRADIENT_MODELS` may name a folder with more models than the fixtures.

use std::path::{Path, PathBuf};

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::Array;
use onnx_diffprune::gradient::pass::GradientPass;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::runtime::Device;

use crate::support::derivatives::Derivatives;
use crate::support::fixtures::{THREADS, fixture, runtime};

fn read(path: &Path) -> Vec<(String, Array)> {
    onnx_diffprune::npz::read(path).expect("the file can be read")
}

/// Returns the sizes of symbolic dimensions in these inputs.
fn sizes_of(analysis: &Analysis, inputs: &[(String, Array)]) -> Sizes {
    let mut sizes = Sizes::new();
    for (name, array) in inputs {
        let Some(value) = analysis.graph.value(name) else { continue };
        let shape = analysis.facts.values[value].as_ref().and_then(|fact| fact.shape.clone());
        for (dim, size) in shape.iter().flatten().zip(&array.dims) {
            if dim.as_const().is_none() {
                sizes.insert(dim.to_string(), *size as i64);
            }
        }
    }
    sizes
}

fn check(model_path: &Path) {
    let model = onnx_diffprune::load::load(model_path).expect("the model loads");
    let analysis = analyse(&model).expect("the model can be analysed");
    let inputs = read(&model_path.with_extension("inputs.npz"));
    let reference = read(&model_path.with_extension("grads.npz"));
    let wanted: Vec<usize> = reference.iter().filter_map(|(name, _)| analysis.graph.value(name)).collect();
    let options = GradientOptions { sizes: sizes_of(&analysis, &inputs), wanted, ..GradientOptions::default() };
    for has_kernels in [false, true] {
        compare(model_path, &analysis, &options, has_kernels, inputs.clone(), &reference);
    }
}

/// Compares the gradients in standard operators, or with kernels, with those of PyTorch.
fn compare(
    model_path: &Path,
    analysis: &Analysis,
    options: &GradientOptions,
    has_kernels: bool,
    mut inputs: Vec<(String, Array)>,
    reference: &[(String, Array)],
) {
    let model = &analysis.model;
    let graph = match has_kernels {
        false => GradientGraph::build(analysis, options),
        true => GradientGraph::build_for(analysis, options, Device::Cpu),
    };
    let graph = graph.unwrap_or_else(|error| panic!("{error}"));
    // Every network of the fixtures has norms, which have kernels.
    assert_eq!(graph.has_kernels, has_kernels, "{}", model_path.display());
    let of = |wanted: &str| reference.iter().find(|(name, _)| name == wanted).map(|(_, array)| array.clone());
    inputs.push((TARGET.to_owned(), of("__target").expect("there is a target")));
    let mut pass = GradientPass::new(runtime(), &graph, model, THREADS).unwrap_or_else(|error| panic!("{error}"));
    let found = pass.run(model, &inputs).unwrap_or_else(|error| panic!("{error}"));
    let loss = of("__loss").expect("there is a loss").to_f64()[0];
    assert!((found.loss - loss).abs() < 1e-4 * loss.abs(), "loss {} instead of {loss}", found.loss);
    let largest = reference.iter().filter(|(name, _)| !name.starts_with("__")).flat_map(|(_, array)| array.to_f64());
    let largest = largest.fold(0.0f64, |largest, value| largest.max(value.abs()));
    let mut worst = (0.0, String::new());
    let mut count = 0;
    for (name, array) in reference {
        let Some(value) = analysis.graph.value(name) else { continue };
        let expected = array.to_f64();
        let scale = expected.iter().fold(0.0f64, |scale, value| scale.max(value.abs()));
        // Exporters share equal weights through Identity nodes. The reference is that of the weight with this name.
        let is_own = |at: &usize| {
            let gradient = &graph.gradients[*at];
            gradient.value == value && analysis.graph.nodes[gradient.node].proto.op_type != "Identity"
        };
        let at =
            (0..graph.gradients.len()).find(is_own).unwrap_or_else(|| panic!("no gradient with respect to {name}"));
        let weights = &found.uses[at];
        assert_eq!(expected.len(), weights.len(), "{name}");
        let error = expected.iter().zip(weights).fold(0.0f64, |worst, (a, b)| worst.max((a - f64::from(*b)).abs()));
        // The gradient of the bias of a key, or of a bias before a norm, is only rounding error.
        let relative = error / scale.max(1e-4 * largest);
        if std::env::var_os("GRADIENT_LIST").is_some() && relative > 1e-3 {
            println!("{name} {:?} {relative:.2e} of {scale:.2e}", array.dims);
        }
        if relative > worst.0 {
            worst = (relative, name.clone());
        }
        count += 1;
    }
    println!("{}: {count} arrays, worst relative error {:.2e} at {}", model_path.display(), worst.0, worst.1);
    assert!(count > 10);
    assert!(worst.0 < 1e-3, "relative error {:.2e} at {}", worst.0, worst.1);
}

/// Checks that gradients with respect to all weights of a network are finite, and that the directional derivative
/// agrees with the centred difference of the loss along a direction in which every element of the gradient is positive.
fn check_direction(model_path: &Path) -> Result<String, String> {
    let model = onnx_diffprune::load::load(model_path).map_err(|error| error.to_string())?;
    let analysis = analyse(&model).map_err(|error| error.to_string())?;
    // Some networks declare a symbolic batch but run at one size only.
    let variants = onnx_diffprune::inputs::size_variants(&analysis, &Sizes::new(), &Sizes::new());
    // Weights that can be pruned. Tables of frequencies, for example, oscillate within any step that can be measured.
    let mut derivatives = Derivatives::new(&analysis, &analysis.prunable_weights(), &variants)?;
    let uses = derivatives.graph.gradients.len();
    let mut line = format!("loss {:.4}, {uses} gradients", derivatives.loss);
    let along: Vec<_> = (0..derivatives.weights.len()).map(|at| (at, derivatives.uphill(at, 11 + at as u64))).collect();
    let derivative = derivatives.along(&along);
    // Small steps suit a loss with high curvature, large ones a flat loss.
    for step in [1e-3, 1e-4, 1e-5, 1e-6] {
        let difference = derivatives.difference(&along, step)?;
        let noise = 2e-6 * derivatives.loss / step;
        let error = (difference - derivative).abs() / derivative.abs();
        line += &format!(", derivative {derivative:.4e}, difference {difference:.4e} at {step}");
        // A loss that depends on no weight, for example if the last layer is zero.
        let is_flat = derivative == 0.0 && difference.abs() < noise;
        if is_flat || (error < 0.05 && noise < 0.5 * derivative.abs()) {
            return Ok(line);
        }
    }
    Err(line)
}

/// Returns the models of the folder, sorted.
fn models() -> Vec<PathBuf> {
    let folder = std::env::var_os("GRADIENT_MODELS").map_or_else(|| fixture(""), PathBuf::from);
    let entries = std::fs::read_dir(folder).expect("the folder exists");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("listed").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    paths.sort();
    paths
}

#[test]
fn gradients_agree_with_centred_differences_of_the_loss() {
    let mut failed = Vec::new();
    let mut count = 0;
    for path in models() {
        count += 1;
        match check_direction(&path) {
            Ok(line) => println!("ok {}: {line}", path.display()),
            Err(cause) => {
                println!("FAILED {}: {cause}", path.display());
                failed.push(path);
            }
        }
    }
    assert!(count > 0 && failed.is_empty(), "{} of {count} failed: {failed:?}", failed.len());
}

#[test]
fn gradients_agree_with_those_of_pytorch() {
    let mut checked = 0;
    for path in models().iter().filter(|path| path.with_extension("grads.npz").exists()) {
        check(path);
        checked += 1;
    }
    assert!(checked > 0, "no model has reference gradients");
}
