//! The pipeline that surrounds a network which is given alone.

use std::path::{Path, PathBuf};

use super::SCHEDULER;
use super::component::Part;
use super::config::ComponentConfig;
use crate::error::Error;
use crate::files::parent;

/// Number of parent folders of a network that are searched: that of the component, and the subfolders in which AMD and
/// TensorRT keep networks.
const MOST_ABOVE: usize = 4;

/// The pipeline that a network belongs to, as far as its path shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Around {
    /// The folder of the pipeline.
    pub folder: PathBuf,
    /// The name of the component that the network is.
    pub component: String,
    /// The scheduler of the pipeline, if the network may be its denoiser.
    pub scheduler: Option<PathBuf>,
    /// The `config.json` of the component: its path and content.
    pub config: Option<(PathBuf, ComponentConfig)>,
}

impl Around {
    /// Finds the pipeline around a network: a parent folder with a `model_index.json` or a scheduler configuration.
    ///
    /// # Errors
    /// A configuration can't be read.
    pub fn of(model: &Path) -> Result<Option<Self>, Error> {
        let Some(mut around) = Self::of_folder(parent(model)) else { return Ok(None) };
        // The configuration next to the network, or that of the component.
        let between = parent(model).ancestors().take_while(|folder| **folder != *around.folder);
        let config = between.map(|folder| folder.join("config.json")).find(|file| file.is_file());
        around.config = config.map(|file| ComponentConfig::read(&file).map(|config| (file, config))).transpose()?;
        Ok(Some(around))
    }

    /// Returns the surroundings of the denoiser of a pipeline.
    pub fn as_denoiser(pipeline: &super::Pipeline) -> Self {
        let denoiser = pipeline.denoiser();
        let config = denoiser.config_path.clone().map(|path| (path, denoiser.config.clone()));
        Self {
            folder: pipeline.folder.clone(),
            component: denoiser.name.clone(),
            scheduler: pipeline.scheduler.clone(),
            config,
        }
    }

    /// Finds the pipeline that contains a folder.
    pub(super) fn of_folder(folder: &Path) -> Option<Self> {
        // A relative path has parent folders, too.
        let whole = std::path::absolute(folder).ok()?;
        let is_pipeline = |folder: &Path| folder.join("model_index.json").is_file() || folder.join(SCHEDULER).is_file();
        let above = whole.ancestors().skip(1).take(MOST_ABOVE).find(|folder| is_pipeline(folder))?;
        let component = whole.strip_prefix(above).ok()?.components().next()?;
        let component = component.as_os_str().to_string_lossy().into_owned();
        // Keep the path as the user wrote it, if it includes that folder.
        let ups = whole.strip_prefix(above).ok()?.components().count();
        let written = folder.ancestors().nth(ups).filter(|path| !path.as_os_str().is_empty());
        let is_same = |path: &Path| std::path::absolute(path).is_ok_and(|path| path == above);
        let folder = written.filter(|path| is_same(path)).unwrap_or(above).to_owned();
        let mut around = Self { folder, component, scheduler: None, config: None };
        around.scheduler = Some(around.folder.join(SCHEDULER)).filter(|file| around.may_denoise() && file.is_file());
        Some(around)
    }

    /// Returns whether the network may be the denoiser.
    pub fn may_denoise(&self) -> bool {
        matches!(Part::of(&self.component), Part::Denoiser | Part::Other)
    }
}
