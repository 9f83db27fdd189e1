//! The command `evaluate`: its figures against other commands and other computations, its limits, and refused options.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use onnx_diffprune::npz;
use onnx_diffprune::onnx::attr_int;
use serde_json::Value;

use super::tool::{Ran, run, succeed};
use crate::support::builder::{Builder, model_of, node, value_of};
use crate::support::files::save;
use crate::support::fixtures::fixture;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn original() -> String {
    text(&fixture("ddpm_fashion16.onnx"))
}

fn data() -> String {
    text(&fixture("ddpm_fashion16/heldout_images.npy"))
}

/// Returns a cut of the trained network, which is made once.
fn cut() -> String {
    static CUT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = CUT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let out = text(&folder.path().join("cut.onnx"));
        succeed(&[&original(), &out, "--ratio", "0.3", "--criterion", "magnitude", "--no-refit", "--no-verify"]);
        folder
    });
    text(&folder.path().join("cut.onnx"))
}

/// Small counts, for short runs.
const SMALL: [&str; 8] = ["--count", "8", "--timesteps", "4", "--samples", "5", "--steps", "4"];

/// Runs on the held-out images with small counts, except for options that `more` sets.
fn evaluate(networks: &[&str], more: &[&str]) -> Ran {
    let (original, data) = (original(), data());
    let small = SMALL.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten().copied().collect::<Vec<_>>();
    run(&[&["evaluate"], networks, &["--original", &original, "--data", &data, "--no-latency"], &small, more].concat())
}

fn evaluated(networks: &[&str], more: &[&str]) -> Value {
    let ran = evaluate(networks, &[more, &["--format", "json"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.json()
}

fn close(found: &Value, expected: f64, tolerance: f64) {
    let found = found.as_f64().unwrap_or(f64::NAN);
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-2), "{found}, expected {expected}");
}

/// Generates samples by the command `sample`, clipped to -1 to 1: 5 images of 16x16 pixels.
fn drawn(network: &str) -> Vec<Vec<f64>> {
    let folder = tempfile::tempdir().unwrap();
    let npy = text(&folder.path().join("x.npy"));
    succeed(&["sample", network, "--save-npy", &npy, "--count", "5", "--steps", "4"]);
    let values = npz::read(Path::new(&npy)).unwrap().remove(0).1.to_f64();
    values.chunks(256).map(|sample| sample.iter().map(|value| value.clamp(-1.0, 1.0)).collect()).collect()
}

/// Computes SSIM window by window, by the definition of its means, variances and covariance.
fn similarity(a: &[f64], b: &[f64]) -> f64 {
    let (c1, c2) = (0.02f64.powi(2), 0.06f64.powi(2));
    let mut sum = 0.0;
    for (y, x) in (0..10).flat_map(|y| (0..10).map(move |x| (y, x))) {
        let places: Vec<usize> = (0..49).map(|at| (y + at / 7) * 16 + x + at % 7).collect();
        let mean = |of: &[f64]| places.iter().map(|place| of[*place]).sum::<f64>() / 49.0;
        let (ma, mb) = (mean(a), mean(b));
        let spread = |p: &[f64], mp: f64, q: &[f64], mq: f64| {
            places.iter().map(|place| (p[*place] - mp) * (q[*place] - mq)).sum::<f64>() / 48.0
        };
        let (va, vb, cov) = (spread(a, ma, a, ma), spread(b, mb, b, mb), spread(a, ma, b, mb));
        sum += (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
    }
    sum / 100.0
}

#[test]
fn figures_agree_with_those_of_other_commands() {
    let cut = cut();
    let found = evaluated(&[&cut], &[]);
    let (of_original, of_cut) = (&found["original"], &found["networks"][0]);
    for (network, of) in [(&original(), of_original), (&cut, of_cut)] {
        let data = data();
        let loss = ["--data", &data, "--count", "8", "--timesteps", "4", "--format", "json"];
        let loss = succeed(&[&["loss", network.as_str()], &loss[..]].concat()).json();
        close(&of["mean_loss"], loss["mean"].as_f64().unwrap(), 1e-5);
        for (at, point) in loss["losses"].as_array().unwrap().iter().enumerate() {
            close(&of["losses"][at], point["loss"].as_f64().unwrap(), 1e-5);
            assert_eq!(found["timesteps"][at], point["t"]);
        }
        let cost = succeed(&["inspect", network, "--format", "json"]).json();
        assert_eq!(of["cost"]["macs"], cost["cost"]["macs"]);
        assert_eq!(of["cost"]["parameters"], cost["cost"]["parameters"]);
        assert_eq!(of["bytes"], fs::metadata(network).unwrap().len());
    }
    let ratio = of_cut["mean_loss"].as_f64().unwrap() / of_original["mean_loss"].as_f64().unwrap();
    close(&of_cut["loss_increase"], ratio - 1.0, 1e-9);
    assert!(of_original["loss_increase"].is_null() && of_original["consistency"].is_null());
    let (a, b) = (drawn(&original()), drawn(&cut));
    let mut ssim: Vec<f64> = a.iter().zip(&b).map(|(a, b)| similarity(a, b)).collect();
    let psnr = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        let error = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / 256.0;
        10.0 * (4.0 / error).log10()
    };
    let consistency = &of_cut["consistency"];
    close(&consistency["ssim"]["mean"], ssim.iter().sum::<f64>() / 5.0, 1e-4);
    close(&consistency["psnr"]["mean"], a.iter().zip(&b).map(psnr).sum::<f64>() / 5.0, 1e-4);
    ssim.sort_by(f64::total_cmp);
    close(&consistency["ssim"]["median"], ssim[2], 1e-4);
    close(&consistency["ssim"]["q25"], ssim[1], 1e-4);
    // A second run has the same results.
    let mut again = evaluated(&[&cut], &[]);
    again["seconds"] = found["seconds"].clone();
    assert_eq!(again, found);
}

/// Writes a feature network whose only feature is the mean of all pixels.
fn brightness(folder: &Path) -> String {
    let mut n = Builder::new(1);
    n.graph.input = vec![value_of("image", 1, Some(&["N", "3", "16", "16"]))];
    let weight = n.floats(&[1.0 / 3.0; 3], &[1, 3, 1, 1]);
    let mixed = n.op("Conv", &["image", &weight], &[]);
    n.graph.node.push(node("map", "Identity", &[&mixed], &["map"]));
    let pooled = n.op("GlobalAveragePool", &["map"], &[]);
    let shape = n.op("Flatten", &[&pooled], &[attr_int("axis", 1)]);
    n.graph.output = vec![value_of(&shape, 1, None)];
    let path = save(folder, &model_of(21, n.graph));
    let named = folder.join("brightness.onnx");
    fs::rename(path, &named).unwrap();
    text(&named)
}

/// Computes the Fréchet distance of one feature.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let of = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64;
        (mean, variance.sqrt())
    };
    let ((ma, da), (mb, db)) = (of(a), of(b));
    (ma - mb).powi(2) + (da - db).powi(2)
}

#[test]
fn distances_are_named_after_the_feature_network() {
    let folder = tempfile::tempdir().unwrap();
    let (cut, features) = (cut(), brightness(folder.path()));
    for output in [&[][..], &["--features-output", "map"]] {
        let found = evaluated(&[&cut], &[&["--features", &features, "--data-samples", "1024"], output].concat());
        assert_eq!(found["features"]["name"], "brightness");
        assert_eq!(found["features"]["width"], 1);
        let bright = |network: &str| -> Vec<f64> {
            let pixel = |value: &f64| ((value + 1.0) / 2.0 * 255.0).round() / 255.0;
            drawn(network).iter().map(|sample| sample.iter().map(pixel).sum::<f64>() / 256.0).collect()
        };
        let images = npz::read(Path::new(&data())).unwrap().remove(0).1.to_f64();
        let images: Vec<f64> = images.chunks(256).map(|image| image.iter().sum::<f64>() / 256.0 / 255.0).collect();
        let (a, b) = (bright(&original()), bright(&cut));
        let of = |at: &str| &found["networks"][0]["distances"][at];
        let tolerance = |found: &Value, expected: f64| {
            assert!((found.as_f64().unwrap() - expected).abs() < 1e-4 * expected + 1e-8, "{found} {expected}");
        };
        tolerance(of("fd_to_original"), distance(&a, &b));
        tolerance(of("fd_to_data"), distance(&b, &images));
        tolerance(&found["original"]["distances"]["fd_to_data"], distance(&a, &images));
        assert_eq!(of("kid_to_data")["subset_size"], 5);
        assert!(found["original"]["distances"]["fd_to_original"].is_null());
    }
    let shown = evaluate(&[&cut], &["--features", &features]);
    assert!(shown.out.contains("FD (brightness) to original") && !shown.out.contains("FID"), "{}", shown.out);
    assert!(shown.out.contains("pixels from 0 to 1"), "{}", shown.out);
    // Without a feature network, the output explains how to get distances.
    let shown = evaluate(&[&cut], &[]);
    assert!(shown.out.contains("(FD, KID)") && shown.out.contains("--features NET.onnx"));
}

#[test]
fn an_exceeded_limit_ends_the_run_with_the_figure_and_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (cut, report) = (cut(), text(&folder.path().join("report.html")));
    let limits = ["--max-loss-increase", "5%", "--min-ssim", "0.9"];
    let failed = evaluate(&[&cut, &original()], &[&limits[..], &["--report", &report]].concat());
    assert_eq!(failed.code, 1, "{}", failed.err);
    let message = failed.err.split("error: ").nth(1).unwrap();
    assert!(message.contains("cut.onnx: mean denoising loss") && message.contains("allowed 5 %"), "{message}");
    assert!(message.contains("mean SSIM") && message.contains("at least 0.9"), "{message}");
    assert!(!message.contains("ddpm_fashion16.onnx"), "{message}");
    assert!(failed.out.contains("Quality and costs"), "{}", failed.out);
    let page = fs::read_to_string(report).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 3);
    assert!(page.contains("limits not met") && page.contains("Loss against MACs"));
    assert_eq!(page.matches("<circle").count(), 3);
    let failed = evaluate(&[&cut], &[&limits[..], &["--format", "json"]].concat());
    assert_eq!((failed.code, failed.json()["exit_code"].as_i64()), (1, Some(1)));
    assert!(failed.json()["networks"][0]["mean_loss"].is_f64());
    // Compared with itself, the original loses nothing.
    let same = evaluated(&[&original()], &["--max-loss-increase", "0", "--min-ssim", "1"]);
    assert_eq!(same["networks"][0]["consistency"]["identical"], 5);
    assert!(same["networks"][0]["consistency"]["psnr"].is_null());
}

#[test]
fn invalid_options_are_refused_with_the_option_and_the_valid_range() {
    let folder = tempfile::tempdir().unwrap();
    let (cut, other) = (cut(), text(&fixture("dit_tiny.onnx")));
    let features = brightness(folder.path());
    let refused = |networks: &[&str], more: &[&str], words: &[&str]| {
        let ran = evaluate(networks, more);
        assert_eq!(ran.code, 2, "{more:?} {}", ran.err);
        assert!(words.iter().all(|word| ran.err.contains(word)), "{more:?} {}", ran.err);
    };
    let (original, data) = (original(), data());
    let missing = run(&["evaluate", &cut, "--original", &original]);
    assert!(missing.code == 2 && missing.err.contains("--data"), "{}", missing.err);
    refused(&[&other], &[], &["dit_tiny.onnx", "same inputs as the original", "--original"]);
    refused(&[&cut], &["--max-loss-increase", "5"], &["--max-loss-increase", "5%"]);
    refused(&[&cut], &["--min-ssim", "2"], &["--min-ssim", "from -1 to 1"]);
    refused(&[&cut], &["--count", "2000"], &["--count", "at most 1024"]);
    refused(&[&cut], &["--batch", "3"], &["--count", "multiple of the batch size 3"]);
    refused(&[&cut], &["--features", &original], &["one input", "timestep"]);
    refused(&[&cut], &["--features", &features, "--data-samples", "1"], &["--data-samples", "2 to 1024"]);
    refused(&[&cut], &["--features", &features, "--features-size", "8"], &["--features-size", "16"]);
    refused(&[&cut], &["--features", &features, "--kid-subset-size", "9"], &["--kid-subset-size", "2 to 5"]);
    refused(&[&cut], &["--features", &features, "--kid-subsets", "0"], &["--kid-subsets"]);
    refused(&[&cut], &["--features-size", "8"], &["--features"]);
    refused(&[&cut], &["--report", &data], &["--report", "--data"]);
    refused(&[&cut], &["--report", &cut], &["--report", "TUNED.onnx"]);
    refused(&[&cut], &["--steps", "0"], &["at least 1 step, found 0"]);
    refused(&[&cut], &["--steps", "2000"], &["step"]);
    refused(&[&cut], &["--timesteps", "2000"], &["--timesteps", "1 to 1000"]);
    refused(&[&cut], &["--eta", "2"], &["--eta"]);
    assert!(fs::read(&cut).unwrap().len() > 1_000_000);
}

#[test]
fn latents_are_evaluated_without_features() {
    let folder = tempfile::tempdir().unwrap();
    let (network, npy) = (text(&fixture("dit_tiny.onnx")), text(&folder.path().join("x.npy")));
    succeed(&["sample", &network, "--save-npy", &npy, "--count", "5", "--steps", "2"]);
    let common = ["evaluate", &network, "--original", &network, "--data", &npy, "--timesteps", "2", "--steps", "2"];
    let found = succeed(&[&common[..], &["--samples", "3", "--format", "json"]].concat()).json();
    // Only whole batches of two samples are used.
    assert_eq!(found["loss_count"], 4);
    let of = &found["networks"][0];
    assert!(of["consistency"]["ssim"]["mean"] == 1.0 && of["latency"]["median_ms"].as_f64().unwrap() > 0.0, "{of}");
    let features = brightness(folder.path());
    let refused = run(&[&common[..], &["--features", &features]].concat());
    assert!(refused.code == 2 && refused.err.contains("--features"), "{}", refused.err);
    // Without samples, the loss alone is computed.
    let bare = succeed(&[&common[..], &["--samples", "0", "--no-latency", "--format", "json"]].concat()).json();
    assert!(bare["drawing"].is_null() && bare["networks"][0]["loss_increase"] == 0.0, "{bare}");
}
