//! Commands that read and write pipeline folders, and their warnings.

use std::fs;

use serde_json::{Value, json};

use super::{BY_MAGNITUDE, OF_UNET, WorkFolder, files, kept, shape};
use crate::tool::{run, succeed};

const FEW: [&str; 6] = ["--refit-samples", "8", "--refit-timesteps", "4", "--batch", "4"];

#[test]
fn a_cut_pipeline_is_refitted_fine_tuned_and_repeated_as_a_folder() {
    let work = WorkFolder::with("sd_tiny");
    work.prune(&[&BY_MAGNITUDE[..], &["--no-verify", "--components", "unet,vae_decoder", "--no-refit"]].concat());
    let [sd, slim, fitted, tuned, again] = ["sd", "slim", "fitted", "tuned", "again"].map(|name| work.text(name));
    let latents = latents(&work);
    let before = files(&work.path("slim"));
    // Every component but the denoiser is copied from the cut pipeline, including its decoder.
    let ran = succeed(&[&["refit", &sd, &slim, &fitted, "--data", &latents, "--format", "json"], &FEW[..]].concat());
    assert_eq!(ran.json()["output"], json!(work.path("fitted/unet/model.onnx")));
    changed(&before, &files(&work.path("fitted")), &["unet/model.onnx", "unet/model.plan.json"]);
    succeed(&["verify", &sd, &fitted]);
    let steps = ["--steps", "2", "--batch", "2", "--eval-samples", "0", "--data", &latents];
    let ran = succeed(&[&["finetune", &fitted, &tuned, "--teacher", &sd], &steps[..]].concat());
    assert!(ran.out.contains(&format!("wrote {tuned}: ")), "{}", ran.out);
    changed(&before, &files(&work.path("tuned")), &["unet/model.onnx", "unet/model.plan.json"]);
    assert!(work.path("tuned.unet.finetune/metrics.jsonl").is_file());
    succeed(&["verify", &sd, &tuned]);
    // The plan of the cut, named by its file and by its folder. The decoder is copied from the original.
    for plan in [work.text("slim/unet/model.plan.json"), slim.clone()] {
        succeed(&["apply", &sd, &plan, &again]);
        assert_eq!(shape(&work.path("again/unet/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
        let [of_cut, of_again] =
            ["slim", "again"].map(|name| kept(&work.path(&format!("{name}/unet/model.plan.json"))));
        assert_eq!(of_cut, of_again);
        changed(&files(&work.path("sd")), &files(&work.path("again")), &["unet/model.onnx", "unet/model.plan.json"]);
    }
    // An output with the name of a file receives the denoiser alone.
    let alone = work.text("alone.onnx");
    succeed(&["apply", &sd, &slim, &alone]);
    assert!(work.path("alone.onnx").is_file());
}

/// Asserts that exactly these files differ between two folders.
fn changed(before: &super::BTreeMap<String, Vec<u8>>, after: &super::BTreeMap<String, Vec<u8>>, expected: &[&str]) {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ: Vec<&str> =
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(String::as_str).collect();
    assert_eq!(differ, expected);
}

/// Writes latents of twelve images.
fn latents(work: &WorkFolder) -> String {
    use onnx_diffprune::data::{Array, ArrayData};
    let values = (0..12 * 4 * 256).map(|at| ((at * 37 % 101) as f32 - 50.0) / 40.0).collect();
    let array = Array { dims: vec![12, 4, 16, 16], data: ArrayData::F32(values) };
    onnx_diffprune::npz::write(&work.path("latents.npz"), [("sample", &array)]).unwrap();
    work.text("latents.npz")
}

#[test]
fn verification_runs_at_the_sizes_of_the_pipeline() {
    let work = WorkFolder::with("sd_tiny");
    work.prune(&[&BY_MAGNITUDE[..], &["--no-verify", "--components", "unet,vae_decoder"]].concat());
    let config = work.path("sd/unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"sample_size\": 16", "\"sample_size\": [8, 24]")).unwrap();
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    let verified = |more: &[&str]| succeed(&[&["verify", &sd, &slim, "--format", "json"], more].concat()).json();
    let runs_of = |result: &Value, component: &str| result["components"][component]["runs"][0].to_string();
    let usual = verified(&[]);
    for size in ["\"height\":8", "\"width\":24", "\"sequence_length\":77"] {
        assert!(runs_of(&usual, "unet").contains(size), "{size}: {usual}");
    }
    assert!(runs_of(&usual, "vae_decoder").contains("\"latent_width\":24"), "{usual}");
    let given = verified(&["--size", "latent_width=6", "--size", "width=40"]);
    assert!(runs_of(&given, "unet").contains("\"width\":40"), "{given}");
    assert!(runs_of(&given, "vae_decoder").contains("\"latent_width\":6"), "{given}");
    let ran = run(&["verify", &sd, &slim, "--size", "nam=3"]);
    assert!(ran.code == 2 && ran.err.contains("no symbolic dimension \"nam\""), "{}", ran.err);
}

#[test]
fn a_missing_scheduler_configuration_is_warned_about() {
    let work = WorkFolder::with("sd_tiny");
    fs::remove_file(work.path("sd/scheduler/scheduler_config.json")).unwrap();
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    let warns = |more: &[&str]| {
        let ran = run(&[&[sd.as_str(), &slim, "--dry-run", "--ratio", "0.3", "--timesteps", "2"], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.err.contains("has no scheduler/scheduler_config.json")
    };
    let draws = ["--draw-steps", "1"];
    assert!(warns(&draws));
    assert!(!warns(&[&draws[..], &["--schedule", "scaled_linear"]].concat()));
    // The magnitude criterion needs no noise schedule.
    assert!(!warns(&["--criterion", "magnitude"]));
}

#[test]
fn invalid_sample_sizes_in_a_configuration_are_warned_about_and_ignored() {
    let work = WorkFolder::with("sd_tiny");
    let config = work.path("sd/unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let sd = work.text("sd");
    for odd in ["-16", "0", "10000000", "[16, -1]"] {
        fs::write(&config, text.replace("\"sample_size\": 16", &format!("\"sample_size\": {odd}"))).unwrap();
        let ran = run(&[&[sd.as_str(), "--dry-run"], &BY_MAGNITUDE[..]].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains("config.json: sample_size ") && ran.err.contains("is not used"), "{odd}: {}", ran.err);
        assert!(!ran.err.contains("samples 1"), "{}", ran.err);
    }
}

#[test]
fn a_ratio_for_the_decoder_alone_warns_that_the_denoiser_is_copied() {
    let work = WorkFolder::with("sd_tiny");
    let ran = run(&[&work.text("sd"), "--dry-run", "--component-ratio", "vae_decoder=0.2", "--criterion", "magnitude"]);
    assert!(ran.code == 0 && ran.err.contains("unet is copied without pruning: no --ratio"), "{}", ran.err);
    let both = ["--ratio", "0.3", "--component-ratio", "vae_decoder=0.2", "--criterion", "magnitude"];
    let ran = run(&[&[work.text("sd").as_str(), "--dry-run"], &both[..]].concat());
    assert!(ran.code == 0 && !ran.err.contains("is copied without pruning"), "{}", ran.err);
}
