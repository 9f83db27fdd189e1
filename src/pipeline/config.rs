//! What the `config.json` of a component says.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::files::read_text;

/// Bytes of a configuration, at most.
pub(super) const MOST_BYTES: u64 = 1 << 24;

/// The parts of a component's configuration that matter here, by diffusers' and transformers' names. A key that is not there,
/// or holds something else than these keys do, is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ComponentConfig {
    /// `_class_name` of diffusers, such as `UNet2DConditionModel`.
    pub class: Option<String>,
    /// Height and width of a sample.
    pub sample_size: Option<(usize, usize)>,
    /// Channels of the input.
    pub in_channels: Option<usize>,
    /// Channels of the output.
    pub out_channels: Option<usize>,
    /// Channels of a VAE's latents.
    pub latent_channels: Option<usize>,
    /// The number of resolutions of a U-Net or VAE.
    pub levels: Option<usize>,
    /// What a VAE's latents are multiplied by before they are given to the denoiser.
    pub scaling_factor: Option<f64>,
    /// What is subtracted before that.
    pub shift_factor: Option<f64>,
    /// Tokens of a text encoder, at most.
    pub most_tokens: Option<usize>,
}

/// A number, or one for each of two axes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    One(usize),
    Two(usize, usize),
}

impl ComponentConfig {
    /// # Errors
    /// The file can't be read, or is no JSON object.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let config = object(path)?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let count = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let size = config.get("sample_size").and_then(|size| Size::deserialize(size).ok());
        let size = size.map(|size| match size {
            Size::One(size) => (size, size),
            Size::Two(height, width) => (height, width),
        });
        Ok(Self {
            class: text("_class_name"),
            sample_size: size.filter(|(height, width)| *height > 0 && *width > 0),
            in_channels: count("in_channels"),
            out_channels: count("out_channels"),
            latent_channels: count("latent_channels"),
            levels: config.get("block_out_channels").and_then(Value::as_array).map(Vec::len),
            scaling_factor: config.get("scaling_factor").and_then(Value::as_f64),
            shift_factor: config.get("shift_factor").and_then(Value::as_f64),
            most_tokens: count("max_position_embeddings"),
        })
    }

    /// Pixels along an edge of the image that one latent of this VAE stands for: every resolution but the first halves.
    pub fn scale(&self) -> Option<usize> {
        let levels = u32::try_from(self.levels?.checked_sub(1)?).ok()?;
        2_usize.checked_pow(levels)
    }
}

/// A file that holds a JSON object.
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
