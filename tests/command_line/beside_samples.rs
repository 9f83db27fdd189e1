//! Conditioning that is stored with the samples of the data.

use std::path::Path;

use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::npz;
use serde_json::Value;

use super::tool::{run, succeed};
use crate::support::fixtures::fixture;

const SAMPLES: usize = 8;

fn array(dims: &[usize], frequency: f64) -> Array {
    let count: usize = dims.iter().product();
    let values: Vec<f64> = (0..count).map(|at| (at as f64 * frequency).sin()).collect();
    Array::from_f64(ElementType::F32, dims.to_vec(), &values).unwrap()
}

/// Writes latents with text states (5 tokens each) in one file, and each of the two in a file of its own.
fn write(folder: &Path) -> [String; 3] {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (latents, states) = (array(&[SAMPLES, 4, 8, 8], 0.7), array(&[SAMPLES, 5, 16], 1.3));
    let [both, alone, beside] = ["both.npz", "latents.npz", "states.npz"].map(path);
    npz::write(Path::new(&both), [("samples", &latents), ("encoder_hidden_states", &states)]).unwrap();
    npz::write(Path::new(&alone), [("samples", &latents)]).unwrap();
    npz::write(Path::new(&beside), [("encoder_hidden_states", &states)]).unwrap();
    [both, alone, beside]
}

fn losses(json: &Value) -> Vec<f64> {
    json["losses"].as_array().unwrap().iter().map(|point| point["loss"].as_f64().unwrap()).collect()
}

#[test]
fn conditioning_in_the_data_is_used_like_that_of_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let [both, alone, beside] = write(folder.path());
    let model = fixture("pipelines/sd_tiny/unet/model.onnx");
    let of = |data: &str, more: &[&str]| {
        let mut arguments = vec!["loss", model.to_str().unwrap(), "--data", data, "--count", "8", "--batch", "4"];
        arguments.extend(["--timesteps", "3", "--format", "json"]);
        arguments.extend(more);
        losses(&succeed(&arguments).json())
    };
    let found = of(&both, &[]);
    assert_eq!(found, of(&alone, &["--inputs", &beside]));
    assert_ne!(found, of(&alone, &["--size", "sequence_length=5"]), "random text states should lead to other losses");
}

#[test]
fn pruning_and_fine_tuning_use_the_token_count_of_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let [both, ..] = write(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let original = fixture("pipelines/sd_tiny/unet/model.onnx");
    let original = original.to_str().unwrap();
    let (cut, tuned) = (path("cut.onnx"), path("tuned.onnx"));
    let prune = [original, &cut, "--ratio", "0.3", "--data", &both, "--timesteps", "2", "--batch", "4"];
    let done = succeed(&[&prune[..], &["--refit-samples", "4", "--no-latency"]].concat());
    assert!(done.err.contains("encoder_hidden_states") && !done.err.contains("random values"), "{}", done.err);
    let tune = ["finetune", &cut, &tuned, "--teacher", original, "--data", &both, "--steps", "2", "--batch", "4"];
    succeed(&[&tune[..], &["--eval-samples", "0", "--warmup", "0"]].concat());
}

#[test]
fn conditioning_of_another_hidden_size_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.npz");
    let (latents, states) = (array(&[4, 4, 8, 8], 0.7), array(&[4, 5, 32], 1.3));
    npz::write(&path, [("samples", &latents), ("encoder_hidden_states", &states)]).unwrap();
    let model = fixture("pipelines/sd_tiny/unet/model.onnx");
    let data = path.to_str().unwrap();
    let done = run(&["loss", model.to_str().unwrap(), "--data", data, "--count", "4", "--timesteps", "2"]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(["data.npz", "encoder_hidden_states", "[5, 16]", "[5, 32]"].iter().all(|part| done.err.contains(part)));
}
