//! The gradient criteria on the command line.

use std::path::Path;

use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::npz;
use prost::Message;

use super::tool::{run, succeed};
use crate::support::builder::{Builder, value};
use crate::support::fixtures::fixture;

/// Prunes the trained network at few timesteps with more arguments. Returns the printed JSON.
fn prune(output: &Path, more: &[&str]) -> serde_json::Value {
    let (input, scheduler) = (fixture("ddpm_fashion16.onnx"), fixture("ddpm_fashion16/scheduler_config.json"));
    let mut arguments = vec![input.to_str().expect("a path"), output.to_str().expect("a path"), "--ratio", "0.3"];
    arguments.extend(["--scheduler-config", scheduler.to_str().expect("a path"), "--format", "json"]);
    arguments.extend(["--batch", "4", "--no-latency", "--no-refit"]);
    arguments.extend(more);
    succeed(&arguments).json()
}

#[test]
fn the_default_criterion_generates_samples_and_reports_the_loss_curve() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, report) = (folder.path().join("out.onnx"), folder.path().join("report.html"));
    let result = prune(&output, &["--timesteps", "12", "--report", report.to_str().expect("a path")]);
    assert_eq!(result["criterion"], "diff-pruning");
    assert_eq!(result["verification"]["passed"], true);
    let gradients = &result["gradients"];
    assert!(gradients["samples"].as_str().is_some_and(|text| text.contains("by the network itself")));
    let curve = gradients["curve"].as_array().expect("a curve");
    let kept = curve.iter().filter(|point| point["kept"] == true).count();
    // The loss of a trained network falls with t. The sum ends at the first timestep below the threshold, without it.
    assert_eq!(kept + 1, curve.len());
    assert_eq!(gradients["kept_timesteps"], kept);
    // Long names may break over lines.
    let page = std::fs::read_to_string(report).expect("there is a report").replace("<wbr/>", "");
    assert!(page.contains("How channels are ranked") && page.contains("verified") && page.contains("conv_in.weight"));
    assert!(!folder.path().join("out.gradients.npz").exists(), "the checkpoint of a finished run is left behind");
}

#[test]
fn runs_repeat_exactly_and_other_criteria_choose_other_channels() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = |name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        let samples = fixture("ddpm_fashion16/reference.npz");
        let mut arguments = vec!["--timesteps", "8", "--no-verify", "--data", samples.to_str().expect("a path")];
        arguments.extend(more);
        prune(&output, &arguments);
        let text = std::fs::read_to_string(output.with_extension("plan.json")).expect("there is a plan");
        serde_json::from_str::<serde_json::Value>(&text).expect("a plan is JSON")["tensors"].clone()
    };
    let first = plan("a.onnx", &[]);
    assert_eq!(first, plan("b.onnx", &[]), "the same seed leads to another cut");
    // Micro-batches change the order of summation only.
    assert_eq!(first, plan("c.onnx", &["--micro-batch", "2"]));
    for other in [&["--criterion", "taylor"][..], &["--criterion", "hessian"], &["--reference", "ddpm-exp"]] {
        assert_ne!(first, plan("d.onnx", other), "{other:?}");
    }
}

#[test]
fn a_mask_selects_timesteps_relative_to_the_largest_loss() {
    let folder = tempfile::tempdir().expect("a folder");
    let samples = fixture("ddpm_fashion16/reference.npz");
    let data = ["--data", samples.to_str().expect("a path"), "--timesteps", "10", "--no-verify"];
    let output = folder.path().join("out.onnx");
    let result = prune(&output, &[&data[..], &["--threshold-mode", "mask", "--threshold", "0.2"]].concat());
    let curve = result["gradients"]["curve"].as_array().expect("a curve");
    assert_eq!(curve.len(), 10, "a mask visits every timestep");
    let loss = |point: &serde_json::Value| point["loss"].as_f64().expect("a loss");
    let largest = curve.iter().map(loss).fold(0.0, f64::max);
    for point in curve {
        assert_eq!(point["kept"], loss(point) >= 0.2 * largest, "{point}");
    }
}

#[test]
fn invalid_options_are_refused_with_the_option_and_the_valid_range() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out.onnx");
    let input = fixture("ddpm_fashion16.onnx");
    let refused = |more: &[&str]| {
        let mut arguments = vec![input.to_str().expect("a path"), output.to_str().expect("a path"), "--ratio", "0.3"];
        arguments.extend(more);
        let ran = run(&arguments);
        assert!(!output.exists());
        ran
    };
    let samples = fixture("ddpm_fashion16/reference.npz");
    let data = ["--data", samples.to_str().expect("a path")];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--threshold", "1.5"], 2, "--threshold: expected a share"),
        (&[&["--timesteps", "2000"], &data[..]].concat(), 2, "--timesteps: expected 1 to 1000"),
        (&["--batch", "0"], 2, "expected at least 1, found 0"),
        (&["--data", "nothing-here"], 2, "nothing-here"),
        (&["--sample-input", "x"], 2, "\"x\""),
        (&["--criterion", "gradient"], 2, "diff-pruning"),
    ];
    for (more, code, expected) in cases {
        let refused = refused(more);
        assert_eq!(refused.code, *code, "{more:?}: {}", refused.err);
        assert!(refused.err.contains(expected), "{more:?}: {}", refused.err);
    }
}

#[test]
fn a_configuration_file_contains_all_options() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prune.toml");
    let printed =
        succeed(&["--ratio", "0.4", "--threshold", "0.1", "--schedule", "squaredcos_cap_v2", "--print-config"]);
    std::fs::write(&path, &printed.out).expect("the file can be written");
    // Options on the command line take precedence. The file sets the rest.
    let config = path.to_str().expect("a path");
    let again = run(&["--config", config, "--threshold", "0.2", "--print-config"]);
    let table: toml::Table = toml::from_str(&again.out).expect("it is TOML");
    assert_eq!(table["ratio"].as_float(), Some(0.4));
    assert_eq!(table["gradients"]["threshold"].as_float(), Some(0.2));
    assert_eq!(table["diffusion"]["schedule"].as_str(), Some("squaredcos_cap_v2"));
}

#[test]
fn symbolic_sizes_are_set_from_the_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let array = |dims: &[usize]| {
        let values = (0..dims.iter().product()).map(|at: usize| (at as f64 * 0.37).sin()).collect::<Vec<f64>>();
        Array::from_f64(ElementType::F32, dims.to_vec(), &values).expect("an array")
    };
    let write = |name: &str, key: &str, dims: &[usize]| {
        let file = path(name);
        npz::write(Path::new(&file), [(key, &array(dims))]).expect("the file is written");
        file
    };
    // The network takes sample [batch, 4, h, w] and encoder_hidden_states [batch, seq, 48]. The second file has
    // channels last.
    let (first, last) = (write("a.npz", "latents", &[4, 4, 24, 32]), write("b.npz", "latents", &[4, 24, 32, 4]));
    let text_states = write("text.npz", "encoder_hidden_states", &[1, 9, 48]);
    let model = fixture("sd15_tiny_fp16.onnx");
    let model = model.to_str().expect("a path");
    for data in [&first, &last] {
        let arguments = ["loss", model, "--data", data, "--inputs", &text_states, "--count", "4", "--timesteps", "3"];
        succeed(&arguments);
    }
    let output = path("out.onnx");
    let mut arguments = vec![model, &output, "--ratio", "0.25", "--timesteps", "2", "--batch", "2", "--no-latency"];
    arguments.extend(["--refit-samples", "8"]);
    arguments.extend(["--data", &first, "--inputs", &text_states, "--format", "json"]);
    let result = succeed(&arguments).json();
    assert_eq!(result["verification"]["passed"], true);
    // Arrays that match no input are refused before any computation.
    let wrong = write("wrong.npz", "text", &[1, 9, 48]);
    for command in [&["loss", model, "--data", &first][..], &[model, &path("no.onnx"), "--ratio", "0.25"]] {
        let refused = run(&[command, &["--inputs", &wrong]].concat());
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.contains("encoder_hidden_states, found \"text\""), "{}", refused.err);
    }
    // An explicit size takes precedence over that of the data.
    let refused = run(&["loss", model, "--data", &first, "--size", "h=16", "--count", "4", "--timesteps", "3"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("4 x 16 x 32"), "{}", refused.err);
}

#[test]
fn half_precision_is_reported_and_chooses_nearly_the_same_channels() {
    let folder = tempfile::tempdir().expect("a folder");
    let samples = fixture("ddpm_fashion16/reference.npz");
    let kept = |name: &str, precision: &str| {
        let more = ["--timesteps", "8", "--data", samples.to_str().expect("a path"), "--precision", precision];
        let output = folder.path().join(name);
        let result = prune(&output, &more);
        assert_eq!(result["verification"]["passed"], true);
        let text = std::fs::read_to_string(output.with_extension("plan.json")).expect("there is a plan");
        let plan: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        (result["gradients"].clone(), plan["groups"].clone())
    };
    let ((single, expected), (half, found)) = (kept("a.onnx", "float32"), kept("b.onnx", "fp16"));
    assert_eq!((&single["precision"], &single["loss_scale"]), (&"float32".into(), &serde_json::Value::Null));
    assert_eq!(half["precision"], "float16");
    // Four images of 256 elements. Nothing overflowed.
    assert_eq!(half["loss_scale"], 1024.0);
    let kept = |groups: &serde_json::Value| -> Vec<String> {
        let groups = groups.as_array().expect("a list").iter();
        let of = |group: &serde_json::Value| group["kept"].as_array().cloned().unwrap_or_default();
        groups.flat_map(|group| of(group).into_iter().map(|at| format!("{} {at}", group["name"]))).collect()
    };
    let (expected, found) = (kept(&expected), kept(&found));
    let same = expected.iter().filter(|channel| found.contains(channel)).count();
    println!("{same} of {} kept channels are the same", expected.len());
    assert!(expected.len() == found.len() && same * 100 >= expected.len() * 99, "{same} of {}", expected.len());
}

#[test]
fn an_input_can_hold_conditioning_beside_the_channels_of_the_sample() {
    // The prediction is the sum of the channels of the input: the noisy sample and two more.
    let mut b = Builder::new(1);
    let (w, sum) = (b.weight_around(&[8, 3, 1, 1], 0.125, 0.0), b.weight_around(&[1, 8, 1, 1], 1.0, 0.0));
    let y = b.op("Conv", &["x", &w], &[]);
    let y = b.op("Conv", &[&y, &sum], &[]);
    let mut model = b.finish(&[2, 3, 4, 4], &y, &[2, 1, 4, 4]);
    model.graph.as_mut().expect("a graph").input.push(value("timestep", &[2]));
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    std::fs::write(path("net.onnx"), model.encode_to_vec()).expect("the file is written");
    let array = |dims: &[usize], value: &dyn Fn(usize) -> f64| {
        let values: Vec<f64> = (0..dims.iter().product()).map(value).collect();
        Array::from_f64(ElementType::F32, dims.to_vec(), &values).expect("the shape fits")
    };
    npz::write(Path::new(&path("data.npz")), [("x0", &array(&[4, 1, 4, 4], &|at| (at as f64 * 0.7).sin()))])
        .expect("the file is written");
    // One channel of the given array is replaced by the sample. Both commands report the mean loss.
    let loss = |command: &[&str], offset: usize, further: f64| -> f64 {
        let given = array(&[2, 3, 4, 4], &|at| if at / 16 % 3 == offset { 1e6 } else { further });
        npz::write(Path::new(&path("given.npz")), [("x", &given)]).expect("the file is written");
        let (data, given, offset) = (path("data.npz"), path("given.npz"), offset.to_string());
        let shared = ["--data", &data, "--inputs", &given, "--timesteps", "3", "--format", "json"];
        let shared = [&shared[..], &["--sample-offset", &offset]].concat();
        let result = succeed(&[command, &shared].concat()).json();
        let curve = result["gradients"]["curve"].as_array().cloned().unwrap_or_default();
        let losses: Vec<f64> = curve.iter().filter_map(|point| point["loss"].as_f64()).collect();
        result["mean"].as_f64().unwrap_or_else(|| losses.iter().sum::<f64>() / losses.len() as f64)
    };
    let model = path("net.onnx");
    let prune = [&model, "--dry-run", "--ratio", "0.25", "--batch", "4", "--threshold", "0"];
    for command in [&["loss", &model, "--count", "4"][..], &prune] {
        // The sum of the means of (x_t - e + 2 k)^2 and (x_t - e - 2 k)^2 is 8 k^2 above twice the mean of (x_t - e)^2.
        for offset in [0, 1, 2] {
            let loss = |further: f64| loss(command, offset, further);
            let rise = loss(0.5) + loss(-0.5) - 2.0 * loss(0.0);
            assert!((rise - 2.0).abs() < 1e-4, "{command:?} at {offset}: {rise}");
        }
    }
    let refused = run(&["loss", &model, "--data", &path("data.npz"), "--count", "4", "--sample-offset", "3"]);
    assert!(
        refused.code == 2 && ["--sample-offset 3", "0 to 2"].iter().all(|fact| refused.err.contains(fact)),
        "{}",
        refused.err
    );
}

#[test]
fn weights_whose_gradients_exceed_the_memory_are_scored_in_several_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let samples = fixture("ddpm_fashion16/reference.npz");
    let score = |more: &[&str]| {
        let output = folder.path().join("out.onnx");
        let mut arguments = vec!["--timesteps", "8", "--no-verify", "--data", samples.to_str().expect("a path")];
        arguments.extend(["--micro-batch", "1"]);
        arguments.extend(more);
        let result = prune(&output, &arguments);
        let text = std::fs::read_to_string(output.with_extension("plan.json")).expect("there is a plan");
        let plan = serde_json::from_str::<serde_json::Value>(&text).expect("a plan is JSON");
        (result["gradients"].clone(), plan["tensors"].clone())
    };
    let bytes = |of: &serde_json::Value, part: &str| of["memory"][part].as_u64().unwrap_or(0);
    for criterion in [&["--criterion", "diff-pruning"][..], &["--criterion", "hessian"], &["--reference", "ddpm-exp"]] {
        let (whole, kept) = score(criterion);
        assert_eq!(whole["passes"], 1);
        let parts = ["weights", "gradients", "sums", "activations", "loading", "library"];
        assert_eq!(parts.map(|part| bytes(&whole, part)).iter().sum::<u64>(), bytes(&whole, "total"), "{whole}");
        let memory = (bytes(&whole, "total") - bytes(&whole, "gradients")).to_string();
        let (divided, kept_divided) = score(&[criterion, &["--memory", &memory]].concat());
        assert!(divided["passes"].as_u64().is_some_and(|passes| passes > 1), "{divided}");
        assert!(bytes(&divided, "total") <= bytes(&whole, "total") - bytes(&whole, "gradients"), "{divided}");
        assert_eq!(divided["curve"], whole["curve"], "the first pass should visit all timesteps");
        assert_eq!(kept_divided, kept, "{criterion:?}");
    }
    // The sums of the Taylor criterion are computed in the graph.
    let (whole, _) = score(&["--criterion", "diff-pruning"]);
    let (taylor, _) = score(&["--criterion", "taylor"]);
    assert!(2 * bytes(&taylor, "sums") < bytes(&whole, "sums"), "{taylor}");
    let output = folder.path().join("refused.onnx");
    let input = fixture("ddpm_fashion16.onnx");
    let paths = [input.to_str().expect("a path"), output.to_str().expect("a path")];
    let run = run(&[&paths[..], &["--ratio", "0.3", "--batch", "2", "--memory", "30M"]].concat());
    assert_eq!(run.code, 1);
    assert!(run.err.contains("needs about") && run.err.contains("activations"), "{}", run.err);
}
