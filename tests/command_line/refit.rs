//! Cuts with refitted weights: quality on held-out images, repetition, and refused options.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onnx_diffprune::options::RefitOptions;
use onnx_diffprune::{
    CriterionOption, GradientSettings, Model, Progress, Ratio, RefitSettings, Runtime, ScoreOptions, Stage, Staged,
};
use serde_json::Value;

use crate::tool::{run, succeed};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).to_str().unwrap().to_owned()
}

fn model() -> String {
    fixture("ddpm_fashion16.onnx")
}

fn data() -> String {
    fixture("ddpm_fashion16/train_images.npy")
}

const CUT: [&str; 8] =
    ["--ratio", "0.3", "--criterion", "magnitude", "--refit-samples", "96", "--no-latency", "--quiet"];

/// Prunes and refits on the training images. Returns the printed JSON.
fn refitted(output: &Path, more: &[&str]) -> Value {
    let (model, data, output) = (model(), data(), output.to_str().unwrap());
    let arguments = [&[model.as_str(), output, "--data", &data, "--format", "json"], &CUT[..], more].concat();
    succeed(&arguments).json()
}

/// Computes the mean denoising loss on held-out images.
fn loss(network: &Path) -> f64 {
    let (heldout, network) = (fixture("ddpm_fashion16/heldout_images.npy"), network.to_str().unwrap());
    let options = ["--count", "64", "--timesteps", "10", "--format", "json"];
    succeed(&[&["loss", network, "--data", &heldout], &options[..]].concat()).json()["mean"].as_f64().unwrap()
}

fn path(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

#[test]
fn a_refit_recovers_most_of_the_loss_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (output, report) = (path(&folder, "fitted.onnx"), path(&folder, "report.html"));
    let result = refitted(&output, &["--report", report.to_str().unwrap()]);
    let refit = &result["refit"];
    assert_eq!(refit["samples"], 96);
    // All layers, except one or two of the time embedding whose fit does not generalise between the timesteps.
    let layers = refit["layers"].as_array().unwrap().len() as u64;
    assert!(layers == 92 && refit["fitted"].as_u64().unwrap() >= 88, "{refit}");
    assert!(result["verification"]["passed"].as_bool().unwrap());
    assert!(result["cut_verification"]["passed"].as_bool().unwrap());
    let mean = |name: &str| refit["losses"]["mean"][name].as_f64().unwrap();
    let left = (mean("refitted") - mean("original")) / (mean("cut") - mean("original"));
    assert!((0.0..0.35).contains(&left), "{left}");
    let page = fs::read_to_string(report).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 3);

    // The command `loss` finds the same, on other images.
    let cut = path(&folder, "cut.onnx");
    succeed(&[&[model().as_str(), cut.to_str().unwrap(), "--no-refit", "--no-verify"], &CUT[..4]].concat());
    let [original, cut_loss, fitted] = [Path::new(&model()), &cut, &output].map(loss);
    assert!((fitted - original) < 0.35 * (cut_loss - original), "{original} {cut_loss} {fitted}");

    // The plan repeats the bare cut, or the cut and its refit, byte for byte.
    let (plan, data) = (path(&folder, "fitted.plan.json"), data());
    let plan = plan.to_str().unwrap();
    let (again, bare) = (path(&folder, "again.onnx"), path(&folder, "bare.onnx"));
    succeed(&["apply", &model(), plan, again.to_str().unwrap(), "--data", &data]);
    assert!(fs::read(&again).unwrap() == fs::read(&output).unwrap());
    let applied = succeed(&["apply", &model(), plan, bare.to_str().unwrap()]);
    assert!(applied.err.contains("--refit"), "{}", applied.err);
    assert!((loss(&bare) - cut_loss).abs() < 1e-6);
    let heldout = fixture("ddpm_fashion16/heldout_images.npy");
    let refused = run(&["apply", &model(), plan, bare.to_str().unwrap(), "--data", &heldout]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("BLAKE3"), "{}", refused.err);

    // The command `refit` fits the bare cut to the same weights.
    let by_command = path(&folder, "by_command.onnx");
    let files = [model(), cut.to_str().unwrap().to_owned(), by_command.to_str().unwrap().to_owned()];
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let options = ["--data", &data, "--refit-samples", "96", "--no-latency"];
    succeed(&[&["refit"], &files[..], &options[..]].concat());
    assert!(loss(&by_command) == fitted, "{fitted}");
}

#[test]
fn excluded_layers_keep_their_weights() {
    let folder = tempfile::tempdir().unwrap();
    let result = refitted(&path(&folder, "a.onnx"), &["--refit-exclude", "time|conv", "--refit-weights", "uniform"]);
    for layer in result["refit"]["layers"].as_array().unwrap() {
        let name = format!("{} {}", layer["node"], layer["weight"]);
        let is_excluded = name.contains("time") || name.contains("conv");
        assert_eq!(layer["errors"].is_null(), is_excluded, "{layer}");
    }
}

#[test]
fn invalid_options_are_refused_with_the_option_and_the_valid_range() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, output) = (model(), data(), path(&folder, "x.onnx"));
    let output = output.to_str().unwrap();
    for (more, expected) in [
        (&["--refit-samples", "0"][..], "--refit-samples: expected at least 1"),
        (&["--refit-timesteps", "5000"], "--refit-timesteps: expected 1 to 1000"),
        (&["--refit-memory", "lots"], "--refit-memory: expected bytes"),
        (&["--refit-ridge", "0"], "--refit-ridge: expected a number above 0"),
        (&["--refit-exclude", "("], "--refit-exclude: \"(\" is not a regular expression"),
        (&["--refit", "--no-refit"], "cannot be used with"),
    ] {
        let arguments = ["--ratio", "0.3", "--criterion", "magnitude", "--data", &data, "--no-latency"];
        let ran = run(&[&[model.as_str(), output], &arguments[..], more].concat());
        assert_eq!(ran.code, 2, "{more:?} {}", ran.err);
        assert!(ran.err.contains(expected), "{more:?} {}", ran.err);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Stages a cut. Returns it with the runtime and the options of its refit.
fn staged(output: &Path) -> (Staged, Runtime, ScoreOptions) {
    let runtime = Runtime::open(None).unwrap();
    let gradients = GradientSettings { data: Some(data().into()), ..GradientSettings::default() };
    let options = ScoreOptions { criterion: CriterionOption::Magnitude, gradients, ..ScoreOptions::default() };
    let scores = Model::open(model()).unwrap().analyse().unwrap().score(&options, None).unwrap();
    (scores.cut(Ratio(0.3)).unwrap().stage(output).unwrap(), runtime, options)
}

#[test]
fn an_interrupted_refit_resumes_to_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = path(&folder, "c.refit.npz");
    let whole = RefitSettings { samples: Some(32), timesteps: Some(4), ..RefitSettings::default() };
    let saving =
        RefitSettings { checkpoint: Some(checkpoint.clone()), checkpoint_period: Duration::ZERO, ..whole.clone() };
    let fit = |name: &str, settings: &RefitSettings, last: usize| {
        let output = path(&folder, name);
        let (staged, runtime, options) = staged(&output);
        let mut watch = |progress: Progress<'_>| match progress {
            Progress::At { stage: Stage::Refitting, done, .. } if done > last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        staged.refit(&runtime, &options, settings, &mut watch).map(|staged| {
            staged.save().unwrap();
            fs::read(output).unwrap()
        })
    };
    let expected = fit("a.onnx", &whole, usize::MAX).unwrap();
    assert!(fit("b.onnx", &saving, 20).is_err());
    assert!(checkpoint.exists());
    let other = RefitSettings {
        resume: true,
        options: RefitOptions { ridge: 0.5, ..RefitOptions::default() },
        ..saving.clone()
    };
    let refused = fit("b.onnx", &other, usize::MAX).unwrap_err().to_string();
    assert!(refused.contains("belongs to another cut"), "{refused}");
    let resumed = fit("b.onnx", &RefitSettings { resume: true, ..saving }, usize::MAX).unwrap();
    assert!(resumed == expected);
    assert!(!checkpoint.exists());
}
