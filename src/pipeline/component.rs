//! Components: folders of a pipeline that have a network.

use std::path::{Path, PathBuf};

use super::config::ComponentConfig;
use crate::error::Error;

/// What a component is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// Removes noise: a U-Net or a transformer.
    Denoiser,
    /// Makes images of latents.
    VaeDecoder,
    /// Makes latents of images.
    VaeEncoder,
    /// Makes states of captions.
    TextEncoder,
    /// Anything else: a safety checker, a ControlNet.
    Other,
}

impl Part {
    /// What a component is for by its name.
    pub fn of(name: &str) -> Self {
        let name = plain(name);
        let is = |stem: &str| {
            let rest = name.strip_prefix(stem);
            rest.is_some_and(|rest| rest.trim_start_matches('_').chars().all(|c| c.is_ascii_digit()))
        };
        match name {
            "vae_decoder" => Self::VaeDecoder,
            "vae_encoder" => Self::VaeEncoder,
            "unetxl" => Self::Denoiser,
            _ if is("unet") || is("transformer") => Self::Denoiser,
            _ if is("text_encoder") => Self::TextEncoder,
            _ => Self::Other,
        }
    }
}

/// A name without the ending that TensorRT's demonstration gives to optimised networks.
fn plain(name: &str) -> &str {
    name.strip_suffix(".opt").unwrap_or(name)
}

/// Whether a denoiser is one after the first, such as `transformer_2`.
pub(super) fn is_second(name: &str) -> bool {
    plain(name).ends_with(|c: char| c.is_ascii_digit())
}

/// A folder of a pipeline with a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// The name of the folder.
    pub name: String,
    /// What it is for.
    pub part: Part,
    /// The folder.
    pub folder: PathBuf,
    /// The network.
    pub model: PathBuf,
    /// Its `config.json`, if it has one.
    pub config_path: Option<PathBuf>,
    /// What that says.
    pub config: ComponentConfig,
}

impl Component {
    /// # Errors
    /// A `config.json` that can't be read.
    pub(super) fn read(name: &str, folder: &Path, model: PathBuf) -> Result<Self, Error> {
        // Networks in folders of their own keep theirs beside them, or above.
        let beside = crate::files::parent(&model).join("config.json");
        let config_path = [beside, folder.join("config.json")].into_iter().find(|file| file.is_file());
        let config = config_path.as_deref().map(ComponentConfig::read).transpose()?.unwrap_or_default();
        let (part, folder) = (Part::of(name), folder.to_owned());
        Ok(Self { name: name.to_owned(), part, folder, model, config_path, config })
    }
}

/// What was found in a folder.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    None,
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// Folders in a component's folder that are searched: AMD compiles networks into `dd` and `dynamic/dd`.
const DEPTH: usize = 2;

/// The network in the folder of a component: `model.onnx`, `model_optimized.onnx` as TensorRT's demonstration names it, the
/// component's own name as AMD does, else the only one.
///
/// # Errors
/// A folder that can't be read.
pub(super) fn network_of(folder: &Path, name: &str) -> Result<Found, Error> {
    let usual = ["model.onnx".to_owned(), "model_optimized.onnx".to_owned(), format!("{}.onnx", plain(name))];
    if let Some(file) = usual.iter().map(|file| folder.join(file)).find(|file| file.is_file()) {
        return Ok(Found::One(file));
    }
    let fail = |folder: &Path, error: std::io::Error| {
        Error::unreadable(folder, format!("can't be read: {error}"))
            .hint("check the permissions of the folder")
            .caused_by(error)
    };
    let mut folders = vec![folder.to_owned()];
    for _ in 0..=DEPTH {
        let mut models = Vec::new();
        let mut below = Vec::new();
        for folder in folders {
            let entries = folder.read_dir().map_err(|error| fail(&folder, error))?;
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let is_model = path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx"));
                match path.is_dir() {
                    true => below.push(path),
                    false if is_model && path.is_file() => models.push(path),
                    false => {}
                }
            }
        }
        match models.len() {
            0 => folders = below,
            1 => return Ok(models.pop().map_or(Found::None, Found::One)),
            _ => return Ok(Found::Several(models)),
        }
    }
    Ok(Found::None)
}
