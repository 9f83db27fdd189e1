//! The main command on the folder of a pipeline: prunes some of its networks and copies everything else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_diffprune::pipelines::{Component, Part, Pipeline, PipelineOutput, WrittenPipeline};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Error, Model, Sizes};
use serde_json::{Map, Value, json};

use super::args::{Cli, PruneArgs};
use super::config::{check_ratio, parse_sizes};
use super::printer::Printer;
use super::{open_runtime, prune};

/// The final paths of files that are prepared in a hidden folder.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// The final path of the pruned network.
    pub(super) output: PathBuf,
    /// The path that checkpoints are named after.
    pub(super) base: PathBuf,
    /// The final path of the report. `None`: no report is written.
    pub(super) report: Option<PathBuf>,
}

impl PruneArgs {
    /// Returns the final path of the report.
    pub(super) fn shown_report(&self) -> Option<PathBuf> {
        self.placed.as_ref().map_or_else(|| self.report.clone(), |placed| placed.report.clone())
    }

    /// Returns the final path of the output.
    pub(super) fn shown_output(&self) -> Option<&Path> {
        self.placed.as_ref().map(|placed| placed.output.as_path()).or(self.output.as_deref())
    }

    /// Returns the path that checkpoints are named after.
    pub(super) fn base(&self) -> Option<&Path> {
        self.placed.as_ref().map(|placed| placed.base.as_path()).or(self.output.as_deref())
    }
}

/// A component to prune. `ratio` is the ratio that is given for it alone, if any.
struct Chosen<'p> {
    component: &'p Component,
    ratio: Option<f64>,
}

/// Prunes the components of a pipeline one after another, in a hidden folder that is moved to its final path at the
/// end.
pub(super) fn run(
    args: &PruneArgs,
    config: Option<&Path>,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let input = args.input.as_deref().unwrap_or(Path::new("."));
    let pipeline = Pipeline::open(input)?;
    let given = args;
    let args = &args.with_usual_ratio();
    let chosen = chosen(&pipeline, args)?;
    if args.plan.is_some() {
        return Err(Error::usage(
            "--plan can't be used with a pipeline: the plan of every component is written beside its network, as \
             model.plan.json",
        ));
    }
    let components: Vec<&Component> = chosen.iter().map(|of| of.component).collect();
    if let Some(place) = args.output.as_deref().filter(|place| is_file_name(place)) {
        return Err(Error::usage(
            "expected a folder as the output, as the input is the folder of a pipeline; found the name of a file",
        )
        .in_file(place)
        .hint(format!(
            "give a folder for the pruned pipeline, or {} as the input to prune the denoiser alone",
            pipeline.denoiser().model.display()
        )));
    }
    check_sizes(&parse_sizes(&args.size)?, components.iter().map(|of| (of.name.as_str(), of.model.as_path())))?;
    let denoiser = pipeline.denoiser();
    if args.components.is_empty() && !components.iter().any(|component| component.name == denoiser.name) {
        printer.note(&format!("{} is copied without pruning: no --ratio is given for it", denoiser.name));
    }
    let mut output = match args.output.as_deref().filter(|_| !args.dry_run) {
        Some(place) => Some(PipelineOutput::beside(&pipeline, place, &components)?),
        None if args.dry_run => None,
        None => {
            return Err(
                Error::usage("no output is given").hint("give a folder for the pruned pipeline, or pass --dry-run")
            );
        }
    };
    let is_first = ranks.rank() == 0;
    if is_first {
        printer.note(&summary(given, &pipeline, &chosen));
    }
    let holding = printer.holding();
    let mut passed = true;
    for of in &chosen {
        if components.len() > 1 {
            printer.note(&format!("component {}", of.component.name));
        }
        let job = job(args, &pipeline, of, output.as_mut(), components.len() > 1);
        let job = adapted(job, args, &pipeline, of.component, cli, printer)?;
        let done = prune::job(&job, config, cli, ranks, &holding);
        match (done, output.take()) {
            (Ok(done), taken) => (passed, output) = (passed && done, taken),
            (Err(error), None) => return Err(error),
            (Err(error), Some(output)) => {
                // Messages show final paths: users do not know the hidden folder.
                let error = error.with_final_paths(output.roots());
                output.publish_beside()?;
                return Err(error);
            }
        }
    }
    if let (Some(output), true, true) = (&output, is_first, passed)
        && let Some(missing) = components.iter().find(|component| !output.staged(&component.model).is_file())
    {
        let text = format!("{} was not written: all of its rounds were completed by an earlier run", missing.name);
        return Err(Error::unmet(text).hint("leave out --resume"));
    }
    let written = match output {
        Some(output) if is_first && passed => {
            let progress = printer.progress(1);
            progress.step("copying");
            printer.go_on()?;
            Some(output.publish()?)
        }
        _ => None,
    };
    if !is_first {
        return Ok(passed);
    }
    let shown = Shown { pipeline: &pipeline, args, chosen: &chosen, written: written.as_ref() };
    let results = holding.held();
    if let Some(written) = &written {
        for file in &written.unchanged_weights {
            let text =
                format!("{}: copied unchanged, so it holds the weights of the network before the cut", file.display());
            printer.warning(&text);
        }
    }
    let json = shown.json(results.iter().map(|(json, _)| json.clone()));
    printer.result(&json, || shown.text(results.iter().map(|(_, text)| text.as_str())));
    Ok(passed)
}

/// Default share of the channels to remove.
const USUAL_RATIO: f64 = 0.3;

impl PruneArgs {
    /// Returns the same arguments, with the default ratio if no pruning target is given.
    fn with_usual_ratio(&self) -> Self {
        let has_target = self.ratio.is_some()
            || self.target_macs.is_some()
            || self.target_params.is_some()
            || !self.component_ratio.is_empty()
            || !self.ratio_for.is_empty();
        Self { ratio: if has_target { self.ratio } else { Some(USUAL_RATIO) }, ..self.clone() }
    }
}

/// Describes the run: which components are pruned and by how much, which are copied, and what data is used.
fn summary(given: &PruneArgs, pipeline: &Pipeline, chosen: &[Chosen<'_>]) -> String {
    let much = |of: &Chosen<'_>| match (of.ratio, given.ratio, given.target_macs, given.target_params) {
        (Some(ratio), ..) => format!("at ratio {ratio} (--component-ratio)"),
        (None, Some(ratio), ..) => format!("at ratio {ratio} (--ratio)"),
        (None, None, Some(share), _) => format!("to {share} of its MACs (--target-macs)"),
        (None, None, None, Some(share)) => format!("to {share} of its parameters (--target-params)"),
        _ if given.ratio_for.is_empty() => format!("at ratio {USUAL_RATIO} (no --ratio is given)"),
        _ => "by --ratio-for".to_owned(),
    };
    let cut: Vec<String> = chosen.iter().map(|of| format!("{} is pruned {}", of.component.name, much(of))).collect();
    let is_cut = |name: &str| chosen.iter().any(|of| of.component.name == name);
    let names = pipeline.components.iter().map(|component| component.name.as_str());
    let copied: Vec<&str> = names.filter(|name| !is_cut(name)).collect();
    let copied = match copied.as_slice() {
        [] => String::new(),
        names => format!("; copied: {}", names.join(", ")),
    };
    let needs_data = given.criterion.unwrap_or_default().needs_gradients() || given.refit;
    let data = match (&given.data.data, needs_data) {
        (Some(path), _) => format!("{} (--data)", path.display()),
        (None, true) => "none is given (--data, --prompts): the networks generate their own samples".to_owned(),
        (None, false) => "none is needed".to_owned(),
    };
    format!("components:   {}{copied}\ndata:         {data}", cut.join(", "))
}

/// Returns the components to prune: those in --components, else those with a --component-ratio, else the denoiser.
fn chosen<'p>(pipeline: &'p Pipeline, args: &PruneArgs) -> Result<Vec<Chosen<'p>>, Error> {
    let mut ratios: Vec<(&str, f64)> = Vec::new();
    for text in &args.component_ratio {
        let form = || Error::usage(format!("--component-ratio: expected COMPONENT=R, found {text:?}"));
        let (name, ratio) = text.rsplit_once('=').ok_or_else(form)?;
        let ratio = ratio.trim().parse().map_err(|_| form())?;
        ratios.push((name.trim(), check_ratio("--component-ratio", ratio)?));
    }
    let has_target = args.ratio.is_some() || args.target_macs.is_some() || args.target_params.is_some();
    let denoiser = pipeline.denoiser().name.as_str();
    let mut names: Vec<&str> = args.components.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    if names.is_empty() && !args.components.is_empty() {
        let known: Vec<&str> = pipeline.components.iter().map(|component| component.name.as_str()).collect();
        return Err(Error::usage("--components: expected names with commas between them, found none")
            .hint(format!("the components with a network are {}", known.join(", "))));
    }
    if names.is_empty() {
        names.extend(Some(denoiser).filter(|_| has_target || ratios.is_empty()));
        names.extend(ratios.iter().map(|(name, _)| *name));
    } else if let Some((name, _)) = ratios.iter().find(|(name, _)| !names.contains(name)) {
        let text = format!("--component-ratio: {name} is not in --components {}", names.join(","));
        return Err(Error::usage(text));
    }
    let mut chosen: Vec<Chosen<'p>> = Vec::new();
    for name in names {
        let component = pipeline.component(name)?;
        if chosen.iter().any(|of| of.component.name == component.name) {
            continue;
        }
        let ratio = ratios.iter().rev().find(|(of, _)| *of == name).map(|(_, ratio)| *ratio);
        chosen.push(Chosen { component, ratio });
    }
    Ok(chosen)
}

/// Whether a path that is not a folder ends with `.onnx`.
pub(super) fn is_file_name(place: &Path) -> bool {
    !place.is_dir() && place.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx"))
}

/// Refuses the size of a dimension that no network has. Each network uses the sizes of its own dimensions.
///
/// # Errors
/// An unknown dimension; a network that can't be read.
pub(super) fn check_sizes<'n>(given: &Sizes, networks: impl Iterator<Item = (&'n str, &'n Path)>) -> Result<(), Error> {
    let (mut known, mut names) = (BTreeSet::new(), Vec::new());
    if given.is_empty() {
        return Ok(());
    }
    for (name, model) in networks {
        known.extend(Model::open(model)?.analyse()?.sizes(&Sizes::new())?.into_keys());
        names.push(name);
    }
    let Some(name) = given.keys().find(|name| !known.contains(*name)) else { return Ok(()) };
    // Generated names begin with a question mark.
    let known: Vec<&str> = known.iter().map(String::as_str).filter(|name| !name.starts_with('?')).collect();
    let text = format!("--size: no symbolic dimension {name:?} in {}", names.join(" or "));
    Err(Error::usage(text).hint(format!("the symbolic dimensions are {}", known.join(", "))))
}

/// Adapts the arguments to a component that does not denoise.
fn adapted(
    job: PruneArgs,
    args: &PruneArgs,
    pipeline: &Pipeline,
    component: &Component,
    cli: &Cli,
    printer: &Printer,
) -> Result<PruneArgs, Error> {
    if component.part == Part::Denoiser {
        return Ok(job);
    }
    let criterion = job.criterion.unwrap_or_default();
    let mut job = match component.part {
        Part::VaeDecoder => job.for_decoder(pipeline, component, || open_runtime(cli), printer)?,
        _ if criterion.needs_gradients() || args.refit => {
            let text = format!(
                "{}: this component has no loss to compute gradients of; expected the denoiser or vae_decoder",
                component.name
            );
            return Err(Error::usage(text)
                .in_file(&component.model)
                .hint("use --criterion magnitude, and leave out --refit"));
        }
        _ => PruneArgs { no_refit: true, data: Default::default(), ..job },
    };
    if job.rounds.is_some() || job.finetune_steps.is_some() {
        let text = format!("{}: only the denoiser is pruned in rounds or trained", component.name);
        return Err(Error::usage(text)
            .hint("prune the other components in a separate run, without --rounds and --finetune-steps"));
    }
    // Inputs and prompts are for the denoiser.
    (job.inputs, job.diffusion.prompts) = (None, None);
    Ok(job)
}

/// Returns the arguments for one component.
fn job(
    args: &PruneArgs,
    pipeline: &Pipeline,
    of: &Chosen<'_>,
    output: Option<&mut PipelineOutput>,
    is_one_of_several: bool,
) -> PruneArgs {
    let (component, model) = (of.component, &of.component.model);
    let mut job =
        PruneArgs { input: Some(model.clone()), output: None, is_component: is_one_of_several, ..args.clone() };
    if of.ratio.is_some() {
        (job.ratio, job.target_macs, job.target_params) = (of.ratio, None, None);
    }
    let of_component = |path: &Path| match is_one_of_several && component.name != pipeline.denoiser().name {
        true => with_name(path, &component.name),
        false => path.to_owned(),
    };
    let Some(output) = output else { return job };
    let place = args.output.clone().unwrap_or_default();
    job.output = Some(output.staged(model));
    let report = args.report.as_deref().map(of_component);
    job.report = report.as_deref().map(|report| output.room_for(report));
    let base = base_beside(&place, &component.name);
    job.placed = Some(Placed { output: output.place_of(model), base, report });
    job
}

/// Inserts a component into a file name: `report.html` becomes `report.vae_decoder.html`.
fn with_name(path: &Path, name: &str) -> PathBuf {
    let extension = path.extension().map_or_else(String::new, |kind| format!(".{}", kind.to_string_lossy()));
    path.with_extension(format!("{name}{extension}"))
}

/// Returns the path that checkpoints of a component are named after: beside the output folder, which does not exist
/// yet.
pub(super) fn base_beside(place: &Path, component: &str) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{component}.onnx"));
    place.with_file_name(name)
}

/// The result of a run, for printing.
struct Shown<'a> {
    pipeline: &'a Pipeline,
    args: &'a PruneArgs,
    chosen: &'a [Chosen<'a>],
    written: Option<&'a WrittenPipeline>,
}

impl Shown<'_> {
    fn json(&self, results: impl Iterator<Item = Value>) -> Value {
        let names = self.chosen.iter().map(|of| of.component.name.clone());
        json!({
            "input": self.args.input,
            "output": self.written.and(self.args.output.as_ref()),
            "class": self.pipeline.class,
            "components": names.zip(results).collect::<Map<String, Value>>(),
            "copied": self.written.map(|written| &written.copied),
            "unchanged_weights": self.written.map(|written| &written.unchanged_weights),
        })
    }

    fn text<'t>(&self, results: impl Iterator<Item = &'t str>) -> String {
        let mut parts: Vec<String> = results.map(str::to_owned).collect();
        if let (Some(written), Some(output)) = (self.written, &self.args.output) {
            let names: Vec<&str> = self.chosen.iter().map(|of| of.component.name.as_str()).collect();
            let (cut, copied) = (names.join(" and "), written.copied.len());
            parts.push(format!("wrote {}: {cut} pruned, {copied} files copied", output.display()));
        }
        parts.join("\n\n")
    }
}
