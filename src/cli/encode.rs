//! The command `encode`: encodes images and captions for a latent network, into a folder of shards.

use std::path::PathBuf;

use clap::Args;
use onnx_diffprune::encoding::{EncodeOptions, LatentChoice, TextOptions, encode};
use onnx_diffprune::{Error, Model, Stage};
use serde_json::json;

use super::args::Cli;
use super::printer::{Printer, Watcher};
use super::ranks::device;
use super::{open_runtime, run_files};

#[derive(Args, Debug)]
pub(super) struct EncodeArgs {
    /// A folder of PNG and JPEG images. With --text-encoder, every image needs a caption: a line of metadata.jsonl in
    /// the folder (file_name and text), or a .txt file beside it.
    #[arg(value_name = "IMAGES")]
    images: PathBuf,
    /// The folder for the shards latents-00000.safetensors and so on. Shards of an earlier run with the same inputs are
    /// kept.
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// The VAE encoder as an ONNX file.
    #[arg(long, value_name = "MODEL.onnx")]
    vae_encoder: PathBuf,
    /// The text encoder as an ONNX file. Without it, captions are not encoded.
    #[arg(long, value_name = "MODEL.onnx", requires = "tokenizer")]
    text_encoder: Option<PathBuf>,
    /// The folder of the tokenizer: tokenizer.json, or vocab.json and merges.txt of CLIP.
    #[arg(long, value_name = "FOLDER", requires = "text_encoder")]
    tokenizer: Option<PathBuf>,
    /// Height and width in pixels to which images are cropped and resized.
    #[arg(long, value_name = "N", default_value_t = 512)]
    size: usize,
    /// Factor that latents are multiplied by [default: that of config.json beside the VAE encoder, else 0.18215].
    #[arg(long, value_name = "X")]
    scaling_factor: Option<f64>,
    /// What to use of the output of the VAE encoder: the means of the distribution that it describes, random samples
    /// from it, or the output itself [default: by the name of the output: the means for latent_parameters, the output
    /// itself for latent_sample].
    #[arg(long, value_enum)]
    latents: Option<LatentChoice>,
    /// Name of the text encoder's output to use [default: the first with three axes].
    #[arg(long, value_name = "NAME", requires = "text_encoder")]
    text_output: Option<String>,
    /// Number of tokens to which captions are truncated or padded [default: the length that the encoder fixes, else
    /// that of the tokenizer's configuration].
    #[arg(long, value_name = "N", requires = "text_encoder")]
    text_length: Option<usize>,
    /// Name of the latents in the shards: the network's input for the noisy sample.
    #[arg(long, value_name = "NAME", default_value = "sample")]
    sample_name: String,
    /// Name of the encoded captions in the shards: the network's input for them.
    #[arg(long, value_name = "NAME", default_value = "encoder_hidden_states")]
    text_name: String,
    /// Write float16 instead of float32.
    #[arg(long)]
    half: bool,
    /// Batch size of the encoders, in images.
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Number of images per shard.
    #[arg(long, value_name = "N", default_value_t = 256)]
    shard: usize,
    /// Largest number of unreadable images to skip; with more, the run fails.
    #[arg(long, value_name = "N", default_value_t = 16)]
    most_unreadable: usize,
    /// Seed of latents that are sampled at random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The device to run the encoders on: cpu, cuda[:N] or tensorrt[:N] [default: cpu].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Run nodes on the CPU that the device does not support, instead of failing.
    #[arg(long)]
    allow_fallback: bool,
}

impl EncodeArgs {
    fn options(&self) -> Result<EncodeOptions, Error> {
        let text = self.text_encoder.as_ref().zip(self.tokenizer.as_ref()).map(|(encoder, tokenizer)| TextOptions {
            encoder: encoder.clone(),
            tokenizer: tokenizer.clone(),
            output: self.text_output.clone(),
            length: self.text_length,
            name: self.text_name.clone(),
        });
        Ok(EncodeOptions {
            text,
            size: self.size,
            scaling_factor: self.scaling_factor,
            latents: self.latents,
            seed: self.seed,
            sample_name: self.sample_name.clone(),
            half: self.half,
            batch: self.batch,
            per_shard: self.shard,
            most_unreadable: self.most_unreadable,
            device: self.device.as_deref().map(device).transpose()?.unwrap_or_default(),
            allow_fallback: self.allow_fallback,
            ..EncodeOptions::new(&self.images, &self.vae_encoder, &self.cache)
        })
    }
}

pub(super) fn run(args: &EncodeArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let options = args.options()?;
    // Conflicts between files are reported before anything is computed.
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "--vae-encoder", &Model::open(&args.vae_encoder)?);
    if let Some(encoder) = &args.text_encoder {
        run_files::reads_model(&mut files, "--text-encoder", &Model::open(encoder)?);
        files.add_output("the states of the empty caption", options.empty_path());
    }
    run_files::reads_data(&mut files, Some(&args.images))?;
    let names = options.shard_names()?;
    files.add_outputs_in("a shard of CACHE", &args.cache, &names.iter().map(String::as_str).collect::<Vec<_>>());
    files.check()?;
    let runtime = open_runtime(cli)?;
    let mut watcher = Watcher::new(printer, |stage| (stage == Stage::Encoding).then_some("encoding"));
    let done = encode(&runtime, &options, &mut |progress| watcher.see(progress))?;
    drop(watcher);
    let empty = args.text_encoder.as_ref().map(|_| options.empty_path());
    let json = json!({
        "images": done.images,
        "cache": args.cache,
        "empty_caption": empty,
        "shards_written": done.written,
        "shards_kept": done.kept,
        "unreadable": done.unreadable,
        "latents": done.latents,
        "scaling_factor": done.scaling_factor,
        "shift_factor": done.shift_factor,
    });
    printer.result(&json, || {
        let kept = if done.kept > 0 { format!(" ({} more existed already)", done.kept) } else { String::new() };
        let empty = empty.map_or(String::new(), |path| format!(", and {}", path.display()));
        format!(
            "{} images encoded\nwrote {} shards to {}{kept}{empty}",
            done.images,
            done.written,
            args.cache.display()
        )
    });
    Ok(true)
}
