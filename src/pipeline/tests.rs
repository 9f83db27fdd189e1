//! Folder layouts with empty files: only their names count here.

use std::path::Path;

use super::*;

/// Creates a folder with these files: `name` is an empty file, `name=content` one with content.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let (name, content) = file.split_once('=').unwrap_or((file, ""));
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn open(files: &[&str]) -> (tempfile::TempDir, Pipeline) {
    let folder = folder(files);
    let pipeline = Pipeline::open(folder.path()).unwrap();
    (folder, pipeline)
}

/// Returns the error and hint for a folder with these files.
fn refused(files: &[&str]) -> String {
    let folder = folder(files);
    let error = Pipeline::open(folder.path()).unwrap_err();
    format!("{error}; {}", error.advice().unwrap_or_default())
}

fn model(pipeline: &Pipeline) -> &Path {
    pipeline.denoiser().model.strip_prefix(&pipeline.folder).unwrap()
}

const SD: &[&str] = &[
    "model_index.json={\"_class_name\": \"StableDiffusionPipeline\", \"unet\": [\"diffusers\", \"UNet2DConditionModel\"], \
     \"safety_checker\": [null, null]}",
    "unet/model.onnx",
    "unet/config.json={\"in_channels\": 4, \"sample_size\": 64, \"block_out_channels\": [1, 2, 3, 4]}",
    "vae_decoder/model.onnx",
    "vae_decoder/config.json={\"block_out_channels\": [8, 8, 8, 8], \"scaling_factor\": 0.5}",
    "vae_encoder/model.onnx",
    "text_encoder/model.onnx",
    "tokenizer/vocab.json",
    "scheduler/scheduler_config.json",
];

#[test]
fn components_have_their_parts_and_configurations() {
    let (_folder, pipeline) = open(SD);
    assert_eq!(pipeline.class.as_deref(), Some("StableDiffusionPipeline"));
    assert_eq!((model(&pipeline), pipeline.denoiser().part), (Path::new("unet/model.onnx"), Part::Denoiser));
    assert_eq!(pipeline.denoiser().config.sample_size, Some((64, 64)));
    assert_eq!(pipeline.denoiser().config.in_channels, Some(4));
    assert_eq!(
        (pipeline.scale(), pipeline.part(Part::VaeDecoder).unwrap().config.scaling_factor),
        (Some(8), Some(0.5))
    );
    assert_eq!(pipeline.text_encoders().len(), 1);
    assert!(pipeline.scheduler.is_some());
    let error = pipeline.component("transformer").unwrap_err();
    assert!(error.to_string().contains("found no such folder"), "{error}");
    assert!(error.advice().unwrap().contains("text_encoder, unet, vae_decoder, vae_encoder"), "{error:?}");
    assert!(pipeline.component("scheduler").unwrap_err().to_string().contains("without an .onnx file"));
}

#[test]
fn networks_are_found_under_other_names() {
    // TensorRT's demonstration, AMD's compiled networks and their text encoder, a single file of any name.
    for (file, name) in [
        ("transformer.opt/model_optimized.onnx", "transformer.opt"),
        ("unetxl.opt/model.onnx", "unetxl.opt"),
        ("unet/dd/replaced.onnx", "unet"),
        ("unet/dynamic/dd/replaced.onnx", "unet"),
        ("unet/unet.onnx", "unet"),
        ("unet/model_layernorm.onnx", "unet"),
    ] {
        let (_folder, pipeline) = open(&[file, "vae_decoder/model.onnx"]);
        assert_eq!((model(&pipeline), pipeline.denoiser().name.as_str()), (Path::new(file), name));
        assert_eq!(pipeline.class, None);
    }
    let (_folder, pipeline) = open(&["unet/model.onnx", "unet/model_fp16.onnx", "text_encoder/text_encoder.onnx"]);
    assert_eq!(model(&pipeline), Path::new("unet/model.onnx"));
    assert_eq!(pipeline.part(Part::TextEncoder).unwrap().name, "text_encoder");
    // The transformer for low noise levels comes second.
    let (_folder, pipeline) = open(&["transformer/model.onnx", "transformer_2/model.onnx"]);
    assert_eq!(pipeline.denoiser().name, "transformer");
}

#[test]
fn the_index_decides_between_two() {
    let index =
        "model_index.json={\"transformer\": [\"diffusers\", \"SD3Transformer2DModel\"], \"unet\": [null, null]}";
    let (_folder, pipeline) = open(&[index, "unet/model.onnx", "transformer/model.onnx"]);
    assert_eq!(pipeline.denoiser().name, "transformer");
    let error = refused(&["unet/model.onnx", "transformer/model.onnx"]);
    assert!(error.contains("expected one denoiser in the pipeline, found transformer and unet"), "{error}");
}

#[test]
fn two_encoders_keep_their_tokenizers() {
    let (_folder, pipeline) = open(&[
        "unet/model.onnx",
        "text_encoder_2/model.onnx",
        "text_encoder/model.onnx",
        "tokenizer_2/tokenizer.json",
        "tokenizer/vocab.json",
    ]);
    let pairs: Vec<(&str, &str)> = pipeline
        .text_encoders()
        .into_iter()
        .map(|(encoder, tokenizer)| (encoder.name.as_str(), tokenizer.file_name().unwrap().to_str().unwrap()))
        .collect();
    assert_eq!(pairs, [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]);
}

#[test]
fn a_repository_in_the_cache_leads_to_its_snapshot() {
    let files = ["refs/main=abc\n", "snapshots/abc/unet/model.onnx", "snapshots/def/unet/model.onnx"];
    let (folder, pipeline) = open(&files);
    assert_eq!(pipeline.folder, folder.path().join("snapshots/abc"));
    let (folder, pipeline) = open(&files[1..2]);
    assert_eq!(pipeline.folder, folder.path().join("snapshots/abc"));
    assert!(refused(&files[1..]).contains("expected one snapshot in the cache, found 2"));
}

#[cfg(unix)]
#[test]
fn links_are_files() {
    let folder = folder(&["blobs/1", "snapshots/abc/unet/config.json={}"]);
    let unet = folder.path().join("snapshots/abc/unet");
    std::os::unix::fs::symlink("../../../blobs/1", unet.join("model.onnx")).unwrap();
    let pipeline = Pipeline::open(folder.path()).unwrap();
    // The path of the link is kept: data files are relative to it.
    assert_eq!(pipeline.denoiser().model, unet.join("model.onnx"));
}

#[test]
fn folders_that_are_not_pipelines_get_a_hint() {
    let error = refused(&["vae_decoder/model.onnx", "readme.md"]);
    assert!(error.contains("unet/model.onnx or transformer/model.onnx, found readme.md, vae_decoder"), "{error}");
    assert!(refused(&[]).contains("found nothing"));
    let error = refused(&["unet/diffusion_pytorch_model.safetensors"]);
    assert!(error.contains("export them first"), "{error}");
    let error = refused(&["unet/a.onnx", "unet/b.onnx"]);
    assert!(error.contains("expected model.onnx or a single .onnx file, found a.onnx, b.onnx"), "{error}");
    let error = refused(&["model_index.json=[1]", "unet/model.onnx"]);
    assert!(error.contains("model_index.json: expected a JSON object"), "{error}");
    let error = refused(&["unet/config.json={", "unet/model.onnx"]);
    assert!(error.contains("unet/config.json: not JSON"), "{error}");
    let folder = folder(SD);
    let error = Pipeline::open(&folder.path().join("unet")).unwrap_err();
    assert!(error.advice().unwrap().starts_with("give the folder of the pipeline"), "{error:?}");
    assert!(Pipeline::open(&folder.path().join("none")).unwrap_err().to_string().contains("found no folder"));
}

#[test]
fn configurations_with_values_of_other_types_are_accepted() {
    let (_folder, pipeline) =
        open(&["unet/model.onnx", "unet/config.json={\"sample_size\": [32, 48], \"in_channels\": \"four\"}"]);
    assert_eq!(
        (pipeline.denoiser().config.sample_size, pipeline.denoiser().config.in_channels),
        (Some((32, 48)), None)
    );
    let (_folder, pipeline) = open(&["unet/model.onnx", "unet/config.json={\"sample_size\": null}"]);
    assert_eq!(pipeline.denoiser().config.sample_size, None);
}

#[test]
fn a_network_alone_finds_its_pipeline() {
    let folder = folder(SD);
    let around = Around::of(&folder.path().join("unet/model.onnx")).unwrap().unwrap();
    assert_eq!((around.folder.as_path(), around.component.as_str()), (folder.path(), "unet"));
    assert_eq!(around.scheduler, Some(folder.path().join("scheduler/scheduler_config.json")));
    assert_eq!(around.config.unwrap().1.sample_size, Some((64, 64)));
    // The scheduler does not belong to the decoder.
    let around = Around::of(&folder.path().join("vae_decoder/model.onnx")).unwrap().unwrap();
    assert_eq!((around.component.as_str(), around.scheduler), ("vae_decoder", None));
    assert_eq!(Around::of(&folder.path().join("model.onnx")).unwrap(), None);
    // Without an index, the scheduler marks the pipeline, even for a network in AMD's compiled folder.
    let folder = self::folder(&["unet/dd/replaced.onnx", "unet/config.json={\"in_channels\": 9}", SCHEDULER]);
    let around = Around::of(&folder.path().join("unet/dd/replaced.onnx")).unwrap().unwrap();
    assert_eq!(around.scheduler, Some(folder.path().join(SCHEDULER)));
    assert_eq!(around.config.unwrap().1.in_channels, Some(9));
}
