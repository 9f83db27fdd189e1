//! The folder of a bundle: which files may be replaced, which are taken over, and the engine that is built in it.

use std::path::{Path, PathBuf};

use super::super::model::Model;
use super::super::progress::{Progress, Stage, Watch, notify};
use super::{DeployOptions, EngineOptions};
use crate::deploy::engine::command;
use crate::deploy::{Engine, EngineBuilder, EngineRequest, Profile};
use crate::error::Error;
use crate::files::OutputFolder;
use crate::graph::digest::DigestKind;
use crate::load;
use crate::pipeline::bundle::{self, TIMING_CACHE};

/// Maximum number of file names in a message.
const SHOWN: usize = 4;

/// Refuses a folder with files that belong to no earlier bundle, since they would be lost.
pub(super) fn refuse_foreign(folder: &Path) -> Result<(), Error> {
    let Ok(entries) = folder.read_dir() else { return Ok(()) };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let foreign = names.filter(|name| !bundle::is_own(folder, name));
    let mut foreign: Vec<String> = foreign.map(|name| name.to_string_lossy().into_owned()).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    foreign.sort();
    let more = foreign.len().saturating_sub(SHOWN);
    foreign.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let what = if bundle::listed(folder).is_some() {
        "an earlier bundle with additional files"
    } else {
        "a folder that is not a bundle"
    };
    Err(Error::usage(format!(
        "expected an empty folder or an earlier bundle, found {what}: {}{more}",
        foreign.join(", ")
    ))
    .in_file(folder)
    .hint("choose another folder, or move these files away: a bundle is replaced as a whole"))
}

/// Refuses a network that is inside the folder that would be replaced.
pub(super) fn refuse_input_inside(model: &Model, folder: &Path) -> Result<(), Error> {
    let Ok(whole) = folder.canonicalize() else { return Ok(()) };
    let is_inside = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file.starts_with(&whole));
    match model.0.files().iter().find(|file| is_inside(file)) {
        None => Ok(()),
        Some(file) => Err(Error::usage(format!("the output folder contains the input, {}", file.display()))
            .in_file(folder)
            .hint("choose another folder: a bundle is replaced as a whole")),
    }
}

/// Copies the timing cache of an earlier bundle into a new one.
pub(super) fn keep_timing_cache(output: &OutputFolder, folder: &Path) -> Result<(), Error> {
    let cache = folder.join(TIMING_CACHE);
    match cache.is_file() {
        true => output.copy(&cache, Path::new(TIMING_CACHE)),
        false => Ok(()),
    }
}

impl EngineOptions {
    /// Finds the program that builds the engine.
    ///
    /// # Errors
    /// Fails if there is none. The hint then has the command to run on a machine that has one.
    pub(super) fn find(&self, options: &DeployOptions, profile: &Profile) -> Result<EngineBuilder, Error> {
        let by_hand = || command(options.target, &options.name, profile, &self.capabilities);
        EngineBuilder::find(options.target, self.python.as_deref()).map_err(|error| match error.kind() {
            crate::error::ErrorKind::Unmet => error.hint(format!(
                "omit --engine, and build the engine in the bundle on a machine that has the program: {}",
                by_hand()
            )),
            _ => error,
        })
    }
}

/// Builds the engine of the network in a folder.
pub(super) fn engine(
    builder: &EngineBuilder,
    (folder, options): (&Path, &DeployOptions),
    profile: &Profile,
    watch: &mut Watch<'_>,
) -> Result<Engine, Error> {
    let digest = load::load(&folder.join(&options.name))?.digest(DigestKind::default());
    let capabilities = options.engine.as_ref().map(|engine| engine.capabilities.as_slice()).unwrap_or_default();
    let request = EngineRequest { folder, model: &options.name, digest: &digest, profile, capabilities };
    builder.build(&request, &mut |done, total| notify(watch, Progress::At { stage: Stage::Building, done, total }))
}
