//! The command `sample` as users run it.

use onnx_diffprune::npz;
use onnx_diffprune::onnx::{TensorProto, attr_ints};

use super::tool::{Ran, run};
use crate::support::builder::{Builder, model_of, value_of};
use crate::support::files::save;
use crate::support::fixtures::fixture;

fn sample(arguments: &[&str]) -> Ran {
    run(&[&["sample"], arguments].concat())
}

/// Returns the mean brightness of 16x16 images at the left and right border and in the middle.
fn border_and_middle(samples: &[f64]) -> (f64, f64) {
    let mean = |keep: &dyn Fn(usize, usize) -> bool| {
        let kept: Vec<f64> =
            samples.iter().enumerate().filter(|(at, _)| keep(at / 16 % 16, at % 16)).map(|(_, value)| *value).collect();
        kept.iter().sum::<f64>() / kept.len() as f64
    };
    (mean(&|_, x| x == 0 || x == 15), mean(&|y, x| (6..10).contains(&y) && (6..10).contains(&x)))
}

#[test]
fn the_trained_network_samples_images_like_its_training_data() {
    let folder = tempfile::tempdir().unwrap();
    let (png, npy) = (folder.path().join("grid.png"), folder.path().join("x.npy"));
    let (model, config) = (fixture("ddpm_fashion16.onnx"), fixture("ddpm_fashion16/scheduler_config.json"));
    let output = sample(&[
        model.to_str().unwrap(),
        "-o",
        png.to_str().unwrap(),
        "--save-npy",
        npy.to_str().unwrap(),
        "--scheduler-config",
        config.to_str().unwrap(),
        "--steps",
        "20",
        "--count",
        "8",
        "--format",
        "json",
    ]);
    assert_eq!(output.code, 0, "{}", output.err);
    let json = output.json();
    assert_eq!(json["roles"]["time"], "timestep");
    assert_eq!(json["shape"], serde_json::json!([8, 1, 16, 16]));
    // Fashion-MNIST at 16x16, scaled to -1 to 1, has dark borders and a bright middle.
    let samples = npz::read(&npy).unwrap().remove(0).1.to_f64();
    assert!(samples.iter().all(|value| (-1.0..=1.0).contains(value)));
    let (border, middle) = border_and_middle(&samples);
    assert!(border < -0.7 && middle > -0.4, "border {border}, middle {middle}");
    let grid = image::open(&png).unwrap().into_luma8();
    assert_eq!(grid.dimensions(), (3 * 66 + 2, 3 * 66 + 2));
    let shown = f64::from(grid.get_pixel(2 + 33, 2 + 33).0[0]) / 127.5 - 1.0;
    assert!((shown - samples[8 * 16 + 8]).abs() < 0.01);
}

#[test]
fn invalid_options_are_refused_with_the_option_and_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("grid.png");
    let model = fixture("ddpm_fashion16.onnx");
    let refused = |more: &[&str], code: i32, words: &[&str]| {
        let base = [model.to_str().unwrap(), "-o", png.to_str().unwrap(), "--count", "1", "--steps", "2"];
        let output = sample(&[&base, more].concat());
        assert_eq!(output.code, code, "{}", output.err);
        assert!(words.iter().all(|word| output.err.contains(word)), "{}", output.err);
        assert!(!png.exists());
    };
    refused(&["--timestep-input", "clock"], 2, &["no input \"clock\"", "timestep int64"]);
    refused(&["--schedule", "karras"], 2, &["sigma", "integer input"]);
    refused(&["--shift", "3"], 2, &["--shift has no effect"]);
    refused(&["--schedule", "flow", "--scheduler-config", "x.json"], 2, &["cannot be used with"]);
    refused(&["--scheduler-config", "missing.json"], 2, &["missing.json", "can't be read"]);
    refused(&["--sample-range", "1,0"], 2, &["--sample-range", "LOW below HIGH"]);
    refused(&["--eta", "2"], 2, &["--eta"]);
    refused(&["--batch", "0"], 2, &["--batch"]);
    let fixed = fixture("dit_tiny.onnx");
    let output = sample(&[fixed.to_str().unwrap(), "-o", png.to_str().unwrap(), "--batch", "3"]);
    assert!(["batch", "2", "3"].iter().all(|fact| output.err.contains(fact)), "{}", output.err);
}

#[test]
fn the_roles_of_inputs_and_outputs_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let npy = folder.path().join("x.npy");
    let model = fixture("dit_tiny.onnx");
    let output = sample(&[
        model.to_str().unwrap(),
        "--save-npy",
        npy.to_str().unwrap(),
        "--count",
        "3",
        "--steps",
        "2",
        "--skip",
        "quadratic",
        "--schedule",
        "squaredcos_cap_v2",
    ]);
    let lines = output.err;
    assert_eq!(output.code, 0, "{lines}");
    assert!(lines.contains("class_labels") && lines.contains("random values"), "{lines}");
    assert!(lines.contains("the second half is a variance") && lines.contains("no clipping"), "{lines}");
    assert_eq!(npz::read(&npy).unwrap()[0].1.dims, [3, 4, 16, 16]);
}

/// Builds a denoiser whose convolutions have channels last, as ONNX Runtime's optimizer writes it for GPUs.
fn channels_last() -> onnx_diffprune::onnx::ModelProto {
    let mut n = Builder::with_opset(17, 1);
    let (w, b, out) = (n.weight(&[6, 3, 3, 4]), n.weight(&[6]), n.weight(&[4, 3, 3, 6]));
    let pads = [attr_ints("pads", &[1, 1, 1, 1])];
    let x = n.op("Transpose", &["sample"], &[attr_ints("perm", &[0, 2, 3, 1])]);
    let x = n.fused("NhwcConv", &[&x, &w, &b], &pads, 1).remove(0);
    let time = n.op("Unsqueeze", &["timestep", "axes"], &[]);
    let time = n.op("Sigmoid", &[&time], &[]);
    let x = n.op("Mul", &[&x, &time], &[]);
    let x = n.fused("NhwcConv", &[&x, &out], &pads, 1).remove(0);
    // Keeps the samples finite over many steps.
    let x = n.op("Tanh", &[&x], &[]);
    let y = n.op("Transpose", &[&x], &[attr_ints("perm", &[0, 3, 1, 2])]);
    n.graph.initializer.push(TensorProto::of_ints("axes", &[1, 2, 3], &[3]));
    n.graph.input = vec![value_of("sample", 1, Some(&["N", "4", "8", "8"])), value_of("timestep", 1, Some(&["N"]))];
    n.graph.output = vec![value_of(&y, 1, Some(&["N", "4", "8", "8"]))];
    model_of(17, n.graph)
}

#[test]
fn operators_without_a_kernel_on_the_cpu_run_lowered() {
    let folder = tempfile::tempdir().unwrap();
    let model = save(folder.path(), &channels_last());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, npy, pruned) = (model.to_str().unwrap(), path("x.npy"), path("pruned.onnx"));
    let drawn = sample(&[model, "--save-npy", &npy, "--count", "2", "--steps", "2"]);
    assert_eq!(drawn.code, 0, "{}", drawn.err);
    let measured = run(&["loss", model, "--data", &npy, "--count", "2", "--timesteps", "2"]);
    assert_eq!(measured.code, 0, "{}", measured.err);
    // The command generates samples for the gradients, and measures the latency of both files.
    let cut = run(&[model, &pruned, "--ratio", "0.5", "--timesteps", "2", "--batch", "2"]);
    assert_eq!(cut.code, 0, "{}", cut.err);
    let drawn = sample(&[&pruned, "--save-npy", &npy, "--count", "2", "--steps", "2"]);
    assert_eq!(drawn.code, 0, "{}", drawn.err);
}
