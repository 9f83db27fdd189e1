//! Encodes images to latents with a VAE encoder.

use std::path::Path;

use rand::{RngExt as _, SeedableRng as _};
use rand_distr::StandardNormal;
use rand_pcg::Pcg64;
use serde::Serialize;
use serde_json::Value;

use super::EncodeOptions;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::files::read_text;
use crate::runtime::{IoInfo, Session};

/// The scaling factor of Stable Diffusion 1 and 2.
const USUAL_FACTOR: f64 = 0.18215;

/// Maximum number of bytes of a configuration.
const MOST_CONFIG: u64 = 1 << 20;

/// The range to which diffusers clamps log-variances in `DiagonalGaussianDistribution`.
const LOG_VARIANCES: (f32, f32) = (-30.0, 20.0);

/// How latents are taken from a VAE encoder's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LatentChoice {
    /// The output has means and log-variances, concatenated along the channels: take the means.
    Mean,
    /// For such an output: take a sample of the normal distribution for each image, by the seed and the image's number.
    Drawn,
    /// The output is the latents: take it as it is.
    Direct,
}

/// A VAE encoder.
#[derive(Debug)]
pub(super) struct LatentEncoder {
    session: Session,
    input: IoInfo,
    choice: LatentChoice,
    /// The shift that is subtracted first, and the factor.
    scale: (f64, f64),
    seed: u64,
    batch: usize,
    path: std::path::PathBuf,
}

impl LatentEncoder {
    pub(super) fn new(session: Session, options: &EncodeOptions) -> Result<Self, Error> {
        let path = options.vae_encoder.clone();
        let fail = |text: String| Err(Error::usage(text).in_file(&path));
        let input = match session.inputs() {
            [input] if input.dims.len() == 4 => input.clone(),
            inputs => {
                let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
                return fail(format!(
                    "expected a VAE encoder with one input [batch, channels, height, width], found [{}]",
                    names.join(", ")
                ));
            }
        };
        let Some(output) = session.outputs().first() else {
            return fail("expected a VAE encoder with at least one output, found none".to_owned());
        };
        let name = output.name.to_ascii_lowercase();
        let choice = match options.latents {
            Some(choice) => choice,
            None if name.contains("parameter") || name.contains("moment") => LatentChoice::Mean,
            None if name.contains("latent") || name.contains("sample") => LatentChoice::Direct,
            None => {
                let text = format!(
                    "the name of output {:?} does not show whether it holds latents or their moments",
                    output.name
                );
                return Err(Error::usage(text).in_file(&path).hint("set --latents to mean, drawn or direct"));
            }
        };
        let batch = input.dims[0].and_then(|size| usize::try_from(size).ok()).unwrap_or(options.batch).max(1);
        let scale = scale(&path, options.scaling_factor)?;
        Ok(Self { session, input, choice, scale, seed: options.seed, batch, path })
    }

    pub(super) fn choice(&self) -> LatentChoice {
        self.choice
    }

    pub(super) fn shift_factor(&self) -> f64 {
        self.scale.0
    }

    pub(super) fn scaling_factor(&self) -> f64 {
        self.scale.1
    }

    /// Describes everything that affects the values, except the file.
    pub(super) fn described(&self) -> String {
        let seed = if self.choice == LatentChoice::Drawn { self.seed } else { 0 };
        format!("{:?} {:?} {seed}", self.choice, self.scale)
    }

    /// Returns a note about how latents are computed.
    pub(super) fn note(&self) -> String {
        let what = match self.choice {
            LatentChoice::Mean => "means of the latent distributions",
            LatentChoice::Drawn => "latents sampled from their distributions",
            LatentChoice::Direct => "latents as the encoder returns them",
        };
        let (shift, factor) = self.scale;
        let shift = if shift == 0.0 { String::new() } else { format!(" minus {shift}") };
        format!("{what}{shift}, times {factor}")
    }

    /// Encodes images `[images, 3, height, width]` with these numbers. Returns one array per run.
    ///
    /// # Errors
    /// Fails if the encoder fails, or if its output does not have the expected form.
    pub(super) fn encode(&mut self, images: &Array, numbers: &[usize]) -> Result<Vec<Array>, Error> {
        let mut all = Vec::new();
        for (run, chunk) in numbers.chunks(self.batch).enumerate() {
            // A fixed batch is filled with copies of the last image.
            let fixed = self.input.dims[0].is_some();
            let wanted = if fixed { self.batch } else { chunk.len() };
            let rows: Vec<usize> = (0..wanted).map(|row| run * self.batch + row.min(chunk.len() - 1)).collect();
            let input = images.rows(&rows).cast(self.input.element_type);
            let outputs = self.session.run(&[(self.input.name.clone(), input)]);
            let outputs = outputs.map_err(|error| Error::from(error).in_file(&self.path))?;
            let Some((name, output)) = outputs.into_iter().next() else { continue };
            let output = output.rows(&(0..chunk.len()).collect::<Vec<_>>()).cast(ElementType::F32);
            all.push(
                self.latents(&output, chunk)
                    .map_err(|text| Error::unmet(format!("output {name:?}: {text}")).in_file(&self.path))?,
            );
        }
        Ok(all)
    }

    /// Computes the latents of the images with these numbers from an output.
    fn latents(&self, output: &Array, numbers: &[usize]) -> Result<Array, String> {
        let (ArrayData::F32(values), &[count, channels, height, width]) = (&output.data, output.dims.as_slice()) else {
            return Err(format!("expected [batch, channels, height, width], found {:?}", output.dims));
        };
        if count != numbers.len() {
            return Err(format!("expected latents of {} images, found {:?}", numbers.len(), output.dims));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err("expected finite latents, found NaN or infinite values".to_owned());
        }
        let (shift, factor) = self.scale;
        let scaled = |value: f32| ((f64::from(value) - shift) * factor) as f32;
        if self.choice == LatentChoice::Direct {
            let data = ArrayData::F32(values.iter().map(|value| scaled(*value)).collect());
            return Ok(Array { dims: output.dims.clone(), data });
        }
        if channels % 2 != 0 {
            return Err(format!("expected an even number of channels for moments, found {:?}", output.dims));
        }
        let length = channels / 2 * height * width;
        let mut latents = Vec::with_capacity(count * length);
        for (row, number) in values.chunks_exact((2 * length).max(1)).zip(numbers) {
            let (means, log_variances) = row.split_at(length);
            if self.choice == LatentChoice::Mean {
                latents.extend(means.iter().map(|mean| scaled(*mean)));
                continue;
            }
            let mut random = Pcg64::seed_from_u64(self.seed ^ (*number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (low, high) = LOG_VARIANCES;
            latents.extend(means.iter().zip(log_variances).map(|(mean, log_variance)| {
                let noise: f32 = random.sample(StandardNormal);
                scaled(mean + (0.5 * log_variance.clamp(low, high)).exp() * noise)
            }));
        }
        Ok(Array { dims: vec![count, channels / 2, height, width], data: ArrayData::F32(latents) })
    }
}

/// Returns shift and factor. The factor is the given one; otherwise both come from the configuration next to the
/// encoder, or are the usual ones.
fn scale(encoder: &Path, given: Option<f64>) -> Result<(f64, f64), Error> {
    let path = encoder.with_file_name("config.json");
    if !path.is_file() {
        return Ok((0.0, given.unwrap_or(USUAL_FACTOR)));
    }
    let config: Value = serde_json::from_str(&read_text(&path, MOST_CONFIG)?)
        .map_err(|error| Error::unreadable(&path, format!("not JSON: {error}")).caused_by(error))?;
    let number = |key: &str| config.get(key).and_then(Value::as_f64).filter(|number| number.is_finite());
    let factor = given.or_else(|| number("scaling_factor")).unwrap_or(USUAL_FACTOR);
    Ok((number("shift_factor").unwrap_or(0.0), factor))
}

/// Concatenates arrays along their first axis; `None` if there are none.
pub(super) fn joined(arrays: Vec<Array>) -> Option<Array> {
    let mut dims = arrays.first()?.dims.clone();
    let mut values = Vec::new();
    let mut rows = 0;
    for array in arrays {
        rows += array.dims.first().copied().unwrap_or(0);
        if let ArrayData::F32(of_array) = array.data {
            values.extend(of_array);
        }
    }
    *dims.first_mut()? = rows;
    Array::new(dims, ArrayData::F32(values)).ok()
}
