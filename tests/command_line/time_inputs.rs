//! The values of time inputs, and the options that describe how a network was trained.

use std::path::Path;

use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::npz;
use onnx_diffprune::onnx::ModelProto;
use prost::Message;

use super::tool::{run, succeed};
use crate::support::builder::{Builder, value};
use crate::support::fixtures::fixture;

/// Builds a network whose prediction is `factor` times the time input, whatever the sample.
fn network(time: &str, factor: f32) -> ModelProto {
    let mut net = Builder::with_opset(17, 1);
    let h = net.conv("x", 1, 8, 1, 1);
    let h = net.conv(&h, 8, 1, 1, 1);
    let (zero, factor) = (net.float(0.0), net.float(factor));
    let h = net.op("Mul", &[&h, &zero], &[]);
    let shape = net.ints(&[2, 1, 1, 1]);
    let t = net.op("Reshape", &[time, &shape], &[]);
    let t = net.op("Mul", &[&t, &factor], &[]);
    let y = net.op("Add", &[&h, &t], &[]);
    let mut model = net.finish(&[2, 1, 4, 4], &y, &[2, 1, 4, 4]);
    model.graph.as_mut().unwrap().input.push(value(time, &[2, 1]));
    model
}

/// Runs a command and returns the squares of the time input at its timesteps. They follow from the loss: the mean of
/// `(k - e)^2` and `(-k - e)^2` is `k^2` above that of `e^2`.
fn squares(name: &str, command: &[&str], more: &[&str]) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let values: Vec<f64> = (0..32).map(|at| (f64::from(at) * 0.7).sin()).collect();
    let data = Array::from_f64(ElementType::F32, vec![2, 1, 4, 4], &values).unwrap();
    npz::write(Path::new(&path("data.npz")), [("x", &data)]).unwrap();
    let losses = |factor: f32| -> Vec<f64> {
        std::fs::write(path("net.onnx"), network(name, factor).encode_to_vec()).unwrap();
        let (model, data) = (path("net.onnx"), path("data.npz"));
        let mut arguments = command.to_vec();
        arguments.extend([model.as_str(), "--data", &data, "--timesteps", "4", "--format", "json"]);
        arguments.extend(more);
        let json = succeed(&arguments).json();
        let curve =
            [&json["losses"], &json["gradients"]["curve"]].into_iter().find_map(|list| list.as_array().cloned());
        curve.unwrap().iter().map(|point| point["loss"].as_f64().unwrap()).collect()
    };
    let (plus, minus, none) = (losses(1.0), losses(-1.0), losses(0.0));
    (0..4).map(|at| (plus[at] + minus[at]) / 2.0 - none[at]).collect()
}

#[test]
fn time_inputs_can_be_continuous_noise_levels() {
    // The linear schedule from 1e-4 to 0.02 at steps 0, 250, 500 and 750, in float64.
    let betas = (0..1000).map(|t| 1e-4 + (0.02 - 1e-4) * f64::from(t) / 999.0);
    let alpha_bars: Vec<f64> = betas
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .step_by(250)
        .collect();
    let prune = ["--dry-run", "--ratio", "0.25", "--batch", "2", "--threshold", "0"];
    type Expected = fn(f64) -> f64;
    let scales: [(&str, Expected); 4] = [
        ("sqrt_alpha_bar", |alpha| alpha.sqrt()),
        ("alpha_bar", |alpha| alpha),
        ("noise_variance", |alpha| 1.0 - alpha),
        ("log_snr", |alpha| (alpha / (1.0 - alpha)).ln()),
    ];
    for (name, expected) in scales {
        for command in [&["loss", "--count", "2"][..], &prune] {
            let found = squares("noise_level", command, &["--time-input", name]);
            for (found, alpha) in found.iter().zip(&alpha_bars) {
                let expected = expected(*alpha).powi(2);
                let tolerance = 1e-5 * expected.max(1.0);
                assert!((found - expected).abs() < tolerance, "{name}, {command:?}: {found}, expected {expected}");
            }
        }
    }
    // An input whose name states its meaning needs no option.
    let found = squares("logsnr", &["loss", "--count", "2"], &[]);
    assert!(found.iter().zip(&alpha_bars).all(|(found, alpha)| {
        let expected = (alpha / (1.0 - alpha)).ln().powi(2);
        (found - expected).abs() < 1e-5 * expected.max(1.0)
    }));
}

#[test]
fn sampling_passes_noise_levels_to_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("net.onnx"), network("noise_level", 1.0).encode_to_vec()).unwrap();
    let draw = |more: &[&str]| {
        let (model, npy) = (path("net.onnx"), path("x.npy"));
        let ran = run(&[&["sample", &model, "--save-npy", &npy, "--count", "2", "--steps", "3"], more].concat());
        let drawn = if ran.code == 0 { npz::read(Path::new(&npy)).unwrap().remove(0).1.to_f64() } else { Vec::new() };
        (ran, drawn)
    };
    let (ran, by_level) = draw(&["--time-input", "sqrt_alpha_bar"]);
    assert!(ran.code == 0 && ran.err.contains("sqrt(alpha_bar)"), "{}", ran.err);
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    let (ran, by_step) = draw(&[]);
    assert!(ran.code == 0 && ran.err.contains("--time-input"), "{}", ran.err);
    assert_ne!(by_level, by_step);
    // Only a discrete schedule has an alpha_bar.
    for schedule in ["karras", "flow"] {
        let (ran, _) = draw(&["--time-input", "alpha_bar", "--schedule", schedule]);
        assert!(ran.code == 2 && ran.err.contains("has no alpha_bar"), "{}", ran.err);
    }
}

#[test]
fn different_schedules_are_described_differently() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("net.onnx"), network("t", 1.0).encode_to_vec()).unwrap();
    let (model, npy) = (path("net.onnx"), path("x.npy"));
    let process = |more: &[&str]| {
        let shared = ["sample", &model, "--save-npy", &npy, "--count", "2", "--steps", "2", "--format", "json"];
        succeed(&[&shared[..], more].concat()).json()["process"].as_str().unwrap().to_owned()
    };
    let ends = ["--beta-start", "0.001", "--beta-end", "0.01"];
    let mut found: Vec<String> =
        ["linear", "scaled_linear"].map(|schedule| process(&[&["--schedule", schedule], &ends[..]].concat())).into();
    found.push(process(&["--schedule", "squaredcos_cap_v2"]));
    found.push(process(&["--schedule", "linear", "--rescale-betas-zero-snr", "--prediction-type", "v_prediction"]));
    found.push(process(&["--schedule", "flow"]));
    found.push(process(&["--schedule", "karras"]));
    assert!(found[0].contains("linear") && found[1].contains("scaled_linear"), "{found:?}");
    found.sort();
    let count = found.len();
    found.dedup();
    assert_eq!(found.len(), count, "{found:?}");
}

#[test]
fn the_diffusion_process_is_in_json_plan_and_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, output, report) = (fixture("ddpm_fashion16.onnx"), path("out.onnx"), path("report.html"));
    let mut arguments = vec![model.to_str().unwrap(), &output, "--ratio", "0.3", "--batch", "2", "--timesteps", "2"];
    arguments.extend(["--schedule", "scaled_linear", "--no-verify", "--draw-steps", "2", "--format", "json"]);
    arguments.extend(["--report", &report]);
    let json = succeed(&arguments).json();
    let process = json["gradients"]["process"].as_str().unwrap().to_owned();
    assert!(process.contains("discrete schedule scaled_linear"), "{process}");
    let network = json["gradients"]["network"].as_array().unwrap();
    assert!(network.iter().any(|line| line.as_str().is_some_and(|line| line.contains("takes the step t"))));
    let plan: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path("out.plan.json")).unwrap()).unwrap();
    assert_eq!(plan["options"]["process"], process);
    assert!(std::fs::read_to_string(&report).unwrap().contains(&process));
}
