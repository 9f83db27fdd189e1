//! The command `finetune`: what it writes, how it is interrupted, and which options it refuses.

use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::{Child, Command, Stdio};
#[cfg(unix)]
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tool::{run, succeed};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).to_str().unwrap().to_owned()
}

/// Writes a cut of the trained network, which samples only noise.
fn cut(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("cut.onnx");
    let options = ["--ratio", "0.3", "--criterion", "magnitude", "--no-verify", "--no-latency", "--quiet"];
    succeed(&[&[fixture("ddpm_fashion16.onnx").as_str(), path.to_str().unwrap()], &options[..]].concat());
    path
}

/// Returns the arguments of a run of a few steps.
fn arguments(input: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let (teacher, data) = (fixture("ddpm_fashion16.onnx"), fixture("ddpm_fashion16/train_images.npy"));
    let paths = ["finetune", input.to_str().unwrap(), output.to_str().unwrap()];
    let options = ["--teacher", &teacher, "--data", &data, "--batch", "8", "--format", "json"];
    [&paths[..], &options[..], more].concat().into_iter().map(str::to_owned).collect()
}

fn tuned(input: &Path, output: &Path, more: &[&str]) -> Value {
    let arguments = arguments(input, output, more);
    succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).json()
}

#[test]
fn a_cut_learns_from_its_original_and_can_still_be_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (cut(&folder), folder.path().join("tuned.onnx"));
    let more = ["--steps", "12", "--eval-every", "6", "--eval-samples", "16", "--eval-pictures", "4", "--flip"];
    let result = tuned(&input, &output, &more);
    let training = &result["training"];
    assert_eq!((&training["steps"], &training["best_step"]), (&12.into(), &12.into()), "{training}");
    let losses: Vec<f64> =
        training["evaluations"].as_array().unwrap().iter().map(|of| of["loss"].as_f64().unwrap()).collect();
    assert!(losses.len() == 3 && losses[2] < 0.8 * losses[0], "{losses:?}");
    assert!(training["teacher"]["loss"].as_f64().unwrap() < losses[2]);
    assert_eq!(result["verification"]["passed"], true);
    // The file contains its plan, so it can be verified against the original.
    let original = fixture("ddpm_fashion16.onnx");
    succeed(&["verify", &original, output.to_str().unwrap(), "--quiet"]);
    let run_folder = folder.path().join("tuned.finetune");
    let lines = fs::read_to_string(run_folder.join("metrics.jsonl")).unwrap();
    let steps: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.iter().filter(|line| line["learning_rate"].is_number()).count(), 12);
    let picture = fs::read(run_folder.join("samples-000012.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
}

#[test]
fn only_the_weights_of_a_network_without_plan_change() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("network.onnx"), folder.path().join("tuned.onnx"));
    fs::copy(fixture("ddpm_fashion16.onnx"), &input).unwrap();
    let data = fixture("ddpm_fashion16/train_images.npy");
    let paths = ["finetune", input.to_str().unwrap(), output.to_str().unwrap(), "--data", &data];
    let options = ["--steps", "2", "--batch", "4", "--eval-samples", "0", "--train", "mid_block", "--quiet"];
    succeed(&[&paths[..], &options[..]].concat());
    let [before, after] = [&input, &output].map(|path| {
        let model = onnx_diffprune::load::load(path).unwrap();
        let tensors = model.graph().initializer.iter();
        let bytes = tensors.map(|tensor| (tensor.name.clone(), model.tensor_bytes(tensor).unwrap().into_owned()));
        bytes.collect::<std::collections::BTreeMap<_, _>>()
    });
    let changed: Vec<&String> = before.keys().filter(|name| before[*name] != after[*name]).collect();
    assert!(!changed.is_empty() && changed.iter().all(|name| name.contains("mid_block")), "{changed:?}");
    assert!(!folder.path().join("tuned.plan.json").exists());
}

#[cfg(unix)]
fn started(arguments: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until a run has saved its first checkpoint.
#[cfg(unix)]
fn until_saved(run_folder: &Path, child: &mut Child) {
    let started = Instant::now();
    let is_saved = || {
        let entries = fs::read_dir(run_folder).into_iter().flatten().filter_map(Result::ok);
        entries.into_iter().any(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"))
    };
    while !is_saved() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before its first checkpoint");
        assert!(started.elapsed() < Duration::from_secs(300), "no checkpoint within 300 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[cfg(unix)]
fn a_killed_run_resumes_to_the_weights_of_an_uninterrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let input = cut(&folder);
    let more = ["--steps", "8", "--eval-samples", "8", "--eval-every", "4", "--checkpoint-every", "2", "--no-verify"];
    let [whole, parts] = ["whole.onnx", "parts.onnx"].map(|name| folder.path().join(name));
    tuned(&input, &whole, &more);
    let mut child = started(&arguments(&input, &parts, &more));
    until_saved(&folder.path().join("parts.finetune"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!parts.exists());
    let result = tuned(&input, &parts, &[&more[..], &["--resume"]].concat());
    assert_eq!(result["training"]["steps"], 8);
    let weights = |path: &Path| {
        let model = onnx_diffprune::load::load(path).unwrap();
        let tensors = model.graph().initializer.clone();
        tensors.iter().map(|tensor| model.tensor_bytes(tensor).unwrap().into_owned()).collect::<Vec<_>>()
    };
    assert!(weights(&whole) == weights(&parts), "the weights differ");
    let lines = fs::read_to_string(folder.path().join("parts.finetune/metrics.jsonl")).unwrap();
    let steps: Vec<u64> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap().get("loss").map(|_| line.to_owned()))
        .map(|line| serde_json::from_str::<Value>(&line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
}

#[test]
#[cfg(unix)]
#[allow(unsafe_code)]
fn an_interrupted_run_writes_the_weights_reached_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (cut(&folder), folder.path().join("tuned.onnx"));
    let more = ["--steps", "100000", "--eval-samples", "0", "--checkpoint-every", "2", "--no-verify"];
    let mut child = started(&arguments(&input, &output, &more));
    until_saved(&folder.path().join("tuned.finetune"), &mut child);
    // Shells start background processes with SIGINT ignored. SIGTERM is handled alike.
    // SAFETY: sends a signal to our child process, which has not been waited for.
    unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGTERM) };
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(output.exists() && folder.path().join("tuned.plan.json").exists());
}

#[test]
fn invalid_options_are_refused_before_training_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (fixture("ddpm_fashion16.onnx"), folder.path().join("tuned.onnx"));
    let (data, output_text) = (fixture("ddpm_fashion16/train_images.npy"), output.to_str().unwrap());
    let paths = ["finetune", &input, output_text];
    let with_data = [&paths[..], &["--data", &data]].concat();
    let cases: [(&[&str], &str); 16] = [
        (&[], "--data"),
        (&["--data", "nowhere"], "nowhere"),
        (&["--data", &data, "--distill", "0.5"], "--teacher"),
        (&["--data", &data, "--batch", "6", "--micro-batch", "4"], "multiple"),
        (&["--data", &data, "--batch", "0"], "--batch"),
        (&["--data", &data, "--lr", "0"], "--lr"),
        (&["--data", &data, "--ema", "1.5"], "--ema"),
        (&["--data", &data, "--huber", "0"], "--huber"),
        (&["--data", &data, "--train", "no_such_weight"], "--train"),
        (&["--data", &data, "--max-hours", "0"], "--max-hours"),
        (&["--data", &data, "--distill-features", "auto"], "--teacher"),
        (&["--data", &data, "--distill-jacobian", "0.1"], "--teacher"),
        (&["--data", &data, "--distill-jacobian", "nan"], "--distill-jacobian"),
        (&["--data", &data, "--distill-features-weight", "1"], "--distill-features <"),
        (&["--data", &data, "--teacher", &input, "--distill-features", "["], "regular expression"),
        (&["--data", &data, "--teacher", &input, "--distill-features", "no_such_value"], "values that can be compared"),
    ];
    for (more, named) in cases {
        let ran = run(&[&paths[..], more].concat());
        assert!(ran.code == 2 && ran.err.contains(named), "{more:?}: {} {}", ran.code, ran.err);
    }
    // The output must not replace the input.
    let ran = run(&["finetune", &input, &input, "--data", &data]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    let ran = run(&[&with_data[..], &["--teacher", &fixture("dit_tiny.onnx"), "--steps", "1"]].concat());
    assert!(ran.code == 2 && ran.err.contains("teacher"), "{} {}", ran.code, ran.err);
    assert!(!output.exists());
}

#[test]
fn the_micro_batch_is_the_largest_that_fits_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let input = PathBuf::from(fixture("ddpm_fashion16.onnx"));
    let output = |name: &str| folder.path().join(name);
    let steps = ["--steps", "2", "--eval-samples", "0", "--no-verify"];
    let whole = tuned(&input, &output("whole.onnx"), &steps)["training"].clone();
    assert_eq!(whole["micro_batch"], 8);
    let bytes = |of: &Value, part: &str| of["memory"][part].as_u64().unwrap_or(0);
    assert!(bytes(&whole, "moments") == 2 * bytes(&whole, "average") && bytes(&whole, "teacher") > 0, "{whole}");
    // A limit that excludes half of the activations. Smaller micro-batches then need memory for the sums of their
    // gradients.
    let memory = bytes(&whole, "total") - bytes(&whole, "activations") / 2 + bytes(&whole, "average");
    let memory = memory.to_string();
    let less = tuned(&input, &output("less.onnx"), &[&steps[..], &["--memory", &memory]].concat())["training"].clone();
    assert!(less["micro_batch"].as_u64().is_some_and(|samples| samples < 8), "{less}");
    assert!(bytes(&less, "total") <= memory.parse().unwrap(), "{less}");
    let loss = |of: &Value| of["training_loss"].as_f64().unwrap();
    assert!((loss(&whole) - loss(&less)).abs() < 1e-5 * loss(&whole), "{less}");
    let more = [&steps[..], &["--memory", "60M"]].concat();
    let arguments = arguments(&input, &output("refused.onnx"), &more);
    let refused = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("training with runs of one sample needs about"), "{}", refused.err);
}
