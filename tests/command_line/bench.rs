//! The command `bench` as users run it, and the latency that pruning reports.

use serde_json::Value;

use super::tool::{run, succeed};
use crate::support::fixtures::fixture;

/// Prunes a fixture without a refit. Returns the path of the output and the latency from the printed JSON.
fn pruned(name: &str, folder: &std::path::Path, more: &[&str]) -> (String, Value) {
    let output = folder.join("pruned.onnx").to_str().unwrap().to_owned();
    let input = fixture(name);
    let arguments =
        [input.to_str().unwrap(), &output, "--ratio", "0.5", "--criterion", "magnitude", "--format", "json"];
    let latency = succeed(&[&arguments, more].concat()).json()["latency_ms"].clone();
    (output, latency)
}

#[test]
fn networks_are_timed_in_turn_with_a_table_of_operators() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _) = pruned("ddpm_fashion16.onnx", folder.path(), &["--no-latency"]);
    let original = fixture("ddpm_fashion16.onnx");
    let arguments = ["bench", original.to_str().unwrap(), &output, "--batch", "1,3", "--runs", "10", "--threads", "1"];
    let json = succeed(&[&arguments[..], &["--format", "json"]].concat()).json();
    let points = json["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!(points[1]["inputs"][0], serde_json::json!(["sample", [3, 1, 16, 16]]));
    for network in points.iter().flat_map(|point| point["networks"].as_array().unwrap()) {
        let latency = &network["latency"];
        let of = |key: &str| latency[key].as_f64().unwrap();
        assert!(of("min_ms") > 0.0 && of("min_ms") <= of("median_ms") && of("median_ms") <= of("p90_ms"), "{latency}");
        assert_eq!(latency["run_count"], 10);
        if cfg!(target_os = "linux") {
            // The weights of the smaller network alone take this much memory.
            assert!(network["peak_memory"].as_u64().unwrap() > 400_000, "{network}");
        }
        let operators = network["operators"].as_array().unwrap();
        let convolutions = operators.iter().find(|time| time["operator"] == "Conv").unwrap();
        assert!(convolutions["count"].as_u64().unwrap() >= 40, "{convolutions}");
        let total: f64 = operators.iter().map(|time| time["median_ms"].as_f64().unwrap()).sum();
        // The operators add up to about the run. Profiling and the load of the machine account for the rest.
        assert!(total > of("min_ms") / 4.0 && total < of("median_ms") * 8.0, "{total} {latency}");
    }
    // A batch of three takes longer than one sample, and the original longer than the cut.
    let median =
        |point: usize, network: usize| points[point]["networks"][network]["latency"]["min_ms"].as_f64().unwrap();
    assert!(median(1, 0) > median(0, 0) && median(1, 0) > median(1, 1));
    let text = succeed(&arguments).out;
    assert!(text.contains("last vs first") && text.contains("pruned.onnx"), "{text}");
}

#[test]
fn assumed_sizes_are_reported_and_unknown_ones_refused() {
    let network = fixture("sd15_tiny_fp16.onnx");
    let network = network.to_str().unwrap();
    let short = ["bench", network, "--runs", "2", "--no-operators", "--format", "json"];
    let ran = succeed(&short);
    assert!(ran.err.contains("assumed sizes") && ran.err.contains("--size"), "{}", ran.err);
    let assumed = ran.json()["assumed"].as_object().unwrap().clone();
    // Captions have 77 tokens, unless a pipeline has another length.
    assert!(ran.json()["points"][0]["inputs"][2][1][1] == 77 && !assumed.contains_key("seq"), "{assumed:?}");
    assert!(!assumed.is_empty() && !assumed.contains_key("batch"), "{assumed:?}");
    let sizes: Vec<String> = assumed.keys().map(|name| format!("{name}=8")).collect();
    let given: Vec<&str> = sizes.iter().flat_map(|size| ["--size", size.as_str()]).collect();
    let ran = succeed(&[&short[..], &given].concat());
    assert!(!ran.err.contains("--size"), "{}", ran.err);
    assert_eq!(ran.json()["points"][0]["inputs"][0][1], serde_json::json!([1, 4, 8, 8]));
    let wrong = run(&[&short[..], &["--size", "nothing=8"]].concat());
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("nothing"), "{}", wrong.err);
}

#[test]
fn sizes_default_to_those_of_the_pipeline_around_a_network() {
    let network = fixture("pipelines/sd_tiny/unet/model.onnx");
    let config = std::fs::read(fixture("pipelines/sd_tiny/unet/config.json")).unwrap();
    let edge = serde_json::from_slice::<Value>(&config).unwrap()["sample_size"].clone();
    let arguments = ["bench", network.to_str().unwrap(), "--runs", "2", "--no-operators", "--format", "json"];
    let ran = succeed(&arguments);
    let inputs = &ran.json()["points"][0]["inputs"];
    assert_eq!(inputs[0], serde_json::json!(["sample", [1, 4, edge, edge]]));
    assert_eq!(inputs[2][1][1], 77);
    assert!(!ran.err.contains("--size"), "{}", ran.err);
}

#[test]
fn the_latency_of_a_cut_is_measured_at_the_given_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let (_, latency) = pruned("sd15_tiny_fp16.onnx", folder.path(), &[]);
    let sizes = latency["sizes"].as_object().unwrap().clone();
    let name = sizes.iter().find(|(_, size)| **size == 16).unwrap().0.clone();
    let (_, latency) = pruned("sd15_tiny_fp16.onnx", folder.path(), &["--size", &format!("{name}=32")]);
    assert_eq!(latency["sizes"][&name], 32);
    assert!(latency["before"].as_f64().unwrap() > 0.0);
}

#[test]
fn precisions_have_short_names() {
    for (given, meant) in [("fp16", "float16"), ("float16", "float16"), ("fp32", "float32")] {
        let printed = succeed(&["a.onnx", "b.onnx", "--ratio", "0.5", "--precision", given, "--print-config"]).out;
        assert!(printed.contains(&format!("precision = \"{meant}\"")), "{printed}");
    }
}
