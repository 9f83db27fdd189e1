//! How the parts of a pipeline are used: its scheduler, its text encoders, its decoder.

use std::fs;

use onnx_diffprune::data::{Array, ArrayData};
use onnx_diffprune::npz;
use serde_json::{Value, json};

use super::{BY_MAGNITUDE, WorkFolder, kept};
use crate::tool::{run, succeed};

/// Options of a cut by gradients at few timesteps.
const BY_GRADIENTS: [&str; 8] =
    ["--ratio", "0.5", "--timesteps", "3", "--draw-steps", "2", "--no-refit", "--no-verify"];

/// Prunes a network alone. Returns the JSON and the kept channels.
fn alone(work: &WorkFolder, name: &str, more: &[&str]) -> (Value, Vec<Value>) {
    let (input, output) = (work.text("sd/unet/model.onnx"), work.text(&format!("{name}.onnx")));
    let arguments = [&[input.as_str(), &output, "--no-latency", "--format", "json"], &BY_GRADIENTS[..], more].concat();
    (succeed(&arguments).json(), kept(&work.path(&format!("{name}.plan.json"))))
}

#[test]
fn the_scheduler_configuration_is_found_and_affects_the_kept_channels() {
    let work = WorkFolder::with("sd_tiny");
    let scheduler = work.path("sd/scheduler/scheduler_config.json");
    let result = work.prune(&BY_GRADIENTS);
    let of_folder = kept(&work.path("slim/unet/model.plan.json"));
    let of_unet = &result["components"]["unet"];
    assert_eq!(of_unet["pipeline"]["scheduler_config"], json!(scheduler));
    assert_eq!(of_unet["pipeline"]["sample_size"], json!([16, 16]));
    // For the network alone, the configuration is found too, and the same channels are removed as with the option.
    let (found, of_found) = alone(&work, "found", &[]);
    assert_eq!((&found["pipeline"]["scheduler_config"], &of_found), (&json!(scheduler), &of_folder));
    assert!(found["gradients"]["process"].as_str().unwrap().contains("scaled_linear"), "{found}");
    let (_, of_option) = alone(&work, "option", &["--scheduler-config", scheduler.to_str().unwrap()]);
    assert_eq!(of_option, of_folder);
    // An option of the user takes precedence.
    let (other, of_other) = alone(&work, "other", &["--schedule", "linear"]);
    assert_eq!(other["pipeline"]["scheduler_config"], json!(null));
    assert!(other["gradients"]["process"].as_str().unwrap().contains("schedule linear"), "{other}");
    assert_ne!(of_other, of_folder);
    // An edited configuration changes the choice: the file is parsed, not only named.
    let text = fs::read_to_string(&scheduler).unwrap().replace("\"epsilon\"", "\"v_prediction\"");
    fs::write(&scheduler, text).unwrap();
    assert_ne!(alone(&work, "edited", &[]).1, of_folder);
}

#[test]
fn the_settings_taken_from_a_pipeline_are_reported() {
    let work = WorkFolder::with("sd_tiny");
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    let ran = run(&[&[sd.as_str(), &slim, "--no-latency"], &BY_GRADIENTS[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        format!("pipeline:     {sd} (StableDiffusionPipeline), unet"),
        format!("scheduler:    {sd}/scheduler/scheduler_config.json"),
        format!("usual sizes:  samples 16x16 from {sd}/unet/config.json, captions of 77 tokens"),
    ] {
        assert!(ran.err.contains(&line), "{line}: {}", ran.err);
    }
    assert!(ran.out.contains(&format!("wrote {slim}")) && ran.out.contains("13 files"), "{}", ran.out);
    // For a network outside a pipeline, nothing is reported.
    fs::rename(work.path("sd/unet/model.onnx"), work.path("alone.onnx")).unwrap();
    let ran = run(&[&[work.text("alone.onnx").as_str(), "--dry-run"], &BY_MAGNITUDE[..]].concat());
    assert!(ran.code == 0 && !ran.err.contains("pipeline:"), "{}", ran.err);
}

#[test]
fn prompts_are_encoded_by_both_text_encoders() {
    let work = WorkFolder::with("sdxl_tiny");
    fs::write(work.path("prompts.txt"), "a photo of a cat\n\nlow tea!\n").unwrap();
    let prompts = work.text("prompts.txt");
    let gradients = |result: &Value| {
        let network = result["components"]["unet"]["gradients"]["network"].as_array().unwrap().clone();
        network.iter().filter_map(|line| Some(line.as_str()?.rsplit_once(", ")?.1.to_owned())).collect::<Vec<_>>()
    };
    let given = work.prune(&[&BY_GRADIENTS[..], &["--prompts", &prompts]].concat());
    assert_eq!(gradients(&given).iter().filter(|how| *how == "given").count(), 3, "{given}");
    let of_prompts = kept(&work.path("slim/unet/model.plan.json"));
    let drawn = work.prune(&BY_GRADIENTS);
    assert_eq!(gradients(&drawn).iter().filter(|how| *how == "random values").count(), 3, "{drawn}");
    assert_ne!(kept(&work.path("slim/unet/model.plan.json")), of_prompts);
    // The plan contains no file name of the user.
    assert!(!fs::read_to_string(work.path("slim/unet/model.plan.json")).unwrap().contains("prompts.txt"));
}

#[test]
fn a_decoder_is_refitted_to_the_output_of_the_original() {
    let work = WorkFolder::with("sd_tiny");
    let options = ["--component-ratio", "vae_decoder=0.4", "--refit-samples", "24"];
    let result = work.prune(&options);
    assert_eq!(result["components"].as_object().unwrap().len(), 1);
    let decoder = &result["components"]["vae_decoder"];
    let (refit, gradients) = (&decoder["refit"], &decoder["gradients"]);
    assert_eq!(
        (&decoder["criterion"], &refit["loss"], &gradients["loss"]),
        (&json!("hessian"), &json!("output"), &json!("output"))
    );
    assert_eq!(gradients["kept_timesteps"], gradients["timesteps"]);
    let mean = &refit["losses"]["mean"];
    let (cut, fitted) = (mean["cut"].as_f64().unwrap(), mean["refitted"].as_f64().unwrap());
    assert!(mean["original"] == 0.0 && fitted < 0.7 * cut, "{mean}");
    assert!(refit["source"].as_str().unwrap().contains("latents generated with unet"), "{refit}");
    assert_eq!(
        (&decoder["verification"]["passed"], &decoder["cut_verification"]["passed"]),
        (&json!(true), &json!(true))
    );
    let paths = ["sd/vae_decoder/model.onnx", "slim/vae_decoder/model.onnx"].map(|name| work.text(name));
    succeed(&["verify", &paths[0], &paths[1]]);
}

#[test]
fn a_decoder_is_refitted_on_given_latents() {
    let work = WorkFolder::with("sd_tiny");
    let values = (0..12 * 4 * 64).map(|at| ((at * 37 % 101) as f32 - 50.0) / 40.0).collect();
    let latents = Array { dims: vec![12, 4, 8, 8], data: ArrayData::F32(values) };
    npz::write(&work.path("latents.npz"), [("sample", &latents)]).unwrap();
    let data = work.text("latents.npz");
    let options = ["--components", "vae_decoder", "--criterion", "magnitude", "--ratio", "0.4", "--data", &data];
    let refit = work.prune(&options)["components"]["vae_decoder"]["refit"].clone();
    assert!(refit["source"].as_str().unwrap().contains("latents.npz"), "{refit}");
    // A fifth of the samples is held out.
    assert_eq!((&refit["losses"]["samples"], refit["samples"].as_u64().unwrap() <= 10), (&json!(2), true), "{refit}");
}

#[test]
fn inputs_saved_by_olive_are_read() {
    let work = WorkFolder::with("sd_tiny");
    let prompt = work.path("data/a prompt");
    fs::create_dir_all(&prompt).unwrap();
    let array = |dims: &[usize], value: f32| Array {
        dims: dims.to_vec(),
        data: ArrayData::F32(vec![value; dims.iter().product()]),
    };
    for number in 0..11 {
        for name in ["unet_input", "unet_input_neg"] {
            let value = number as f32 / 10.0;
            let (sample, states) = (array(&[1, 4, 16, 16], value), array(&[1, 77, 16], value - 0.5));
            let arrays = [("sample", &sample), ("timestep", &array(&[1], 900.0)), ("encoder_hidden_states", &states)];
            npz::write(&prompt.join(format!("{number}_{name}.npz")), arrays).unwrap();
        }
    }
    npz::write(&prompt.join("latent.npz"), [("latent_sample", &array(&[1, 4, 16, 16], 0.0))]).unwrap();
    let inputs = work.text("data");
    let result = work.prune(&[&BY_MAGNITUDE[..], &["--inputs", &inputs]].concat());
    assert_eq!(result["components"]["unet"]["verification"]["passed"], true);
    let (found, _) = alone(&work, "olive", &["--inputs", &inputs]);
    assert!(
        found["gradients"]["network"]
            .to_string()
            .contains("encoder_hidden_states float32[batch_size, sequence_length, 16], given"),
        "{found}"
    );
    // A folder without such files, and one whose array has another shape.
    let ran = run(&[&work.text("sd"), &work.text("no"), "--ratio", "0.3", "--inputs", &work.text("sd")]);
    assert!(ran.code == 2 && ran.err.contains("0_unet_input.npz"), "{}", ran.err);
    let (sample, states) = (array(&[1, 4, 16, 16], 0.0), array(&[1, 76, 16], 0.0));
    npz::write(&prompt.join("11_unet_input.npz"), [("sample", &sample), ("encoder_hidden_states", &states)]).unwrap();
    let ran = run(&[&work.text("sd"), &work.text("no"), "--ratio", "0.3", "--inputs", &inputs]);
    assert!(ran.code == 2 && ran.err.contains("11_unet_input.npz: array"), "{}", ran.err);
}
