//! Settings that come from the pipeline that a network belongs to.

use std::path::{Path, PathBuf};

use onnx_diffprune::data::{Array, read_text};
use onnx_diffprune::networks::UsualSizes;
use onnx_diffprune::pipelines::{Around, Part, Pipeline};
use onnx_diffprune::{Error, Model, Runtime};
use serde_json::{Value, json};

use super::diffusion_args::DiffusionArgs;
use super::printer::Printer;

/// Returns the network that a path stands for: the file itself or, for the folder of a pipeline, its denoiser.
///
/// # Errors
/// The folder is no pipeline.
pub(super) fn network_of(path: &Path) -> Result<PathBuf, Error> {
    match Pipeline::is_meant(path) {
        true => Ok(Pipeline::open(path)?.denoiser().model.clone()),
        false => Ok(path.to_owned()),
    }
}

/// Whether a component takes only samples as input, without captions.
fn sample_is_all(around: &Around) -> bool {
    matches!(Part::of(&around.component), Part::VaeDecoder | Part::VaeEncoder)
}

/// Returns the usual height and width of the input of a component, with the configuration that they come from. The
/// configuration of a VAE describes images, but its decoder takes latents as the denoiser does.
fn usual_sample<'a>(around: &'a Around, pipeline: Option<&'a Pipeline>) -> Option<(&'a Path, (usize, usize))> {
    let of_denoiser = || {
        let denoiser = pipeline?.denoiser();
        Some((denoiser.config_path.as_deref()?, denoiser.config.sample_size?))
    };
    match Part::of(&around.component) {
        Part::VaeDecoder => of_denoiser(),
        Part::VaeEncoder => {
            let ((path, (height, width)), scale) = (of_denoiser()?, pipeline?.scale()?);
            Some((path, (height * scale, width * scale)))
        }
        _ => around.config.as_ref().and_then(|(path, config)| Some((path.as_path(), config.sample_size?))),
    }
}

/// The arguments, completed with settings from the pipeline of the network.
pub(super) struct Surroundings {
    pub(super) diffusion: DiffusionArgs,
    /// Where settings come from, one line each.
    lines: Vec<String>,
    /// Files of the pipeline that are missing or invalid.
    warnings: Vec<String>,
    /// The folder of the pipeline. `None`: the network belongs to no pipeline.
    folder: Option<PathBuf>,
    /// The same as JSON; null if there is no pipeline.
    pub(super) json: Value,
}

impl Surroundings {
    /// Returns the arguments unchanged, without a pipeline.
    pub(super) fn none(diffusion: &DiffusionArgs) -> Self {
        Self { diffusion: diffusion.clone(), lines: Vec::new(), warnings: Vec::new(), folder: None, json: Value::Null }
    }

    /// Searches for the pipeline of a network file. The scheduler is used and reported only if a stage `denoises`.
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
        let option = diffusion.schedule_option();
        match (scheduler, option) {
            (Some(path), None) => {
                found.diffusion.scheduler_config = Some(path.clone());
                found.lines.push(format!("scheduler:    {}", path.display()));
            }
            (Some(path), Some(option)) => {
                found.lines.push(format!("scheduler:    {} is not used, as {option} is given", path.display()));
            }
            (None, None) if denoises && pipeline.is_some() && around.may_denoise() => found.warnings.push(format!(
                "{} has no scheduler/scheduler_config.json, so the default noise schedule is used: give that of the \
                 training with --scheduler-config or --schedule",
                around.folder.display()
            )),
            (None, _) => {}
        }
        if let Some((path, size)) =
            around.config.as_ref().and_then(|(path, of)| Some((path, of.invalid_sample_size.as_ref()?)))
        {
            found.warnings.push(format!(
                "{}: sample_size {size} is not a valid sample size and is not used: give sizes with --size",
                path.display()
            ));
        }
        let sample = usual_sample(&around, pipeline.as_ref());
        let tokens = pipeline.as_ref().and_then(Pipeline::most_tokens).filter(|_| !sample_is_all(&around));
        found.diffusion.usual_sizes = UsualSizes { sample: sample.map(|(_, size)| size), tokens };
        let of_sample =
            sample.map(|(path, (height, width))| format!("samples {height}x{width} from {}", path.display()));
        let of_tokens = tokens.map(|tokens| format!("captions of {tokens} tokens"));
        let sizes: Vec<String> = of_sample.into_iter().chain(of_tokens).collect();
        if !sizes.is_empty() {
            found.lines.push(format!("usual sizes:  {}", sizes.join(", ")));
        }
        if let Some(prompts) = &diffusion.prompts {
            let encoders = pipeline.as_ref().map(Pipeline::text_encoders).unwrap_or_default();
            let names: Vec<&str> = encoders.iter().map(|(encoder, _)| encoder.name.as_str()).collect();
            let by = if names.is_empty() { "no text encoder".to_owned() } else { names.join(" and ") };
            found.lines.push(format!("prompts:      {}, encoded by {by}", prompts.display()));
        }
        found.folder = Some(around.folder.clone());
        found.json = json!({
            "folder": around.folder,
            "component": around.component,
            "class": class,
            "scheduler_config": scheduler.filter(|_| option.is_none()),
            "config": around.config.as_ref().map(|(path, _)| path),
            "sample_size": sample.map(|(_, size)| size),
            "tokens": tokens,
            "prompts": diffusion.prompts,
        });
        Ok(found)
    }

    /// Returns the arrays for the network's inputs: the given ones, and the prompts as the text encoders of the pipeline
    /// encode them.
    ///
    /// # Errors
    /// Files that can't be read, arrays that do not fit; prompts without a pipeline, or text encoders that fail.
    pub(super) fn inputs(
        &self,
        model: &Model,
        given: Option<&Path>,
        runtime: Option<&Runtime>,
    ) -> Result<Option<Vec<(String, Array)>>, Error> {
        let mut inputs = given.map(|path| model.read_inputs(path)).transpose()?;
        let (Some(path), Some(runtime)) = (&self.diffusion.prompts, runtime) else { return Ok(inputs) };
        let Some(folder) = &self.folder else {
            let text = "--prompts: the network belongs to no pipeline with text encoders for the prompts";
            return Err(Error::usage(text)
                .in_file(model.path())
                .hint("give the folder of the pipeline with --pipeline"));
        };
        let advice = "--prompts takes a UTF-8 text file with one prompt per line";
        let text = read_text(path).map_err(|error| error.hint(advice))?;
        let prompts: Vec<String> =
            text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        if prompts.is_empty() {
            return Err(Error::unreadable(path, "expected one prompt per line, found no prompt").hint(advice));
        }
        let encoded = model.encode_prompts(&Pipeline::open(folder)?, &prompts, runtime)?;
        let inputs = inputs.get_or_insert_default();
        for (name, array) in encoded {
            if !inputs.iter().any(|(own, _)| *own == name) {
                inputs.push((name, array));
            }
        }
        Ok(Some(std::mem::take(inputs)))
    }

    /// Prints where settings come from, and the warnings.
    pub(super) fn print(&self, printer: &Printer) {
        if !self.lines.is_empty() {
            printer.note(&self.lines.join("\n"));
        }
        self.warnings.iter().for_each(|warning| printer.warning(warning));
    }
}
