//! Gradients that are not finite: the derivative of the square root at zero is infinite.

use std::path::Path;

use onnx_diffprune::array::{Array, ElementType};
use onnx_diffprune::npz;
use onnx_diffprune::onnx::ModelProto;
use prost::Message;

use super::tool::{Ran, run};
use crate::support::builder::{Builder, value};

/// Channels of each branch.
const CHANNELS: i64 = 8;

/// Builds `x → rooted (8) → sqrt of zero → out`, and optionally beside it `x → plain (8) → out`.
fn network(has_plain: bool) -> ModelProto {
    let mut net = Builder::with_opset(17, 1);
    // The last channels are the smallest. A choice by position would remove the first.
    let falling: Vec<f32> = (0..CHANNELS).map(|at| (CHANNELS - at) as f32 * 0.1).collect();
    net.graph.initializer.push(onnx_diffprune::onnx::TensorProto::of_floats("rooted", &falling, &[CHANNELS, 1, 1, 1]));
    let h = net.op("Conv", &["x", "rooted"], &[]);
    let zero = net.float(0.0);
    let h = net.op("Mul", &[&h, &zero], &[]);
    let h = net.op("Sqrt", &[&h], &[]);
    let last = net.weight_around(&[1, CHANNELS, 1, 1], 0.05, 0.0);
    let mut y = net.op("Conv", &[&h, &last], &[]);
    if has_plain {
        net.graph.initializer.push(onnx_diffprune::onnx::TensorProto::of_floats(
            "plain",
            &falling,
            &[CHANNELS, 1, 1, 1],
        ));
        let h = net.op("Conv", &["x", "plain"], &[]);
        let h = net.op("Sigmoid", &[&h], &[]);
        let last = net.layer_weight(&[1, CHANNELS, 1, 1], CHANNELS);
        let other = net.op("Conv", &[&h, &last], &[]);
        y = net.op("Add", &[&y, &other], &[]);
    }
    let mut model = net.finish(&[2, 1, 4, 4], &y, &[2, 1, 4, 4]);
    model.graph.as_mut().unwrap().input.push(value("t", &[2]));
    model
}

fn prune(folder: &Path, model: &ModelProto, more: &[&str]) -> Ran {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    std::fs::write(path("net.onnx"), model.encode_to_vec()).unwrap();
    let values: Vec<f64> = (0..32).map(|at| (f64::from(at) * 0.7).sin()).collect();
    let data = Array::from_f64(ElementType::F32, vec![2, 1, 4, 4], &values).unwrap();
    npz::write(Path::new(&path("data.npz")), [("x", &data)]).unwrap();
    let (model, output, data, report) = (path("net.onnx"), path("out.onnx"), path("data.npz"), path("report.html"));
    let shared = ["--ratio", "0.5", "--data", &data, "--batch", "2", "--timesteps", "3", "--no-latency", "--no-refit"];
    run(&[&[model.as_str(), &output], &shared[..], &["--format", "json", "--report", &report], more].concat())
}

#[test]
fn a_group_without_finite_gradients_is_ranked_by_magnitude_and_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut kinds = vec![vec!["--reference", "ddpm-prune"], vec!["--reference", "ddpm-exp"], vec!["--scope", "global"]];
    for criterion in ["diff-pruning", "taylor", "hessian"] {
        for reduction in ["sum", "mean", "max", "first"] {
            kinds.push(vec!["--criterion", criterion, "--group-reduction", reduction]);
        }
        kinds.push(vec!["--criterion", criterion, "--members", "producers"]);
    }
    for more in kinds {
        let ran = prune(folder.path(), &network(true), &more);
        assert_eq!(ran.code, 0, "{more:?}: {}", ran.err);
        let lines: Vec<&str> = ran.err.lines().filter(|line| line.contains("is ranked by magnitude")).collect();
        assert_eq!(lines.len(), 1, "{more:?}: {}", ran.err);
        assert!(
            lines[0].contains("channel group \"rooted\"") && lines[0].contains("8 of its 8 channels"),
            "{}",
            lines[0]
        );
        let json = ran.json();
        let group = |name: &str| {
            let groups = json["groups"].as_array().unwrap().iter();
            groups.clone().find(|group| group["name"] == name).unwrap().clone()
        };
        assert_eq!((&group("rooted")["criterion"], &group("plain")["criterion"]), (&"magnitude".into(), &().into()));
        assert!(json["warnings"].to_string().contains("is ranked by magnitude"));
        let text = std::fs::read_to_string(folder.path().join("out.plan.json")).unwrap();
        let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
        let planned = plan["groups"].as_array().unwrap().iter().find(|group| group["name"] == "rooted").unwrap();
        assert_eq!(planned["criterion"], "magnitude");
        if !more.contains(&"global") {
            assert_eq!(planned["kept"], serde_json::json!([0, 1, 2, 3]), "{more:?}");
        }
        assert!(std::fs::read_to_string(folder.path().join("report.html")).unwrap().contains("ranked by magnitude"));
    }
}

#[test]
fn a_criterion_that_can_rank_no_group_fails() {
    let folder = tempfile::tempdir().unwrap();
    for criterion in ["diff-pruning", "taylor", "hessian"] {
        let ran = prune(folder.path(), &network(false), &["--criterion", criterion]);
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.err.contains(&format!("{criterion} can't rank any channel group")), "{}", ran.err);
        assert!(ran.err.contains("\"rooted\"") && ran.err.contains("hint: "), "{}", ran.err);
        assert!(!folder.path().join("out.onnx").exists());
    }
}

/// If all scores are zero, the order of channels would decide.
#[test]
fn a_group_whose_gradients_are_zero_is_ranked_by_magnitude() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = network(true);
    // Replaces the square root by a function whose derivative is zero.
    let graph = model.graph.as_mut().unwrap();
    graph.node.iter_mut().filter(|node| node.op_type == "Sqrt").for_each(|node| node.op_type = "Sign".to_owned());
    for scope in ["local", "global"] {
        let ran = prune(folder.path(), &model, &["--scope", scope]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let lines: Vec<&str> = ran.err.lines().filter(|line| line.contains("it is ranked by magnitude")).collect();
        assert!(
            lines.len() == 1 && lines[0].contains("\"rooted\"") && lines[0].contains("score of zero"),
            "{}",
            ran.err
        );
        let text = std::fs::read_to_string(folder.path().join("out.plan.json")).unwrap();
        let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
        let kept = |name: &str| {
            let groups = plan["groups"].as_array().unwrap().iter();
            groups.clone().find(|group| group["name"] == name).unwrap()["kept"].clone()
        };
        // Weights fall from channel to channel. With a global scope, the number of kept channels depends on the other
        // groups.
        let kept = kept("rooted");
        let count = if scope == "local" { 4 } else { kept.as_array().unwrap().len() };
        let first: Vec<usize> = (0..count).collect();
        assert!(count > 0 && count < CHANNELS as usize);
        assert_eq!(kept, serde_json::json!(first), "{scope}");
    }
}

#[test]
fn weights_that_are_not_numbers_are_not_ranked_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = network(true);
    let mut set = |broken: &[usize]| {
        let falling = (0..CHANNELS as usize).map(|at| (CHANNELS as usize - at) as f32 * 0.1);
        // A channel with two entries could have a finite one beside the NaN. Here each channel has one entry.
        let values: Vec<f32> =
            falling.enumerate().map(|(at, v)| if broken.contains(&at) { f32::NAN } else { v }).collect();
        let tensor = onnx_diffprune::onnx::TensorProto::of_floats("plain", &values, &[CHANNELS, 1, 1, 1]);
        let graph = model.graph.as_mut().unwrap();
        *graph.initializer.iter_mut().find(|tensor| tensor.name == "plain").unwrap() = tensor;
        prune(folder.path(), &model, &["--criterion", "magnitude", "--group-reduction", "first", "--no-verify"])
    };
    let ran = set(&[0, 1]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("weight \"plain\"") && ran.err.contains("finite"), "{}", ran.err);
    let ran = set(&[0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("weight \"plain\"") && ran.err.contains("finite"), "{}", ran.err);
}
