//! Encodes images and captions into the inputs of a latent network, and caches them.

mod cache;

mod latents;

mod text;

mod tokens;

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::cache::Cache;
pub use self::latents::LatentChoice;
use self::latents::LatentEncoder;
pub(super) use self::text::TextEncoder;
use super::model::Model;
use super::progress::{Progress, Stage, Watch, notify};
use super::runtime::Runtime;
use crate::array::Array;
use crate::diffusion::{Ranges, SampleSource, SourceOptions, captions, image_files, refuse_more_unreadable};
use crate::error::Error;
use crate::npz;
use crate::runtime::{Device, Session, SessionOptions};

/// How captions are encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The text encoder in ONNX. It maps token ids `[batch, length]` to hidden states `[batch, length, width]`.
    pub encoder: PathBuf,
    /// A folder with `tokenizer.json`, or with `vocab.json` and `merges.txt` of CLIP; or a `tokenizer.json` itself.
    pub tokenizer: PathBuf,
    /// The output to use. `None`: the first with three axes.
    pub output: Option<String>,
    /// Number of tokens to which captions are truncated or padded. `None`: the length that the encoder fixes, or else
    /// the length in the tokenizer's configuration.
    pub length: Option<usize>,
    /// The name of the hidden states in the cache: that of the network's input.
    pub name: String,
}

/// The images to encode, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodeOptions {
    /// A folder of images. If there is a text encoder, each needs a caption (see [`captions`]).
    pub images: PathBuf,
    /// The VAE encoder in ONNX. It maps images `[batch, 3, height, width]` from -1 to 1 to latents or their moments.
    pub vae_encoder: PathBuf,
    /// How captions are encoded. `None`: captions are left out.
    pub text: Option<TextOptions>,
    /// The folder that the shards are written to.
    pub cache: PathBuf,
    /// Height and width to which images are cropped and resized.
    pub size: usize,
    /// The factor on latents. `None`: `scaling_factor` of the `config.json` next to the VAE encoder, or else 0.18215,
    /// the factor of Stable Diffusion 1 and 2. `shift_factor` of that file, if present, is subtracted first.
    pub scaling_factor: Option<f64>,
    /// How latents are taken from the VAE encoder's output. `None`: decided by the name of the output.
    pub latents: Option<LatentChoice>,
    /// The seed for latents that are sampled from their distribution.
    pub seed: u64,
    /// The name of the latents in the cache: that of the network's sample input.
    pub sample_name: String,
    /// Whether the cache stores half precision.
    pub half: bool,
    /// Number of images that are encoded together, unless an encoder fixes another number.
    pub batch: usize,
    /// Number of images in a shard.
    pub per_shard: usize,
    /// Maximum number of unreadable images to leave out.
    pub most_unreadable: usize,
    /// The device that the encoders run on.
    pub device: Device,
    /// Whether operators that the device can't run may run on the CPU.
    pub allow_fallback: bool,
}

impl EncodeOptions {
    /// Returns the options for latents of Stable Diffusion at 512x512 pixels, without captions.
    pub fn new(images: impl Into<PathBuf>, vae_encoder: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Self {
            images: images.into(),
            vae_encoder: vae_encoder.into(),
            text: None,
            cache: cache.into(),
            size: 512,
            scaling_factor: None,
            latents: None,
            seed: 0,
            sample_name: "sample".to_owned(),
            half: false,
            batch: 4,
            per_shard: 256,
            most_unreadable: SourceOptions::default().most_unreadable,
            device: Device::default(),
            allow_fallback: false,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let fail = |text: String| Err(Error::usage(text));
        if self.size == 0 || self.batch == 0 || self.per_shard == 0 {
            let Self { size, batch, per_shard, .. } = self;
            return fail(format!(
                "--size, --batch and --shard: expected at least 1 each, found {size}, {batch} and {per_shard}"
            ));
        }
        if self.scaling_factor.is_some_and(|factor| !factor.is_finite() || factor == 0.0) {
            return fail(format!("expected a finite scaling factor other than 0, found {:?}", self.scaling_factor));
        }
        if self.text.as_ref().is_some_and(|text| text.name == self.sample_name) {
            return fail(format!(
                "latents and hidden states of captions can't both be named {:?}: choose another name for one of them",
                self.sample_name
            ));
        }
        Ok(())
    }

    /// Returns the names of the shards that encoding writes into the cache.
    ///
    /// # Errors
    /// Fails if the folder of images can't be read or contains none.
    pub fn shard_names(&self) -> Result<Vec<String>, Error> {
        Ok(cache::names(image_files(&self.images)?.len().div_ceil(self.per_shard.max(1))))
    }

    /// Returns the path for the hidden states of the empty caption: one row, used without a prompt.
    pub fn empty_path(&self) -> PathBuf {
        let mut name = self.cache.file_name().unwrap_or_default().to_owned();
        name.push(".empty.npz");
        self.cache.with_file_name(name)
    }
}

/// The result of encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Number of images in the cache.
    pub images: usize,
    /// Messages about images that could not be read.
    pub unreadable: Vec<String>,
    /// Number of shards that an earlier run with the same inputs wrote.
    pub kept: usize,
    /// Number of shards that were written.
    pub written: usize,
    /// The factor on latents, after the shift was subtracted.
    pub scaling_factor: f64,
    /// The shift that was subtracted from latents.
    pub shift_factor: f64,
    /// How latents were taken from the VAE encoder's output.
    pub latents: LatentChoice,
}

/// Encodes a folder of images, and their captions if requested, into shards that [`SampleSource::open`] reads. Row `i`
/// of the latents and of the hidden states belongs to one image, in the order of the images' paths.
///
/// A shard is written completely or not at all. An existing shard is kept if its digest matches. The digest covers both
/// encoders, the tokenizer, all options that affect values, and the images and captions themselves. Other shards are
/// removed before the first one is written. With captions, the hidden states of the empty caption are written next to
/// the cache for guidance ([`EncodeOptions::empty_path`]).
///
/// # Errors
/// Fails if files can't be read or don't fit each other, captions are missing, too many images are unreadable, or the
/// cache holds other arrays. Also fails if the caller stopped; complete shards are kept then.
pub fn encode(runtime: &Runtime, options: &EncodeOptions, watch: &mut Watch<'_>) -> Result<Encoded, Error> {
    options.check()?;
    let (images, captions): (Vec<PathBuf>, Vec<String>) = match &options.text {
        Some(_) => captions(&options.images)?.into_iter().unzip(),
        None => (image_files(&options.images)?, Vec::new()),
    };
    let size = [1, 3, options.size, options.size];
    let source = SampleSource::open(
        &options.images,
        (&options.sample_name, &size),
        &Ranges::default(),
        &SourceOptions::default(),
    )?;
    if images.iter().enumerate().any(|(number, image)| source.image(number) != Some(image))
        || source.len() != images.len()
    {
        return Err(Error::unmet("the images of the folder changed while it was read").in_file(&options.images));
    }
    let open = |path: &Path| open(runtime, path, options);
    let (session, of_vae) = open(&options.vae_encoder)?;
    let mut vae = LatentEncoder::new(session, options)?;
    let mut text = None;
    let mut described = format!("{of_vae} {:?} {:?} {}", size, vae.described(), options.sample_name);
    if let Some(of_text) = &options.text {
        let (session, digest) = open(&of_text.encoder)?;
        let encoder = TextEncoder::new(session, of_text)?;
        described += &format!(" {digest} {} {}", encoder.described(), of_text.name);
        text = Some((encoder, of_text));
    }
    notify(watch, Progress::Note(&vae.note()))?;
    let cache = Cache::open(options, &described)?;
    if let Some((encoder, of_text)) = &mut text {
        let empty = encoder.encode(&[String::new()], options.batch)?;
        npz::write(&options.empty_path(), [(of_text.name.as_str(), &empty)])
            .map_err(|error| Error::io(&options.empty_path(), format!("can't be written: {error}")))?;
    }
    let mut done = Encoded {
        images: 0,
        unreadable: Vec::new(),
        kept: 0,
        written: 0,
        scaling_factor: vae.scaling_factor(),
        shift_factor: vae.shift_factor(),
        latents: vae.choice(),
    };
    let of_shard = |files: &[PathBuf], shard: usize| {
        let first = shard * options.per_shard;
        captions.get(first..first + files.len()).unwrap_or_default()
    };
    let mut digests = Vec::new();
    for (shard, files) in images.chunks(options.per_shard).enumerate() {
        notify(watch, Progress::At { stage: Stage::Encoding, done: 0, total: images.len() })?;
        digests.push(cache.digest(files, of_shard(files, shard)));
    }
    // Other shards are removed first, so that a run that is stopped leaves only shards of these inputs.
    cache.remove_others(&digests)?;
    let mut seen = 0;
    for ((shard, files), digest) in images.chunks(options.per_shard).enumerate().zip(&digests) {
        notify(watch, Progress::At { stage: Stage::Encoding, done: seen, total: images.len() })?;
        let (first, captions) = (shard * options.per_shard, of_shard(files, shard));
        if let Some(rows) = cache.rows_of(shard, digest) {
            done.kept += 1;
            done.images += rows;
            seen += files.len();
            continue;
        }
        let (mut rows, mut latents) = (Vec::new(), Vec::new());
        for start in (0..files.len()).step_by(options.batch) {
            let end = (start + options.batch).min(files.len());
            let (read, values) = read(&source, first + start..first + end, &mut done.unreadable, watch)?;
            refuse_more_unreadable(&options.images, options.most_unreadable, done.unreadable.iter())?;
            latents.extend(vae.encode(&values, &read)?);
            rows.extend(read.iter().map(|number| number - first));
            seen += end - start;
            notify(watch, Progress::At { stage: Stage::Encoding, done: seen, total: images.len() })?;
        }
        let mut arrays = Vec::new();
        if let Some(latents) = latents::joined(latents) {
            arrays.push((options.sample_name.as_str(), latents));
        }
        if let Some((encoder, of_text)) = text.as_mut().filter(|_| !rows.is_empty()) {
            let captions: Vec<String> = rows.iter().map(|row| captions[*row].clone()).collect();
            arrays.push((of_text.name.as_str(), encoder.encode(&captions, options.batch)?));
        }
        if !arrays.is_empty() {
            cache.write(shard, digest, &arrays)?;
            done.written += 1;
            done.images += rows.len();
        }
    }
    if done.images == 0 {
        let text = format!("none of the {} images can be read: {}", images.len(), done.unreadable.join("; "));
        return Err(Error::unreadable(&options.images, text).hint("give a folder with PNG or JPEG images"));
    }
    Ok(done)
}

/// Opens a session for an encoder. Also returns the digest of its files.
fn open(runtime: &Runtime, path: &Path, options: &EncodeOptions) -> Result<(Session, String), Error> {
    let digest = Model::open(path)?.digest();
    let session =
        SessionOptions { device: options.device, allow_fallback: options.allow_fallback, ..SessionOptions::default() };
    let session = runtime.0.session_from_file(path, &session).map_err(|error| Error::from(error).in_file(path))?;
    Ok((session, digest))
}

/// Reads the images with these numbers. Returns the numbers of the readable ones, and their values
/// `[images, 3, height, width]`.
fn read(
    source: &SampleSource,
    numbers: std::ops::Range<usize>,
    unreadable: &mut Vec<String>,
    watch: &mut Watch<'_>,
) -> Result<(Vec<usize>, Array), Error> {
    let length: usize = source.sizes().iter().product();
    let read: Vec<(usize, Result<Vec<f32>, Error>)> = numbers
        .into_par_iter()
        .map(|number| {
            let mut row = vec![0.0; length];
            (number, source.read(number, &mut row).map(|_| row))
        })
        .collect();
    let (mut numbers, mut values) = (Vec::new(), Vec::new());
    for (number, row) in read {
        match row {
            Ok(row) => {
                numbers.push(number);
                values.extend(row);
            }
            Err(error) => {
                notify(watch, Progress::Warning(&format!("image left out: {error}")))?;
                unreadable.push(error.to_string());
            }
        }
    }
    let dims = [&[numbers.len()], source.sizes()].concat();
    Ok((numbers, Array { dims, data: crate::array::ArrayData::F32(values) }))
}
