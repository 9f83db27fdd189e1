//! Components: folders of a pipeline that have a network.

use std::path::{Path, PathBuf};

use super::config::ComponentConfig;
use crate::error::Error;

/// The role of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The denoiser: a U-Net or a transformer.
    Denoiser,
    /// Decodes latents to images.
    VaeDecoder,
    /// Encodes images to latents.
    VaeEncoder,
    /// Encodes captions to hidden states.
    TextEncoder,
    /// Anything else, such as a safety checker or a ControlNet.
    Other,
}

impl Part {
    /// Returns the role of a component by its name.
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

/// Returns a name without the suffix that TensorRT's demo adds to optimised networks.
fn plain(name: &str) -> &str {
    name.strip_suffix(".opt").unwrap_or(name)
}

/// Returns whether a denoiser is a further one, such as `transformer_2`.
pub(super) fn is_second(name: &str) -> bool {
    plain(name).ends_with(|c: char| c.is_ascii_digit())
}

/// A folder of a pipeline with a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// The name of the folder.
    pub name: String,
    /// The role.
    pub part: Part,
    /// The folder.
    pub folder: PathBuf,
    /// The network.
    pub model: PathBuf,
    /// Its `config.json`, if it has one.
    pub config_path: Option<PathBuf>,
    /// The content of that file.
    pub config: ComponentConfig,
}

impl Component {
    /// Reads a component and its configuration.
    ///
    /// # Errors
    /// The `config.json` can't be read.
    pub(super) fn read(name: &str, folder: &Path, model: PathBuf) -> Result<Self, Error> {
        // Networks in subfolders have the configuration next to them, or in the component's folder.
        let beside = crate::files::parent(&model).join("config.json");
        let config_path = [beside, folder.join("config.json")].into_iter().find(|file| file.is_file());
        let config = config_path.as_deref().map(ComponentConfig::read).transpose()?.unwrap_or_default();
        let (part, folder) = (Part::of(name), folder.to_owned());
        Ok(Self { name: name.to_owned(), part, folder, model, config_path, config })
    }
}

/// The networks found in a folder.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    None,
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// Maximum depth of subfolders that are searched: AMD compiles networks into `dd` and `dynamic/dd`.
const DEPTH: usize = 2;

/// Finds the network in the folder of a component: `model.onnx`, `model_optimized.onnx` (TensorRT's demo), the
/// component's name (AMD), else the only .onnx file.
///
/// # Errors
/// A folder can't be read.
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
