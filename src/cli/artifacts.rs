//! Writes the artifacts of a training session.

use serde_json::json;

use super::args::ArtifactsArgs;
use super::config::{check_sizes, parse_sizes, pattern};
use super::printer::{Printer, human};
use crate::error::Error;
use crate::graph::sizes::sizes_for;
use crate::load::load;
use crate::pipeline::analyse;
use crate::training::{Artifacts, TrainingOptions, trained_weights};

pub(super) fn run(args: &ArtifactsArgs, printer: &Printer) -> Result<bool, Error> {
    let given = parse_sizes(&args.size)?;
    let patterns: Vec<_> = args.train.iter().map(|text| pattern("--train", text)).collect::<Result<_, _>>()?;
    let progress = printer.progress(4);
    progress.step("reading");
    let model = load(&args.input)?;
    progress.step("coupling channels");
    let analysis = analyse(&model)?;
    let sizes = sizes_for(&analysis.facts, &given);
    check_sizes(&given, &sizes, &args.input)?;
    progress.step("differentiating");
    let options = TrainingOptions {
        sizes,
        prediction: args.prediction.clone(),
        channels: args.channels,
        trained: trained_weights(&analysis, &patterns)?,
        gives_gradients: false,
    };
    let artifacts = Artifacts::build(&analysis, &options)?;
    progress.step("writing");
    let files = artifacts.write(&analysis, &args.output)?;
    drop(progress);
    artifacts.warnings.iter().for_each(|warning| printer.warning(warning));
    let names: Vec<&str> = artifacts.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let elements = artifacts.trained_elements();
    let json = json!({
        "files": files,
        "inputs": artifacts.inputs,
        "target_shape": artifacts.target_shape,
        "trained": names,
        "trained_elements": elements,
    });
    printer.result(&json, || {
        let mut out = format!("{} weights are trained, {} elements\n", names.len(), human(elements as f64));
        out += &format!("inputs of a step: {}; target {:?}\n", artifacts.inputs.join(", "), artifacts.target_shape);
        files.iter().for_each(|file| out += &format!("wrote {}\n", file.display()));
        out
    });
    Ok(true)
}
