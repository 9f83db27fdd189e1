//! The `config.json` of a component.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::files::read_text;

/// Maximum size of a configuration in bytes.
pub(super) const MOST_BYTES: u64 = 1 << 24;

/// Maximum number of pixels or latents along an edge of a sample: more than any network supports.
const MOST_PIXELS: usize = 1 << 16;

/// The keys of a component's configuration that are used here, by diffusers' and transformers' names. `None`: the key
/// is missing or its value has another type.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ComponentConfig {
    /// `_class_name` of diffusers, such as `UNet2DConditionModel`.
    pub class: Option<String>,
    /// Height and width of a sample.
    pub sample_size: Option<(usize, usize)>,
    /// An invalid sample size: a number below 1, or larger than any network supports.
    pub invalid_sample_size: Option<String>,
    /// Channels of the input.
    pub in_channels: Option<usize>,
    /// Channels of the output.
    pub out_channels: Option<usize>,
    /// Channels of a VAE's latents.
    pub latent_channels: Option<usize>,
    /// The number of resolutions of a U-Net or VAE.
    pub levels: Option<usize>,
    /// The factor that a VAE's latents are multiplied by before the denoiser takes them as input.
    pub scaling_factor: Option<f64>,
    /// The number that is subtracted before that.
    pub shift_factor: Option<f64>,
    /// Maximum number of tokens of a text encoder.
    pub most_tokens: Option<usize>,
}

/// A number, or two numbers for two axes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    One(f64),
    Two(f64, f64),
}

impl ComponentConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// The file can't be read, or is not a JSON object.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let config = object(path)?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let count = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let given = config.get("sample_size");
        let size = given.and_then(|size| Size::deserialize(size).ok()).map(|size| match size {
            Size::One(size) => (size, size),
            Size::Two(height, width) => (height, width),
        });
        let is_edge = |edge: f64| (1.0..=MOST_PIXELS as f64).contains(&edge);
        let is_odd = size.is_some_and(|(height, width)| !is_edge(height) || !is_edge(width));
        let whole = |edge: f64| (edge.fract() == 0.0).then_some(edge as usize);
        let sample_size = size.filter(|_| !is_odd).and_then(|(height, width)| Some((whole(height)?, whole(width)?)));
        Ok(Self {
            class: text("_class_name"),
            sample_size,
            invalid_sample_size: given.filter(|_| is_odd).map(Value::to_string),
            in_channels: count("in_channels"),
            out_channels: count("out_channels"),
            latent_channels: count("latent_channels"),
            levels: config.get("block_out_channels").and_then(Value::as_array).map(Vec::len),
            scaling_factor: config.get("scaling_factor").and_then(Value::as_f64),
            shift_factor: config.get("shift_factor").and_then(Value::as_f64),
            most_tokens: count("max_position_embeddings"),
        })
    }

    /// Returns the number of pixels per latent of this VAE along an edge: every resolution after the first halves the
    /// edge.
    pub fn scale(&self) -> Option<usize> {
        let levels = u32::try_from(self.levels?.checked_sub(1)?).ok()?;
        2_usize.checked_pow(levels)
    }
}

/// Reads a file that holds a JSON object.
///
/// # Errors
/// The file can't be read, or holds something else.
pub(super) fn object(path: &Path) -> Result<serde_json::Map<String, Value>, Error> {
    let text = read_text(path, MOST_BYTES)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::unreadable(path, "expected a JSON object, found another value")),
        Err(error) => Err(Error::unreadable(path, format!("not JSON: {error}")).caused_by(error)),
    }
}
