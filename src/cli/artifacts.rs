//! The command `artifacts`: writes the artifacts of a training session.

use std::ops::ControlFlow;

use onnx_diffprune::artifacts::{ArtifactOptions, FILES};
use onnx_diffprune::{Error, Model, Progress};
use serde_json::json;

use super::args::{ArtifactsArgs, Cli};
use super::config::{parse_sizes, pattern};
use super::printer::{Printer, human};
use super::run_files;
use super::surroundings::network_of;

pub(super) fn run(args: &ArtifactsArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let options = ArtifactOptions {
        sizes: parse_sizes(&args.size)?,
        prediction: args.prediction.clone(),
        channels: args.channels,
        trained: args.train.iter().map(|text| pattern("--train", text)).collect::<Result<_, _>>()?,
    };
    let progress = printer.progress(4);
    progress.step("reading");
    let model = Model::open(network_of(&args.input)?)?;
    progress.pause(|| printer.notes(&model));
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", &model);
    files.add_outputs_in("a file of OUT_DIR", &args.output, &FILES).check()?;
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    progress.step("differentiating");
    let artifacts = analysis.write_artifacts(&args.output, &options, &mut |now| {
        if matches!(now, Progress::At { done: 1, .. }) {
            progress.step("writing");
        }
        ControlFlow::Continue(())
    })?;
    drop(progress);
    artifacts.warnings.iter().for_each(|warning| printer.warning(warning));
    let (files, names, elements) = (&artifacts.files, &artifacts.trained, artifacts.trained_elements);
    let json = json!({
        "files": files,
        "inputs": artifacts.inputs,
        "target_shape": artifacts.target_shape,
        "trained": names,
        "trained_elements": elements,
    });
    printer.result(&json, || {
        let mut out = format!("trained weights: {}, with {} elements\n", names.len(), human(elements as f64));
        out += &format!(
            "inputs of a training step: {}; shape of the target: {:?}\n",
            artifacts.inputs.join(", "),
            artifacts.target_shape
        );
        files.iter().for_each(|file| out += &format!("wrote {}\n", file.display()));
        out
    });
    Ok(true)
}
