//! The artifacts for training sessions, as far as an ONNX Runtime without a training API can check them.
//! `scripts/check_training.py` runs them in a training session.

use std::collections::BTreeSet;

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::gradient::pass::GradientPass;
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, LOSS, TARGET};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, ValueInfoProto};
use onnx_diffprune::prune::cutting::cut;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::runtime::SessionOptions;
use onnx_diffprune::training::{Artifacts, FILES, TrainingOptions, trained_weights};
use prost::Message;
use regex::Regex;

use crate::support::fixtures::{THREADS, analysed, runtime};

fn options(trained: Vec<usize>, sizes: Sizes) -> TrainingOptions {
    TrainingOptions { sizes, prediction: None, channels: None, trained, outputs_gradients: false }
}

fn names(values: &[ValueInfoProto]) -> Vec<&str> {
    values.iter().map(|value| value.name.as_str()).collect()
}

/// Asserts that every input of a node is defined before it, and that no name is defined twice.
fn assert_is_sound(model: &ModelProto) {
    let graph = model.graph.as_ref().expect("there is a graph");
    let given = names(&graph.input).into_iter().chain(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    let mut known = BTreeSet::from([""]);
    for name in given {
        assert!(known.insert(name), "{name} is defined twice");
    }
    for node in &graph.node {
        for name in &node.input {
            assert!(known.contains(name.as_str()), "{} takes {name} as input before it is defined", node.name);
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            assert!(known.insert(name), "{name} is defined twice");
        }
    }
    for name in names(&graph.output) {
        assert!(known.contains(name), "output {name} is not computed");
    }
}

#[test]
fn models_have_the_inputs_that_a_training_session_expects() {
    let analysis = analysed("ddpm_fashion16.onnx");
    let trained = trained_weights(analysis, &[]).unwrap();
    let sizes = Sizes::from([("batch".to_owned(), 2)]);
    let artifacts = Artifacts::build(analysis, &options(trained, sizes)).unwrap();
    for model in [&artifacts.training_model, &artifacts.eval_model, &artifacts.optimizer_model] {
        assert_is_sound(model);
    }
    assert_eq!(artifacts.inputs, ["sample", "timestep", TARGET]);
    assert_eq!(artifacts.target_shape, [2, 1, 16, 16]);
    let weights: Vec<&str> = artifacts.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    assert!(weights.contains(&"conv_in.weight") && weights.contains(&"conv_out.bias"));
    let training = artifacts.training_model.graph.as_ref().unwrap();
    let eval = artifacts.eval_model.graph.as_ref().unwrap();
    let buffers = weights.iter().map(|name| format!("{name}_grad.accumulation.buffer"));
    let mut expected: Vec<String> = artifacts.inputs.clone();
    expected.extend(weights.iter().map(|name| (*name).to_owned()));
    assert_eq!(names(&eval.input), expected);
    expected.extend(buffers.chain(["lazy_reset_grad".to_owned()]));
    assert_eq!(names(&training.input), expected);
    let mut outputs = vec![LOSS.to_owned()];
    assert_eq!(names(&eval.output), outputs);
    outputs.extend(weights.iter().map(|name| format!("{name}_grad.accumulation.out")));
    assert_eq!(names(&training.output), outputs);
    let optimizer = artifacts.optimizer_model.graph.as_ref().unwrap();
    let expected = ["learning_rate", "step", "params", "gradients", "first_order_moments", "second_order_moments"];
    assert_eq!(names(&optimizer.input), expected);
}

#[test]
fn the_eval_model_computes_the_loss_of_the_gradient_graph() {
    // The weights are float16, so they are widened.
    let analysis = analysed("sd15_tiny_fp16.onnx");
    let trained = trained_weights(analysis, &[]).unwrap();
    let sizes = onnx_diffprune::graph::sizes::sizes_for(&analysis.facts, &Sizes::new());
    let artifacts = Artifacts::build(analysis, &options(trained, sizes.clone())).unwrap();
    let options = GradientOptions { sizes: sizes.clone(), wanted: Vec::new(), ..GradientOptions::default() };
    let graph = GradientGraph::build(analysis, &options).unwrap();
    let mut inputs = onnx_diffprune::inputs::random_inputs(analysis, &sizes, 3).unwrap();
    let dims: Vec<usize> = artifacts.target_shape.iter().map(|size| *size as usize).collect();
    let target: Vec<f64> = (0..dims.iter().product()).map(|at: usize| (at as f64).sin()).collect();
    inputs.push((TARGET.to_owned(), Array::from_f64(ElementType::F32, dims, &target).unwrap()));
    inputs.retain(|(name, _)| artifacts.inputs.contains(name));
    for (_, array) in inputs.iter_mut().filter(|(_, array)| array.element_type().is_float()) {
        *array = array.cast(ElementType::F32);
    }
    let expected = GradientPass::new(runtime(), &graph, &analysis.model, THREADS)
        .unwrap()
        .run(&analysis.model, &inputs)
        .unwrap()
        .loss;
    for parameter in &artifacts.parameters {
        let values: Vec<f64> =
            parameter.values.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
        let dims = parameter.dims.iter().map(|size| *size as usize).collect();
        inputs.push((parameter.name.clone(), Array::from_f64(ElementType::F32, dims, &values).unwrap()));
    }
    let bytes = artifacts.eval_model.encode_to_vec();
    let mut session = runtime().session_from_bytes(&bytes, &SessionOptions::default()).unwrap();
    let outputs = session.run(&inputs).unwrap();
    let loss = outputs[0].1.to_f64()[0];
    assert!(expected > 0.1 && (loss - expected).abs() < 1e-5 * expected, "{loss} instead of {expected}");
}

#[test]
fn patterns_choose_the_trained_weights() {
    let analysis = analysed("dit_tiny.onnx");
    let pattern = [Regex::new(r"^m\.pos_embed\.proj\.").unwrap()];
    let trained = trained_weights(analysis, &pattern).unwrap();
    let artifacts = Artifacts::build(analysis, &options(trained, Sizes::new())).unwrap();
    let weights: Vec<&str> = artifacts.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(weights.len(), 2, "{weights:?}");
    assert_is_sound(&artifacts.training_model);
    let nothing = trained_weights(analysis, &[Regex::new("no such weight").unwrap()]).unwrap_err();
    assert!(nothing.to_string().contains("no such weight"), "{nothing}");
    let nothing = Artifacts::build(analysis, &options(Vec::new(), Sizes::new())).unwrap_err();
    assert_eq!(nothing.exit_code(), 1);
}

#[test]
fn the_trained_weights_of_a_pruned_network_are_the_same() {
    let analysis = analysed("ddpm_fashion16.onnx");
    let options = PruneOptions::by_magnitude(Target::Ratio(0.5));
    let cut = cut(analysis, &options, onnx_diffprune::runtime::Runtime::open(None).ok()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pruned.onnx");
    onnx_diffprune::write::write(&analysis.model, &cut.rewritten.edits, &out).unwrap();
    let pruned = load(&out).unwrap();
    let after = analyse(&pruned).unwrap();
    let names = |analysis: &Analysis| -> Vec<String> {
        let trained = trained_weights(analysis, &[]).unwrap();
        let mut names: Vec<String> =
            trained.into_iter().map(|value| analysis.graph.values[value].name.clone()).collect();
        names.sort();
        names
    };
    let (before, after) = (names(analysis), names(&after));
    assert_eq!(before.len(), 268);
    // The table of frequencies shrinks too, but is not trained.
    assert_eq!(before, after);
}

#[test]
fn all_files_are_written_or_none() {
    let analysis = analysed("dit_tiny.onnx");
    let trained = trained_weights(analysis, &[]).unwrap();
    let artifacts = Artifacts::build(analysis, &options(trained, Sizes::new())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("made");
    artifacts.write(analysis, &out).unwrap();
    artifacts.write(analysis, &out).unwrap();
    let mut found: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    let mut expected = FILES.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(std::fs::read(out.join("checkpoint")).unwrap(), artifacts.checkpoint);
    // A folder has the name of an output file: nothing is written.
    let taken = folder.path().join("taken");
    std::fs::create_dir_all(taken.join("checkpoint")).unwrap();
    assert_eq!(artifacts.write(analysis, &taken).unwrap_err().exit_code(), 2);
    assert_eq!(std::fs::read_dir(&taken).unwrap().count(), 1);
    assert!(artifacts.write(analysis, &folder.path().join("no/such")).is_err());
    // The input has the name of an output file.
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let copy = own.join("training_model.onnx");
    std::fs::copy(analysis.model.path(), &copy).unwrap();
    let copied = load(&copy).unwrap();
    let error = artifacts.write(&analyse(&copied).unwrap(), &own).unwrap_err();
    assert!(error.to_string().contains("replace the input"), "{error}");
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), 1);
}
