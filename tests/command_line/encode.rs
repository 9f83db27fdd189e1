//! The command `encode` as users run it.

use std::path::{Path, PathBuf};

use image::{GrayImage, Luma};
use onnx_diffprune::data::{Ranges, SampleSource, SourceOptions};
use onnx_diffprune::npz;
use onnx_diffprune::onnx::{attr_int, attr_ints};
use prost::Message;
use serde_json::json;

use super::tool::{Ran, run};
use crate::support::builder::{Builder, model_of, node, value_of};
use crate::support::files::listing;

/// Images of one grey value each with captions, encoders, and a folder for the cache.
struct WorkFolder {
    folder: tempfile::TempDir,
}

/// Returns the grey value of an image.
fn grey(number: usize) -> u8 {
    50 + 10 * number as u8
}

/// Builds an encoder whose means are those of 2x2 pixels and whose standard deviations are e^-2.
fn vae() -> Vec<u8> {
    let mut builder = Builder::new(0);
    let two = [attr_ints("kernel_shape", &[2, 2]), attr_ints("strides", &[2, 2])];
    let means = builder.op("AveragePool", &["image"], &two);
    let (zero, variance) = (builder.float(0.0), builder.float(-4.0));
    let none = builder.op("Mul", &[&means, &zero], &[]);
    let variances = builder.op("Add", &[&none, &variance], &[]);
    let both = builder.op("Concat", &[&means, &variances], &[attr_int("axis", 1)]);
    builder.graph.node.push(node("last", "Identity", &[&both], &["latent_parameters"]));
    builder.graph.input = vec![value_of("image", 1, Some(&["batch", "3", "height", "width"]))];
    builder.graph.output = vec![value_of("latent_parameters", 1, Some(&["batch", "6", "h", "w"]))];
    model_of(21, builder.graph).encode_to_vec()
}

/// Builds a text encoder that returns the token ids.
fn text_encoder() -> Vec<u8> {
    let mut builder = Builder::new(0);
    let floats = builder.op("Cast", &["input_ids"], &[attr_int("to", 1)]);
    let axis = builder.ints(&[2]);
    let states = builder.op("Unsqueeze", &[&floats, &axis], &[]);
    builder.graph.node.push(node("last", "Identity", &[&states], &["last_hidden_state"]));
    builder.graph.input = vec![value_of("input_ids", 7, Some(&["batch", "length"]))];
    builder.graph.output = vec![value_of("last_hidden_state", 1, Some(&["batch", "length", "1"]))];
    model_of(21, builder.graph).encode_to_vec()
}

impl WorkFolder {
    fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(work.path("images")).unwrap();
        std::fs::create_dir(work.path("tokenizer")).unwrap();
        for number in 0..5 {
            let image = GrayImage::from_pixel(8, 8, Luma([grey(number)]));
            image.save(work.path(&format!("images/{number}.png"))).unwrap();
            std::fs::write(work.path(&format!("images/{number}.txt")), "a".repeat(number)).unwrap();
        }
        std::fs::write(work.path("vae.onnx"), vae()).unwrap();
        std::fs::write(work.path("text.onnx"), text_encoder()).unwrap();
        let words = json!({ "a": 1, "a</w>": 2, "aa</w>": 3, "<|startoftext|>": 8, "<|endoftext|>": 9 });
        std::fs::write(work.path("tokenizer/vocab.json"), words.to_string()).unwrap();
        std::fs::write(work.path("tokenizer/merges.txt"), "#version: 0.2\na a</w>\n").unwrap();
        let config = json!({ "model_max_length": 4, "pad_token": "<|endoftext|>" });
        std::fs::write(work.path("tokenizer/tokenizer_config.json"), config.to_string()).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn encode(&self, arguments: &[&str]) -> Ran {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let (images, cache, vae) = (text("images"), text("cache"), text("vae.onnx"));
        let usual =
            ["encode", &images, &cache, "--vae-encoder", &vae, "--size", "4", "--shard", "2", "--format", "json"];
        run(&[&usual, arguments].concat())
    }

    fn with_captions(&self, arguments: &[&str]) -> Ran {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let (encoder, tokenizer) = (text("text.onnx"), text("tokenizer"));
        self.encode(&[&["--text-encoder", &encoder, "--tokenizer", &tokenizer], arguments].concat())
    }

    fn source(&self) -> SampleSource {
        open(&self.path("cache"))
    }
}

fn open(cache: &Path) -> SampleSource {
    SampleSource::open(cache, ("sample", &[1, 3, 2, 2]), &Ranges::default(), &SourceOptions::default()).unwrap()
}

fn first(source: &SampleSource, number: usize) -> f32 {
    let mut row = vec![0.0; 12];
    source.read(number, &mut row).unwrap();
    assert!(row.iter().all(|value| value.is_finite()));
    row[0]
}

#[test]
fn images_and_captions_are_encoded_into_shards_that_serve_as_data() {
    let work = WorkFolder::new();
    let ran = work.with_captions(&["--scaling-factor", "0.5", "--batch", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let json = ran.json();
    assert_eq!((&json["images"], &json["shards_written"], &json["latents"]), (&json!(5), &json!(3), &json!("mean")));
    let names: Vec<String> = (0..3).map(|shard| format!("latents-{shard:05}.safetensors")).collect();
    assert_eq!(listing(&work.path("cache")), names);
    let source = work.source();
    for number in 0..5 {
        let expected = 0.5 * (f32::from(grey(number)) / 127.5 - 1.0);
        assert!((first(&source, number) - expected).abs() < 1e-6);
    }
    // The words a and aa. A longer caption is cut to four tokens.
    let states = source.rows("encoder_hidden_states", &[0, 1, 2, 4]).unwrap();
    assert_eq!(states.dims, [4, 4, 1]);
    let expected = [[8, 9, 9, 9], [8, 2, 9, 9], [8, 3, 9, 9], [8, 1, 1, 9]].concat();
    assert_eq!(states.to_f64(), expected.into_iter().map(f64::from).collect::<Vec<_>>());
    let empty = npz::read(&work.path("cache.empty.npz")).unwrap().remove(0);
    assert_eq!((empty.0.as_str(), empty.1.to_f64()), ("encoder_hidden_states", vec![8.0, 9.0, 9.0, 9.0]));
}

#[test]
fn shards_whose_inputs_are_unchanged_are_kept() {
    let work = WorkFolder::new();
    let counts = |ran: Ran| {
        assert_eq!(ran.code, 0, "{}", ran.err);
        let json = ran.json();
        (json["shards_written"].as_u64().unwrap(), json["shards_kept"].as_u64().unwrap())
    };
    assert_eq!(counts(work.with_captions(&[])), (3, 0));
    // As after an interrupted run.
    std::fs::remove_file(work.path("cache/latents-00001.safetensors")).unwrap();
    assert_eq!(counts(work.with_captions(&[])), (1, 2));
    std::fs::write(work.path("images/4.txt"), "aa").unwrap();
    assert_eq!(counts(work.with_captions(&[])), (1, 2));
    GrayImage::from_pixel(8, 8, Luma([1])).save(work.path("images/0.png")).unwrap();
    assert_eq!(counts(work.with_captions(&[])), (1, 2));
    assert_eq!(counts(work.with_captions(&["--scaling-factor", "2"])), (3, 0));
    assert_eq!(counts(work.with_captions(&["--scaling-factor", "2", "--half"])), (3, 0));
    // With fewer images, surplus shards are removed.
    for number in 2..5 {
        std::fs::remove_file(work.path(&format!("images/{number}.png"))).unwrap();
    }
    assert_eq!(counts(work.with_captions(&["--scaling-factor", "2", "--half"])), (0, 1));
    assert_eq!((listing(&work.path("cache")).len(), work.source().len()), (1, 2));
}

#[test]
fn sampled_latents_depend_on_the_seed_and_the_image_number_alone() {
    let work = WorkFolder::new();
    let drawn = |arguments: &[&str]| {
        // Existing shards would be kept.
        let _ = std::fs::remove_dir_all(work.path("cache"));
        let ran = work.encode(&[&["--latents", "drawn", "--scaling-factor", "1"], arguments].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        let source = work.source();
        (0..5).map(|number| first(&source, number) - (f32::from(grey(number)) / 127.5 - 1.0)).collect::<Vec<f32>>()
    };
    let one = drawn(&["--seed", "1"]);
    assert_eq!(one, drawn(&["--seed", "1", "--batch", "1"]));
    assert_ne!(one, drawn(&["--seed", "2"]));
    // The standard deviation is e^-2 = 0.135.
    assert!(one.iter().all(|noise| *noise != 0.0 && noise.abs() < 0.7), "{one:?}");
}

#[test]
fn the_scaling_factor_is_read_from_the_configuration_beside_the_encoder() {
    let work = WorkFolder::new();
    std::fs::write(work.path("config.json"), "{\"scaling_factor\": 4.0, \"shift_factor\": 0.25}").unwrap();
    let ran = work.encode(&[]);
    assert_eq!((ran.code, &ran.json()["scaling_factor"]), (0, &json!(4.0)), "{}", ran.err);
    assert!((first(&work.source(), 1) - 4.0 * (60.0 / 127.5 - 1.25)).abs() < 1e-5);
    assert!(work.source().conditioning_names().is_empty());
}

#[test]
fn unreadable_images_are_skipped_up_to_a_limit() {
    let work = WorkFolder::new();
    std::fs::write(work.path("images/1.png"), b"\x89PNG\r\n\x1a\n damaged").unwrap();
    let ran = work.with_captions(&["--scaling-factor", "1"]);
    assert_eq!((ran.code, &ran.json()["images"]), (0, &json!(4)), "{}", ran.err);
    assert!(ran.err.contains("left out") && ran.err.contains("1.png"), "{}", ran.err);
    // Latents and text states of one row belong to the same image.
    let source = work.source();
    assert!((first(&source, 1) - (f32::from(grey(2)) / 127.5 - 1.0)).abs() < 1e-6);
    assert_eq!(source.rows("encoder_hidden_states", &[1]).unwrap().to_f64(), [8.0, 3.0, 9.0, 9.0]);
    std::fs::remove_dir_all(work.path("cache")).unwrap();
    let ran = work.with_captions(&["--most-unreadable", "0"]);
    assert!(ran.code == 2 && ran.err.contains("at most 0") && ran.err.contains("1.png"), "{}", ran.err);
    assert!(!work.path("cache").exists(), "an empty folder is left behind");
    for image in ["0.png", "2.png", "3.png", "4.png"] {
        std::fs::write(work.path(&format!("images/{image}")), "damaged").unwrap();
    }
    let ran = work.with_captions(&[]);
    assert!(ran.code == 2 && ran.err.contains("none of the 5 images"), "{}", ran.err);
    assert!(!work.path("cache").exists(), "an empty folder is left behind");
}

#[test]
fn missing_captions_and_unsuitable_encoders_are_refused() {
    let work = WorkFolder::new();
    let refused = |ran: Ran, code: i32, words: &[&str]| {
        assert_eq!(ran.code, code, "{}", ran.err);
        assert!(words.iter().all(|word| ran.err.contains(word)), "{words:?} in {}", ran.err);
    };
    std::fs::remove_file(work.path("images/3.txt")).unwrap();
    refused(work.with_captions(&[]), 2, &["1 of 5 images have no caption", "3.png"]);
    std::fs::write(work.path("images/3.txt"), "").unwrap();
    refused(work.with_captions(&["--text-output", "pooled"]), 2, &["last_hidden_state", "text.onnx"]);
    refused(work.encode(&["--batch", "0"]), 2, &["batch", "at least 1"]);
    refused(work.with_captions(&["--text-name", "sample"]), 2, &["\"sample\""]);
    // A text encoder given as the VAE encoder.
    let text = work.path("text.onnx");
    refused(work.encode(&["--device", "abacus"]), 2, &["--device"]);
    std::fs::copy(&text, work.path("vae.onnx")).unwrap();
    refused(work.encode(&[]), 2, &["VAE encoder with one input", "input_ids"]);
    std::fs::write(work.path("vae.onnx"), vae()).unwrap();
    std::fs::create_dir(work.path("cache")).unwrap();
    npz::write(&work.path("cache/other.npz"), []).unwrap();
    refused(work.encode(&[]), 2, &["other.npz", "only shards"]);
}
