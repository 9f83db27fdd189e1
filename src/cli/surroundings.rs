//! What is taken of the pipeline that a network belongs to.

use std::path::{Path, PathBuf};

use onnx_diffprune::Error;
use onnx_diffprune::networks::UsualSizes;
use onnx_diffprune::pipelines::{Around, Pipeline};
use serde_json::{Value, json};

use super::diffusion_args::DiffusionArgs;
use super::printer::Printer;

/// The network that a path stands for: a file itself, of a pipeline's folder the denoiser.
///
/// # Errors
/// A folder that is no pipeline.
pub(super) fn network_of(path: &Path) -> Result<PathBuf, Error> {
    match Pipeline::is_meant(path) {
        true => Ok(Pipeline::open(path)?.denoiser().model.clone()),
        false => Ok(path.to_owned()),
    }
}

/// The arguments with what stands around a network, which its pipeline says and the user does not.
pub(super) struct Surroundings {
    pub(super) diffusion: DiffusionArgs,
    /// What was taken from where, one line each.
    lines: Vec<String>,
    /// The same for machines; null where there is no pipeline.
    pub(super) json: Value,
}

impl Surroundings {
    /// None.
    pub(super) fn none(diffusion: &DiffusionArgs) -> Self {
        Self { diffusion: diffusion.clone(), lines: Vec::new(), json: Value::Null }
    }

    /// Looks around the network in a file. The scheduler is told of where something `denoises`.
    ///
    /// # Errors
    /// A configuration that can't be read.
    pub(super) fn of(diffusion: &DiffusionArgs, network: &Path, denoises: bool) -> Result<Self, Error> {
        let mut found = Self::none(diffusion);
        let around = match &diffusion.pipeline {
            Some(folder) => Some(Around::as_denoiser(&Pipeline::open(folder)?)),
            None => Around::of(network)?,
        };
        let Some(around) = around else { return Ok(found) };
        let pipeline = Pipeline::open(&around.folder).ok();
        let class = pipeline.as_ref().and_then(|pipeline| pipeline.class.clone());
        let described = class.as_ref().map_or_else(String::new, |class| format!(" ({class})"));
        found.lines.push(format!("pipeline:     {}{described}, {}", around.folder.display(), around.component));
        let scheduler = around.scheduler.as_ref().filter(|_| denoises);
        let said = diffusion.said_of_schedule();
        match (scheduler, said) {
            (Some(path), None) => {
                found.diffusion.scheduler_config = Some(path.clone());
                found.lines.push(format!("scheduler:    {}", path.display()));
            }
            (Some(path), Some(option)) => {
                found.lines.push(format!("scheduler:    {} is not used, {option} is given", path.display()));
            }
            (None, _) => {}
        }
        let sample = around.config.as_ref().and_then(|(path, config)| Some((path, config.sample_size?)));
        let tokens = pipeline.as_ref().and_then(Pipeline::most_tokens);
        found.diffusion.usual_sizes = UsualSizes { sample: sample.map(|(_, size)| size), tokens };
        let of_sample =
            sample.map(|(path, (height, width))| format!("samples {height}x{width} from {}", path.display()));
        let of_tokens = tokens.map(|tokens| format!("captions of {tokens} tokens"));
        let sizes: Vec<String> = of_sample.into_iter().chain(of_tokens).collect();
        if !sizes.is_empty() {
            found.lines.push(format!("usual sizes:  {}", sizes.join(", ")));
        }
        found.json = json!({
            "folder": around.folder,
            "component": around.component,
            "class": class,
            "scheduler_config": scheduler.filter(|_| said.is_none()),
            "config": around.config.as_ref().map(|(path, _)| path),
            "sample_size": sample.map(|(_, size)| size),
            "tokens": tokens,
        });
        Ok(found)
    }

    /// Says what was taken from where.
    pub(super) fn tell(&self, printer: &Printer) {
        if !self.lines.is_empty() {
            printer.note(&self.lines.join("\n"));
        }
    }
}
