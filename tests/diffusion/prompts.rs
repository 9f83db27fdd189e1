//! Conditioning from prompts by the text encoders of a pipeline, compared with that of diffusers.

use std::path::Path;

use onnx_diffprune::data::{Array, read_npz};
use onnx_diffprune::pipelines::Pipeline;
use onnx_diffprune::{Error, Model, Runtime};

use crate::support::fixtures::fixture;

fn prompts() -> Vec<String> {
    let text = std::fs::read_to_string(fixture("pipelines/tokens.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(reference["prompts"].clone()).unwrap()
}

fn encoded(folder: &Path, prompts: &[String]) -> Result<Vec<(String, Array)>, Error> {
    let pipeline = Pipeline::open(folder)?;
    Model::open(&pipeline.denoiser().model)?.encode_prompts(&pipeline, prompts, &Runtime::open(None)?)
}

/// Compares with the arrays of a pipeline in PyTorch. Text states are stored in float16.
fn agrees(name: &str, tolerance: f64) -> Vec<(String, Array)> {
    let reference = read_npz(&fixture(&format!("pipelines/{name}.states.npz"))).unwrap();
    let found = encoded(&fixture(&format!("pipelines/{name}")), &prompts()).unwrap();
    for (input, expected) in reference.iter().filter(|(input, _)| input != "time_ids") {
        let (_, array) = found.iter().find(|(own, _)| own == input).unwrap_or_else(|| panic!("no {input}"));
        assert_eq!(array.dims, expected.dims, "{input}");
        let (values, expected) = (array.to_f64(), expected.to_f64());
        let worst = values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = expected.iter().map(|value| value.abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * largest, "{input}: {worst} of {largest}");
    }
    found
}

#[test]
fn one_encoder_returns_its_last_hidden_states() {
    let found = agrees("sd_tiny", 1e-3);
    assert_eq!(found.len(), 1);
}

#[test]
fn two_encoders_return_joined_states_pooled_embeddings_and_time_ids() {
    let found = agrees("sdxl_tiny", 1e-3);
    let (_, ids) = found.iter().find(|(name, _)| name == "time_ids").unwrap();
    assert_eq!(ids.dims, [prompts().len(), 6]);
    // By the configuration the latents are 16x16, at two pixels each.
    assert_eq!(ids.to_f64()[..6], [32.0, 32.0, 0.0, 0.0, 32.0, 32.0]);
}

#[test]
fn missing_or_unsuitable_encoders_are_reported() {
    let error = encoded(&fixture("pipelines/sd_tiny"), &[]).unwrap_err();
    assert!(error.to_string().contains("--prompts"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("unet")).unwrap();
    for file in ["unet/model.onnx", "unet/config.json"] {
        std::fs::copy(fixture("pipelines/sd_tiny").join(file), folder.path().join(file)).unwrap();
    }
    let error = encoded(folder.path(), &prompts()).unwrap_err();
    assert!(error.to_string().contains("text_encoder and tokenizer, found none"), "{error}");
    // An encoder with another hidden size.
    for (from, to) in
        [("sdxl_tiny/text_encoder_2/model.onnx", "text_encoder"), ("sdxl_tiny/tokenizer/vocab.json", "tokenizer")]
    {
        std::fs::create_dir(folder.path().join(to)).unwrap();
        let from = fixture("pipelines").join(from);
        std::fs::copy(&from, folder.path().join(to).join(from.file_name().unwrap())).unwrap();
    }
    for file in ["merges.txt", "tokenizer_config.json"] {
        std::fs::copy(fixture("pipelines/sd_tiny/tokenizer").join(file), folder.path().join("tokenizer").join(file))
            .unwrap();
    }
    // This encoder has the right hidden size by chance, so it is accepted. The other one is refused.
    assert!(encoded(folder.path(), &prompts()).is_ok());
    std::fs::copy(
        fixture("pipelines/sdxl_tiny/text_encoder/model.onnx"),
        folder.path().join("text_encoder/model.onnx"),
    )
    .unwrap();
    let error = encoded(folder.path(), &prompts()).unwrap_err().to_string();
    assert!(["encoder_hidden_states", "16", "8"].iter().all(|fact| error.contains(fact)), "{error}");
}
