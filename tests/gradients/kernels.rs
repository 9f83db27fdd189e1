//! CPU kernels against the standard operators that they replace, in ONNX Runtime.

use std::collections::BTreeMap;
use std::path::Path;

use onnx_diffprune::analysis::analyse;
use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::gradient::pass::{GradientPass, Gradients};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::{Sizes, sizes_for};
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, attr_ints, attr_string};
use onnx_diffprune::runtime::Device;

use crate::support::builder::Builder;
use crate::support::files::save;
use crate::support::fixtures::{analysed, runtime};

const DOMAIN: &str = "onnx_diffprune.kernels";

/// Computes loss and gradients with respect to all weights, in standard operators and with kernels. Returns both and
/// the kernels' operators.
fn both(model: &ModelProto, folder: &Path) -> (Gradients, Gradients, Vec<String>) {
    let model = load(&save(folder, model)).unwrap();
    let analysis = analyse(&model).unwrap();
    let wanted = analysis.prunable_weights();
    let options = GradientOptions { sizes: Sizes::new(), wanted, ..GradientOptions::default() };
    let standard = GradientGraph::build(&analysis, &options).unwrap();
    let kernels = GradientGraph::build_for(&analysis, &options, Device::Cpu).unwrap();
    assert!(!standard.has_kernels && kernels.has_kernels);
    let mut inputs = onnx_diffprune::inputs::random_inputs(&analysis, &Sizes::new(), 1).unwrap();
    let dims: Vec<usize> = standard.target_shape.iter().map(|size| *size as usize).collect();
    let target: Vec<f64> = (0..dims.iter().product()).map(|at: usize| (at as f64 * 0.7).sin()).collect();
    inputs.push((TARGET.to_owned(), Array::from_f64(ElementType::F32, dims, &target).unwrap()));
    let run = |graph: &GradientGraph| {
        let mut pass = GradientPass::new(runtime(), graph, &model, None).unwrap();
        pass.run(&model, &inputs).unwrap()
    };
    let nodes = &kernels.model.graph.as_ref().unwrap().node;
    let own = nodes.iter().filter(|node| node.domain == DOMAIN).map(|node| node.op_type.clone()).collect();
    (run(&standard), run(&kernels), own)
}

#[test]
fn convolutions_in_tiles_equal_those_of_onnx_runtime() {
    // Sizes that are not multiples of tiles or vectors, and every kind of padding.
    let mut b = Builder::new(3);
    let y = b.conv("x", 72, 72, 3, 1);
    let y = b.silu(&y);
    let w = b.layer_weight(&[88, 72, 3, 3], 72 * 9);
    let y = b.op("Conv", &[&y, &w], &[attr_ints("pads", &[0, 2, 1, 0])]);
    let y = b.silu(&y);
    let (w, bias) = (b.layer_weight(&[66, 88, 3, 3], 88 * 9), b.bias(66));
    let y = b.op("Conv", &[&y, &w, &bias], &[]);
    let y = b.silu(&y);
    let w = b.layer_weight(&[72, 66, 3, 3], 66 * 9);
    let y = b.op("Conv", &[&y, &w], &[attr_string("auto_pad", "SAME_UPPER")]);
    let model = b.finish(&[2, 72, 40, 37], &y, &[2, 72, 37, 35]);
    let folder = tempfile::tempdir().unwrap();
    let (standard, kernels, nodes) = both(&model, folder.path());
    let count = |op_type: &str| nodes.iter().filter(|node| *node == op_type).count();
    // Four forward, three with respect to the input, four with respect to the weights.
    assert_eq!((count("WinogradFilter"), count("WinogradFilterGradient")), (7, 4), "{nodes:?}");
    assert!((standard.loss - kernels.loss).abs() < 1e-6 * standard.loss);
    assert_eq!(standard.uses.len(), 6);
    for (at, (expected, found)) in standard.uses.iter().zip(&kernels.uses).enumerate() {
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = expected.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        println!("gradient {at}: {} elements, error {:.1e}", expected.len(), worst / largest);
        assert!(worst < 1e-5 * largest, "gradient {at} differs by {worst} of {largest}");
    }
}

#[test]
fn gradients_of_fused_convolutions_use_tiled_kernels() {
    let mut b = Builder::new(3);
    let y = b.conv("x", 72, 72, 3, 1);
    let w = b.layer_weight(&[88, 72, 3, 3], 72 * 9);
    let relu = [attr_ints("pads", &[1; 4]), attr_string("activation", "Relu")];
    let y = b.fused("FusedConv", &[&y, &w], &relu, 1).remove(0);
    let model = b.finish(&[2, 72, 40, 37], &y, &[2, 88, 40, 37]);
    let folder = tempfile::tempdir().unwrap();
    let (standard, kernels, nodes) = both(&model, folder.path());
    let count = |op_type: &str| nodes.iter().filter(|node| *node == op_type).count();
    // Both forward, because a fused one is lowered first, and the second with respect to its input. Both with respect
    // to the weights.
    assert_eq!((count("WinogradFilter"), count("WinogradFilterGradient")), (3, 2), "{nodes:?}");
    for (expected, found) in standard.uses.iter().zip(&kernels.uses) {
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let worst = expected.iter().zip(found).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 1e-5 * largest, "{worst} of {largest}");
    }
}

/// Counts the nodes of every kernel in the gradient graph of a fixture, with batches of 8.
fn counts(name: &str) -> Vec<(String, usize)> {
    let analysis = analysed(name);
    let sizes = sizes_for(&analysis.facts, &[("batch".to_owned(), 8)].into());
    let options = GradientOptions { sizes, wanted: analysis.prunable_weights(), ..GradientOptions::default() };
    let graph = GradientGraph::build_for(analysis, &options, Device::Cpu).unwrap();
    let mut counts = BTreeMap::new();
    for node in graph.model.graph.unwrap().node.into_iter().filter(|node| node.domain == DOMAIN) {
        *counts.entry(node.op_type).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[test]
fn every_pattern_with_a_kernel_is_recognised() {
    let named =
        |pairs: &[(&str, usize)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Vec<_>>();
    let of_unet = named(&[
        ("Norm", 41),
        ("NormGradient", 41),
        ("SiluGradient", 2),
        ("SoftmaxGradient", 6),
        ("WinogradConv", 44),
        ("WinogradFilter", 44),
        ("WinogradFilterGradient", 23),
        ("WinogradProducts", 23),
    ]);
    assert_eq!(counts("ddpm_fashion16.onnx"), of_unet);
    let of_transformer = named(&[("NormGradient", 7), ("SiluGradient", 6), ("SoftmaxGradient", 3)]);
    assert_eq!(counts("dit_tiny.onnx"), of_transformer);
}
