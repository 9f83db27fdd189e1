//! Pruning in rounds: the files of each round, that the result is a cut of the original, and that a run can be resumed.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::tool::{run, succeed};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).to_str().unwrap().to_owned()
}

/// Writes the first 40 images of the training data, so that few are held out.
fn few(folder: &Path) -> String {
    let all = fs::read(fixture("ddpm_fashion16/train_images.npy")).unwrap();
    let start = 10 + usize::from(u16::from_le_bytes([all[8], all[9]]));
    let header = String::from_utf8(all[10..start].to_vec()).unwrap();
    assert!(header.contains("(2048, 1, 16, 16)") && header.contains("u1"), "{header}");
    // The header keeps its length.
    let header = header.replace("(2048, 1, 16, 16)", "(40, 1, 16, 16)  ");
    let path = folder.join("few.npy");
    fs::write(&path, [&all[..10], header.as_bytes(), &all[start..start + 40 * 256]].concat()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Prunes in two rounds of a few steps each to half of the MACs. Returns the printed JSON.
fn rounds(output: &Path, more: &[&str]) -> Value {
    let (original, data) = (fixture("ddpm_fashion16.onnx"), few(output.parent().unwrap()));
    let paths = [original.as_str(), output.to_str().unwrap(), "--data", &data, "--format", "json", "--no-latency"];
    let options = ["--criterion", "magnitude", "--target-macs", "0.5", "--rounds", "2", "--finetune-steps", "2"];
    let refit = ["--refit-samples", "32", "--refit-timesteps", "16"];
    let ran = run(&[&paths[..], &options, &refit, more].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.json()
}

#[test]
fn the_last_round_is_a_cut_of_the_original_and_a_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let original = fixture("ddpm_fashion16.onnx");
    let output = folder.path().join("out.onnx");
    let result = rounds(&output, &[]);
    let macs = |of: &str| result[of]["macs"].as_f64().unwrap();
    let share = macs("after") / macs("before");
    assert!(share <= 0.5 && share > 0.4, "{share}");
    assert_eq!((&result["input"], &result["training"]["steps"]), (&json!(original), &json!(2)));
    assert_eq!(result["verification"]["passed"], true);
    assert!(result["refit"]["losses"].is_object() || result["refit"].is_object(), "{}", result["refit"]);
    let plan_path = folder.path().join("out.plan.json");
    let plan: Value = serde_json::from_slice(&fs::read(&plan_path).unwrap()).unwrap();
    assert_eq!((&plan["options"]["rounds"], &plan["options"]["target-macs"]), (&json!(2), &json!(0.5)));
    // With its plan, the result is verified against the original, and the cut is repeated.
    succeed(&["verify", &original, output.to_str().unwrap(), "--quiet"]);
    let again = folder.path().join("again.onnx");
    succeed(&["apply", &original, plan_path.to_str().unwrap(), again.to_str().unwrap(), "--quiet"]);
    let (bytes, size) = (fs::metadata(&output).unwrap().len(), fs::metadata(&again).unwrap().len());
    assert!(size < bytes && bytes < size + size / 5, "{size} and, with what has changed named, {bytes}");
    // The first round goes half of the way to the target: it removes fewer channels than the last.
    let state = folder.path().join("out.rounds");
    let first: Value = serde_json::from_slice(&fs::read(state.join("round-1.plan.json")).unwrap()).unwrap();
    assert!((first["options"]["target-macs"].as_f64().unwrap() - 0.5).abs() < 1e-9);
    let ratio = |plan: &Value| plan["ratio"].as_f64().unwrap();
    assert!(ratio(&first) > 0.05 && ratio(&first) < ratio(&plan));

    // Simulates an interruption in the second round after its cut. Then resumes a finished run.
    let whole = fs::read(&output).unwrap();
    fs::remove_file(&output).unwrap();
    let text = fs::read_to_string(state.join("rounds.json")).unwrap();
    let mut known: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&known["cut"], &known["done"]), (&json!(2), &json!(2)));
    known["done"] = json!(1);
    fs::write(state.join("rounds.json"), known.to_string()).unwrap();
    let changed = fs::metadata(state.join("round-1.onnx")).unwrap().modified().unwrap();
    rounds(&output, &["--resume"]);
    assert!(fs::read(&output).unwrap() == whole, "a resumed run should write the same network as an uninterrupted one");
    assert_eq!(fs::metadata(state.join("round-1.onnx")).unwrap().modified().unwrap(), changed);
    assert_eq!(rounds(&output, &["--resume"])["done"], 2);
}

#[test]
fn invalid_options_of_rounds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (original, output) = (fixture("ddpm_fashion16.onnx"), folder.path().join("out.onnx"));
    let paths = [original.as_str(), output.to_str().unwrap(), "--ratio", "0.3", "--criterion", "magnitude"];
    for (more, message) in [
        (&["--rounds", "0"][..], "--rounds: expected at least 1"),
        (&["--rounds", "2", "--dry-run"], "no --dry-run"),
        (&["--rounds", "2", "--finetune-steps", "3"], "--finetune-steps: "),
    ] {
        let ran = run(&[&paths[..], more].concat());
        assert!(ran.code == 2 && ran.err.contains(message), "{}", ran.err);
        assert!(!folder.path().join("out.rounds").exists());
    }
}
