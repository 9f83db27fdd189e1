//! Pipeline folders: a denoiser and the other components of its pipeline, in the layouts of exporters and loaders.
//!
//! A [`Pipeline`] is a folder with a network for each component: `unet/model.onnx` or `transformer/model.onnx`, the VAE
//! encoder and decoder, and text encoders, together with the scheduler and the tokenizers. [`Around`] is the pipeline
//! that surrounds a network which is given alone.

mod around;

pub mod bundle;

mod component;

mod config;

mod hub;

mod index;

mod output;

mod tokenizers;

use std::path::{Path, PathBuf};

use crate::error::Error;

pub use around::Around;
pub use component::{Component, Part};
use component::{Found, network_of};
pub use config::ComponentConfig;
use index::Index;
pub use output::{PipelineOutput, WrittenPipeline};

/// The path of the scheduler configuration in diffusers' layout.
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Maximum number of names in a folder that a message lists.
const NAMES_SHOWN: usize = 12;

/// A pipeline in a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The folder. For a repository in the Hugging Face cache, that of the snapshot.
    pub folder: PathBuf,
    /// The class in `model_index.json`, such as `StableDiffusionPipeline`.
    pub class: Option<String>,
    /// The components that have a network, in the order of their names.
    pub components: Vec<Component>,
    /// The `scheduler_config.json`.
    pub scheduler: Option<PathBuf>,
    /// The folders of tokenizers with their names, `tokenizer` and `tokenizer_2`.
    pub tokenizers: Vec<(String, PathBuf)>,
    /// Folders with several networks of which none is clearly the component, and these networks.
    unclear: Vec<(String, Vec<PathBuf>)>,
    /// The index of the denoiser among the components.
    denoiser: usize,
}

impl Pipeline {
    /// Reads the layout of a folder. Supported are those of diffusers and optimum, with or without `model_index.json`,
    /// those of Olive and AMD, whose networks have other names, and a repository in the Hugging Face cache.
    ///
    /// # Errors
    /// The path is not a folder, the folder has no denoiser or several, or a configuration can't be read.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let folder = &hub::snapshot(folder)?;
        let index = Index::read(folder)?;
        let names = names(folder)?;
        let (mut components, mut unclear) = (Vec::new(), Vec::new());
        for name in names.iter().filter(|name| folder.join(name).is_dir()) {
            match network_of(&folder.join(name), name)? {
                Found::One(model) => components.push(Component::read(name, &folder.join(name), model)?),
                Found::Several(models) => unclear.push((name.clone(), models)),
                Found::None => {}
            }
        }
        let denoiser = denoiser(folder, &index, (&components, &unclear), &names)?;
        let scheduler = Some(folder.join(SCHEDULER)).filter(|file| file.is_file());
        let tokenizers = tokenizers::of(folder, &names);
        let class = index.and_then(|index| index.class);
        Ok(Self { folder: folder.clone(), class, components, scheduler, tokenizers, unclear, denoiser })
    }

    /// Returns whether a path means a pipeline instead of a network, that is, whether it is a folder.
    pub fn is_meant(path: &Path) -> bool {
        path.is_dir()
    }

    /// Returns the network that removes noise.
    pub fn denoiser(&self) -> &Component {
        &self.components[self.denoiser]
    }

    /// Returns the component of this name.
    ///
    /// # Errors
    /// There is none, or it is ambiguous which of its files is the network.
    pub fn component(&self, name: &str) -> Result<&Component, Error> {
        if let Some(component) = self.components.iter().find(|component| component.name == name) {
            return Ok(component);
        }
        if let Some((_, models)) = self.unclear.iter().find(|(unclear, _)| unclear == name) {
            return Err(several(&self.folder.join(name), models));
        }
        let names: Vec<&str> = self.components.iter().map(|component| component.name.as_str()).collect();
        let found = match self.folder.join(name).is_dir() {
            true => format!("a folder {name} without an .onnx file"),
            false => "no such folder".to_owned(),
        };
        Err(Error::usage(format!("expected a component {name:?} of the pipeline, found {found}"))
            .in_file(&self.folder)
            .hint(format!("its components with a network: {}", names.join(", "))))
    }

    /// Returns the component whose folder contains a file.
    pub fn component_of(&self, file: &Path) -> Option<&Component> {
        self.components.iter().find(|component| file.starts_with(&component.folder))
    }

    /// Returns the first component with this role.
    pub fn part(&self, part: Part) -> Option<&Component> {
        self.components.iter().find(|component| component.part == part)
    }

    /// Returns the text encoders with their tokenizers, in the order of their numbers. Encoders without a tokenizer are
    /// left out.
    pub fn text_encoders(&self) -> Vec<(&Component, &Path)> {
        let encoders = self.components.iter().filter(|component| component.part == Part::TextEncoder);
        let tokenizer = |component: &Component| {
            let name = component.name.replacen("text_encoder", "tokenizer", 1);
            self.tokenizers.iter().find(|(own, _)| *own == name).map(|(_, folder)| folder.as_path())
        };
        encoders.filter_map(|component| Some((component, tokenizer(component)?))).collect()
    }

    /// Returns the maximum number of tokens of a caption. `None` if it is unknown or the tokenizers disagree.
    pub fn most_tokens(&self) -> Option<usize> {
        let mut lengths = self.tokenizers.iter().map(|(_, folder)| tokenizers::length(folder));
        let first = lengths.next()??;
        lengths.all(|length| length == Some(first)).then_some(first)
    }

    /// Returns the number of pixels per latent along an edge, from the VAE's configuration. 1 if there is no VAE.
    pub fn scale(&self) -> Option<usize> {
        let vae = [Part::VaeDecoder, Part::VaeEncoder].into_iter().find_map(|part| self.part(part));
        vae.map_or(Some(1), |vae| vae.config.scale())
    }
}

/// Returns the names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let fail = |error: std::io::Error| Error::unreadable(folder, format!("can't be read: {error}")).caused_by(error);
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        // Names of components are valid Unicode.
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Returns the index of the denoiser among the components.
fn denoiser(
    folder: &Path,
    index: &Option<Index>,
    (components, unclear): (&[Component], &[(String, Vec<PathBuf>)]),
    names: &[String],
) -> Result<usize, Error> {
    let is_denoiser = |name: &str| Part::of(name) == Part::Denoiser;
    let is_named = |name: &str| index.as_ref().is_none_or(|index| index.names(name));
    let mut found: Vec<usize> = (0..components.len()).filter(|at| is_denoiser(&components[*at].name)).collect();
    // Prefer components in the index: others may be leftovers.
    if found.iter().any(|at| is_named(&components[*at].name)) {
        found.retain(|at| is_named(&components[*at].name));
    }
    // Some pipelines have a second transformer for low noise levels.
    if found.iter().any(|at| !component::is_second(&components[*at].name)) {
        found.retain(|at| !component::is_second(&components[*at].name));
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => match unclear.iter().find(|(name, _)| is_denoiser(name)) {
            Some((name, models)) => Err(several(&folder.join(name), models)),
            None => Err(no_denoiser(folder, names)),
        },
        several => {
            let names: Vec<&str> = several.iter().map(|at| components[*at].name.as_str()).collect();
            let text = format!("expected one denoiser in the pipeline, found {}", names.join(" and "));
            Err(Error::usage(text).in_file(folder).hint("give the .onnx file of one denoiser instead of the folder"))
        }
    }
}

/// Returns the error for a folder without a denoiser: what it holds, and what was expected.
fn no_denoiser(folder: &Path, names: &[String]) -> Error {
    let shown = names.len().min(NAMES_SHOWN);
    let more = names.len() - shown;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let found = if names.is_empty() { "nothing".to_owned() } else { names[..shown].join(", ") + &more };
    let is_torch = |name: &str| {
        let files = folder.join(name).read_dir().into_iter().flatten().flatten();
        let mut kinds = files.map(|file| file.path().extension().map(|kind| kind.to_ascii_lowercase()));
        kinds.any(|kind| kind.is_some_and(|kind| kind == "safetensors" || kind == "bin"))
    };
    let denoisers = names.iter().filter(|name| Part::of(name) == Part::Denoiser);
    let hint = match Around::of_folder(folder) {
        Some(around) => {
            format!("give the folder of the pipeline, {}, or the .onnx file in it", around.folder.display())
        }
        None if denoisers.into_iter().any(|name| is_torch(name)) => {
            "the networks are in PyTorch format: export them first, for example with optimum-cli export onnx".to_owned()
        }
        None => "give a folder as optimum exports it, or the .onnx file of a network".to_owned(),
    };
    let text = format!("expected a pipeline with unet/model.onnx or transformer/model.onnx, found {found}");
    Error::usage(text).in_file(folder).hint(hint)
}

/// Returns the error for a component folder with several networks.
fn several(folder: &Path, models: &[PathBuf]) -> Error {
    let name = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).display().to_string();
    let names: Vec<String> = models.iter().map(name).collect();
    Error::usage(format!("expected model.onnx or a single .onnx file, found {}", names.join(", ")))
        .in_file(folder)
        .hint("give the .onnx file instead of the folder, or remove the other .onnx files")
}

#[cfg(test)]
mod tests;
