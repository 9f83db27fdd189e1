//! Layouts of pipeline folders: which files are copied, which are new, and which names loaders expect.

use std::fs;
use std::path::Path;

use onnx_diffprune::onnx::ModelProto;
use prost::Message;
use serde_json::{Value, json};

use super::{BY_MAGNITUDE, OF_UNET, WorkFolder, files, shape};
use crate::support::external::externalised;
use crate::support::files::listing;
use crate::tool::{run, succeed};

#[test]
fn a_pruned_pipeline_folder_can_be_loaded() {
    let work = WorkFolder::with("sd_tiny");
    let result = work.prune(&[&BY_MAGNITUDE[..], &["--components", "unet,vae_decoder"]].concat());
    let (before, after) = (files(&work.path("sd")), files(&work.path("slim")));
    let new = ["unet/model.plan.json", "vae_decoder/model.plan.json"];
    let names: Vec<&String> = after.keys().filter(|name| !new.contains(&name.as_str())).collect();
    assert_eq!(names, before.keys().collect::<Vec<_>>());
    for (name, content) in
        before.iter().filter(|(name, _)| !["unet/model.onnx", "vae_decoder/model.onnx"].contains(&name.as_str()))
    {
        assert!(after[name] == *content, "{name}");
    }
    for component in ["unet", "vae_decoder"] {
        let of = &result["components"][component];
        assert_eq!(of["verification"]["passed"], true);
        assert!(of["after"]["parameters"].as_f64() < of["before"]["parameters"].as_f64(), "{of}");
        assert_eq!(of["output"], json!(work.path("slim").join(component).join("model.onnx")));
        assert_eq!(of["sizes"][if component == "unet" { "height" } else { "latent_height" }], 16);
    }
    assert_eq!(result["copied"].as_array().unwrap().len(), before.len() - 2);
    assert_eq!(shape(&work.path("slim/unet/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
    let of_decoder: (&str, &[usize]) = ("latent_sample", &[1, 4, 8, 8]);
    assert_eq!(shape(&work.path("slim/vae_decoder/model.onnx"), &[of_decoder]), [1, 3, 16, 16]);
    assert_eq!(listing(work.folder.path()), ["sd", "slim"]);
    // Commands for a network accept the folder of its pipeline.
    let (sd, slim, samples) = (work.text("sd"), work.text("slim"), work.text("samples.npy"));
    let verified = succeed(&["verify", &sd, &slim, "--format", "json"]).json();
    let components: Vec<(&String, &Value)> =
        verified["components"].as_object().unwrap().iter().map(|(name, report)| (name, &report["passed"])).collect();
    assert_eq!(components, [(&"unet".to_owned(), &json!(true)), (&"vae_decoder".to_owned(), &json!(true))]);
    assert!(succeed(&["inspect", &slim]).out.contains("sample: float32[batch_size, 4, height, width]"));
    let drawn = ["sample", &slim, "--count", "1", "--steps", "2", "--save-npy", &samples, "--format", "json"];
    let drawn = succeed(&drawn).json();
    assert_eq!((&drawn["shape"], &drawn["pipeline"]["component"]), (&json!([1, 4, 16, 16]), &json!("unet")));
    assert!(drawn["process"].as_str().unwrap().contains("scaled_linear"), "{drawn}");
    succeed(&["apply", &sd, &work.text("slim/unet/model.plan.json"), &work.text("again.onnx")]);
    assert!(fs::read(work.path("again.onnx")).unwrap() == after["unet/model.onnx"]);
    // Every component is verified.
    fs::write(work.path("slim/vae_decoder/model.onnx"), &before["vae_decoder/model.onnx"]).unwrap();
    assert_eq!(run(&["verify", &sd, &slim]).code, 1);
}

#[test]
fn by_default_only_the_denoiser_is_cut() {
    let work = WorkFolder::with("sd_tiny");
    let result = work.prune(&BY_MAGNITUDE);
    assert_eq!(result["components"].as_object().unwrap().keys().collect::<Vec<_>>(), ["unet"]);
    let (before, after) = (files(&work.path("sd")), files(&work.path("slim")));
    assert!(before["vae_decoder/model.onnx"] == after["vae_decoder/model.onnx"]);
    assert!(before["unet/model.onnx"].len() > after["unet/model.onnx"].len());
}

#[test]
fn a_folder_that_this_tool_wrote_is_replaced_as_a_whole() {
    let work = WorkFolder::with("sd_tiny");
    fs::create_dir(work.path("slim")).unwrap();
    work.prune(&BY_MAGNITUDE);
    fs::remove_dir_all(work.path("sd/vae_encoder")).unwrap();
    work.prune(&BY_MAGNITUDE);
    assert!(work.path("slim/unet").exists() && !work.path("slim/vae_encoder").exists());
    assert_eq!(listing(work.folder.path()), ["sd", "slim"]);
    // A pruned pipeline can be pruned again. The new plan replaces its plan.
    let (input, output) = (work.text("slim"), work.text("slimmer"));
    succeed(&[&[input.as_str(), &output, "--no-latency"], &BY_MAGNITUDE[..]].concat());
    assert!(
        fs::read(work.path("slim/unet/model.plan.json")).unwrap()
            != fs::read(work.path("slimmer/unet/model.plan.json")).unwrap()
    );
    succeed(&["verify", &input, &output]);
}

/// Moves the weights of a network into `model.onnx_data` beside it.
fn externalise(model: &Path, data: &Path) {
    let proto = ModelProto::decode(fs::read(model).unwrap().as_slice()).unwrap();
    let (bytes, of_data) = externalised(&proto, "model.onnx_data");
    fs::write(model, bytes).unwrap();
    fs::write(data, of_data).unwrap();
}

#[test]
fn the_data_file_keeps_the_name_that_loaders_expect() {
    let work = WorkFolder::with("sd_tiny");
    let data = work.path("sd/unet/model.onnx_data");
    externalise(&work.path("sd/unet/model.onnx"), &data);
    fs::write(work.path("sd/unet/diffusion_pytorch_model.safetensors"), "").unwrap();
    let result = work.prune(&BY_MAGNITUDE);
    let names =
        ["config.json", "diffusion_pytorch_model.safetensors", "model.onnx", "model.onnx_data", "model.plan.json"];
    assert_eq!(listing(&work.path("slim/unet")), names);
    assert_eq!(result["unchanged_weights"], json!(["unet/diffusion_pytorch_model.safetensors"]));
    let length = |path: &Path| path.metadata().unwrap().len();
    assert!(length(&work.path("slim/unet/model.onnx_data")) < length(&data));
    assert_eq!(shape(&work.path("slim/unet/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
    succeed(&["verify", &work.text("sd"), &work.text("slim")]);
}

#[cfg(unix)]
#[test]
fn a_cache_of_the_hub_is_followed_and_not_linked_to() {
    let work = WorkFolder::with("sd_tiny");
    externalise(&work.path("sd/unet/model.onnx"), &work.path("sd/unet/model.onnx_data"));
    // Every file is a link to a blob with a meaningless name.
    let (cache, snapshot) = (work.path("models--a--b"), work.path("models--a--b/snapshots/abc"));
    fs::create_dir_all(cache.join("blobs")).unwrap();
    fs::create_dir_all(cache.join("refs")).unwrap();
    fs::write(cache.join("refs/main"), "abc").unwrap();
    let originals = files(&work.path("sd"));
    for (number, (name, content)) in originals.iter().enumerate() {
        let (blob, link) = (cache.join("blobs").join(number.to_string()), snapshot.join(name));
        fs::write(&blob, content).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&blob, link).unwrap();
    }
    let before = files(&cache);
    for (input, output) in [(&cache, "of_cache"), (&snapshot, "of_snapshot")] {
        let arguments = [input.to_str().unwrap(), &work.text(output), "--no-latency"];
        succeed(&[&arguments, &BY_MAGNITUDE[..]].concat());
        let output = work.path(output);
        let after = files(&output);
        assert_eq!(after.len(), originals.len() + 1);
        assert!(after.keys().all(|name| output.join(name).symlink_metadata().unwrap().is_file()));
        assert!(after["tokenizer/vocab.json"] == originals["tokenizer/vocab.json"]);
        assert_eq!(shape(&output.join("unet/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
    }
    assert!(files(&cache) == before);
}

#[test]
fn a_transformer_folder_without_an_index_is_a_pipeline_too() {
    let work = WorkFolder::with("sd_tiny");
    fs::rename(work.path("sd/unet"), work.path("sd/transformer")).unwrap();
    fs::remove_file(work.path("sd/model_index.json")).unwrap();
    let result = work.prune(&["--component-ratio", "transformer=0.5", "--criterion", "magnitude"]);
    assert_eq!((&result["class"], &result["components"]["transformer"]["ratio"]), (&json!(null), &json!(0.5)));
    assert_eq!(shape(&work.path("slim/transformer/model.onnx"), &OF_UNET), [2, 4, 16, 16]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let work = WorkFolder::with("sd_tiny");
    let (sd, slim) = (work.text("sd"), work.text("slim"));
    for output in [&[][..], &[slim.as_str()]] {
        let ran = run(&[&[sd.as_str()], output, &["--dry-run"], &BY_MAGNITUDE[..]].concat());
        assert!(ran.code == 0 && ran.out.contains("dry run: nothing was written"), "{}", ran.err);
    }
    assert_eq!(listing(work.folder.path()), ["sd"]);
}
