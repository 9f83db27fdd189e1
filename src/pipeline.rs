//! Folders of pipelines: a denoiser with what stands around it, as exporters and loaders lay them out.
//!
//! A [`Pipeline`] is a folder with a network for each component: `unet/model.onnx` or `transformer/model.onnx`, the encoder
//! and the decoder of its images, text encoders, and beside them the scheduler and the tokenizers. [`Around`] is what
//! stands around a network that is given alone.

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

/// Where diffusers keeps the configuration of the scheduler.
const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Names of a folder that a message lists, at most.
const NAMES_SHOWN: usize = 12;

/// A pipeline in a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The folder, where a cache of the hub is given that of the snapshot.
    pub folder: PathBuf,
    /// The class that `model_index.json` names, such as `StableDiffusionPipeline`.
    pub class: Option<String>,
    /// The components that have a network, in the order of their names.
    pub components: Vec<Component>,
    /// The `scheduler_config.json`.
    pub scheduler: Option<PathBuf>,
    /// The folders of tokenizers with their names, `tokenizer` and `tokenizer_2`.
    pub tokenizers: Vec<(String, PathBuf)>,
    /// Folders in which several networks could be meant, with these.
    unclear: Vec<(String, Vec<PathBuf>)>,
    /// The place of the denoiser.
    denoiser: usize,
}

impl Pipeline {
    /// Reads the layout of a folder: that of diffusers and optimum, with or without `model_index.json`, that of Olive and of
    /// AMD, whose networks have other names, or a folder of the hub's cache.
    ///
    /// # Errors
    /// No folder, or one without a denoiser, or with several; a configuration that can't be read.
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

    /// Whether a path is to be taken for a pipeline and not for a network: it is a folder.
    pub fn is_meant(path: &Path) -> bool {
        path.is_dir()
    }

    /// The network that removes noise.
    pub fn denoiser(&self) -> &Component {
        &self.components[self.denoiser]
    }

    /// The component of this name.
    ///
    /// # Errors
    /// There is none, or it is not clear which of its files is the network.
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

    /// The component in whose folder a file lies.
    pub fn component_of(&self, file: &Path) -> Option<&Component> {
        self.components.iter().find(|component| file.starts_with(&component.folder))
    }

    /// The first component that is this part.
    pub fn part(&self, part: Part) -> Option<&Component> {
        self.components.iter().find(|component| component.part == part)
    }

    /// The text encoders with their tokenizers, in the order of their numbers. One without a tokenizer of its own is left out.
    pub fn text_encoders(&self) -> Vec<(&Component, &Path)> {
        let encoders = self.components.iter().filter(|component| component.part == Part::TextEncoder);
        let tokenizer = |component: &Component| {
            let name = component.name.replacen("text_encoder", "tokenizer", 1);
            self.tokenizers.iter().find(|(own, _)| *own == name).map(|(_, folder)| folder.as_path())
        };
        encoders.filter_map(|component| Some((component, tokenizer(component)?))).collect()
    }

    /// Tokens of a caption, where all tokenizers agree on how many there are.
    pub fn most_tokens(&self) -> Option<usize> {
        let mut lengths = self.tokenizers.iter().map(|(_, folder)| tokenizers::length(folder));
        let first = lengths.next()??;
        lengths.all(|length| length == Some(first)).then_some(first)
    }

    /// Pixels along an edge of the image that one latent along it stands for, by the VAE's configuration; 1 where there is no
    /// VAE.
    pub fn scale(&self) -> Option<usize> {
        let vae = [Part::VaeDecoder, Part::VaeEncoder].into_iter().find_map(|part| self.part(part));
        vae.map_or(Some(1), |vae| vae.config.scale())
    }
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let fail = |error: std::io::Error| Error::unreadable(folder, format!("can't be read: {error}")).caused_by(error);
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        // A name that is no text is none of a component.
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The place of the denoiser among the components.
fn denoiser(
    folder: &Path,
    index: &Option<Index>,
    (components, unclear): (&[Component], &[(String, Vec<PathBuf>)]),
    names: &[String],
) -> Result<usize, Error> {
    let is_denoiser = |name: &str| Part::of(name) == Part::Denoiser;
    let is_named = |name: &str| index.as_ref().is_none_or(|index| index.names(name));
    let mut found: Vec<usize> = (0..components.len()).filter(|at| is_denoiser(&components[*at].name)).collect();
    // What the index leaves out may lie there from before.
    if found.iter().any(|at| is_named(&components[*at].name)) {
        found.retain(|at| is_named(&components[*at].name));
    }
    // The second transformer of some pipelines takes over at low noise.
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
            Err(Error::usage(text).in_file(folder).hint("name its .onnx file instead of the folder"))
        }
    }
}

/// Says that a folder is no pipeline, what it holds, and what it takes to be one.
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
            format!("name the folder of the pipeline, {}, or the .onnx file in it", around.folder.display())
        }
        None if denoisers.into_iter().any(|name| is_torch(name)) => {
            "the networks are PyTorch's; export them first, for example by optimum-cli export onnx".to_owned()
        }
        None => "name a folder as optimum writes it, or the .onnx file of a network".to_owned(),
    };
    let text = format!("expected a pipeline with unet/model.onnx or transformer/model.onnx, found {found}");
    Error::usage(text).in_file(folder).hint(hint)
}

/// Says that several networks could be meant.
fn several(folder: &Path, models: &[PathBuf]) -> Error {
    let name = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).display().to_string();
    let names: Vec<String> = models.iter().map(name).collect();
    Error::usage(format!("expected model.onnx or a single .onnx file, found {}", names.join(", ")))
        .in_file(folder)
        .hint("name the .onnx file that is meant instead of the folder, or leave only that one")
}

#[cfg(test)]
mod tests;
