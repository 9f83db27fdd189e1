//! Commands that take the folders of pipelines and give some, and what they warn of.

use std::fs;

use serde_json::{Value, json};

use super::{BY_MAGNITUDE, OF_UNET, Room, files, kept, shape};
use crate::tool::{run, succeed};

const FEW: [&str; 6] = ["--refit-samples", "8", "--refit-timesteps", "4", "--batch", "4"];

#[test]
fn what_is_cut_is_fitted_trained_and_repeated_as_a_folder() {
    let room = Room::with("sd_tiny");
    room.prune(&[&BY_MAGNITUDE[..], &["--no-verify", "--components", "unet,vae_decoder", "--no-refit"]].concat());
    let [sd, slim, fitted, tuned, again] = ["sd", "slim", "fitted", "tuned", "again"].map(|name| room.text(name));
    let latents = latents(&room);
    let before = files(&room.path("slim"));
    // All but the denoiser is that of the cut pipeline, its decoder among it.
    let ran = succeed(&[&["refit", &sd, &slim, &fitted, "--data", &latents, "--format", "json"], &FEW[..]].concat());
    assert_eq!(ran.json()["output"], json!(room.path("fitted/unet/model.onnx")));
    changed(&before, &files(&room.path("fitted")), &["unet/model.onnx", "unet/model.plan.json"]);
    succeed(&["verify", &sd, &fitted]);
    let steps = ["--steps", "2", "--batch", "2", "--eval-samples", "0", "--data", &latents];
    let ran = succeed(&[&["finetune", &fitted, &tuned, "--teacher", &sd], &steps[..]].concat());
    assert!(ran.out.contains(&format!("wrote {tuned}: ")), "{}", ran.out);
    changed(&before, &files(&room.path("tuned")), &["unet/model.onnx", "unet/model.plan.json"]);
    assert!(room.path("tuned.unet.finetune/metrics.jsonl").is_file());
    succeed(&["verify", &sd, &tuned]);
    // The plan of the cut, by its file and by its folder; the decoder is the original's.
    for plan in [room.text("slim/unet/model.plan.json"), slim.clone()] {
        succeed(&["apply", &sd, &plan, &again]);
        assert_eq!(shape(&room.path("again/unet/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
        let [of_cut, of_again] =
            ["slim", "again"].map(|name| kept(&room.path(&format!("{name}/unet/model.plan.json"))));
        assert_eq!(of_cut, of_again);
        changed(&files(&room.path("sd")), &files(&room.path("again")), &["unet/model.onnx", "unet/model.plan.json"]);
    }
    // The denoiser alone, under the name of a file.
    let alone = room.text("alone.onnx");
    succeed(&["apply", &sd, &slim, &alone]);
    assert!(room.path("alone.onnx").is_file());
}

/// Compares two folders, which must differ in these files alone.
fn changed(before: &super::BTreeMap<String, Vec<u8>>, after: &super::BTreeMap<String, Vec<u8>>, expected: &[&str]) {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ: Vec<&str> =
        names.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(String::as_str).collect();
    assert_eq!(differ, expected);
}

/// Latents of twelve images.
fn latents(room: &Room) -> String {
    use onnx_diffprune::data::{Array, ArrayData};
    let values = (0..12 * 4 * 256).map(|at| ((at * 37 % 101) as f32 - 50.0) / 40.0).collect();
    let array = Array { dims: vec![12, 4, 16, 16], data: ArrayData::F32(values) };
    onnx_diffprune::npz::write(&room.path("latents.npz"), [("sample", &array)]).unwrap();
    room.text("latents.npz")
}

#[test]
fn verification_is_at_the_sizes_of_the_pipeline() {
    let room = Room::with("sd_tiny");
    room.prune(&[&BY_MAGNITUDE[..], &["--no-verify", "--components", "unet,vae_decoder"]].concat());
    let config = room.path("sd/unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"sample_size\": 16", "\"sample_size\": [8, 24]")).unwrap();
    let (sd, slim) = (room.text("sd"), room.text("slim"));
    let verified = |more: &[&str]| succeed(&[&["verify", &sd, &slim, "--format", "json"], more].concat()).json();
    let told = |result: &Value, component: &str| result["components"][component]["runs"][0].to_string();
    let usual = verified(&[]);
    for size in ["\"height\":8", "\"width\":24", "\"sequence_length\":77"] {
        assert!(told(&usual, "unet").contains(size), "{size}: {usual}");
    }
    assert!(told(&usual, "vae_decoder").contains("\"latent_width\":24"), "{usual}");
    let given = verified(&["--size", "latent_width=6", "--size", "width=40"]);
    assert!(told(&given, "unet").contains("\"width\":40"), "{given}");
    assert!(told(&given, "vae_decoder").contains("\"latent_width\":6"), "{given}");
    let ran = run(&["verify", &sd, &slim, "--size", "nam=3"]);
    assert!(ran.code == 2 && ran.err.contains("no symbolic dimension \"nam\""), "{}", ran.err);
}

#[test]
fn a_pipeline_without_a_scheduler_is_warned_of() {
    let room = Room::with("sd_tiny");
    fs::remove_file(room.path("sd/scheduler/scheduler_config.json")).unwrap();
    let (sd, slim) = (room.text("sd"), room.text("slim"));
    let told = |more: &[&str]| {
        let ran = run(&[&[sd.as_str(), &slim, "--dry-run", "--ratio", "0.3", "--timesteps", "2"], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.err.contains("has no scheduler/scheduler_config.json")
    };
    let draws = ["--draw-steps", "1"];
    assert!(told(&draws));
    assert!(!told(&[&draws[..], &["--schedule", "scaled_linear"]].concat()));
    // Magnitudes take no noise.
    assert!(!told(&["--criterion", "magnitude"]));
}

#[test]
fn sizes_of_samples_that_are_none_are_warned_of_and_left_out() {
    let room = Room::with("sd_tiny");
    let config = room.path("sd/unet/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let sd = room.text("sd");
    for odd in ["-16", "0", "10000000", "[16, -1]"] {
        fs::write(&config, text.replace("\"sample_size\": 16", &format!("\"sample_size\": {odd}"))).unwrap();
        let ran = run(&[&[sd.as_str(), "--dry-run"], &BY_MAGNITUDE[..]].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains("config.json: sample_size ") && ran.err.contains("is not used"), "{odd}: {}", ran.err);
        assert!(!ran.err.contains("samples 1"), "{}", ran.err);
    }
}

#[test]
fn a_ratio_for_the_decoder_alone_says_that_the_denoiser_stays() {
    let room = Room::with("sd_tiny");
    let ran = run(&[&room.text("sd"), "--dry-run", "--component-ratio", "vae_decoder=0.2", "--criterion", "magnitude"]);
    assert!(ran.code == 0 && ran.err.contains("unet is copied without pruning: no --ratio"), "{}", ran.err);
    let both = ["--ratio", "0.3", "--component-ratio", "vae_decoder=0.2", "--criterion", "magnitude"];
    let ran = run(&[&[room.text("sd").as_str(), "--dry-run"], &both[..]].concat());
    assert!(ran.code == 0 && !ran.err.contains("is copied without pruning"), "{}", ran.err);
}
