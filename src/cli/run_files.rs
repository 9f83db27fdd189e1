//! The files that each command reads and writes, by the names of its arguments.

use std::path::Path;

use onnx_diffprune::data::sample_files;
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::program::RunFiles;
use onnx_diffprune::{Error, Model};

use super::args::{Cli, PruneArgs};
use super::gradient_args::{checkpoint_path, refit_checkpoint_path};

/// Returns the files of a run, with the ONNX Runtime library if one is given.
pub(super) fn of_run(cli: &Cli) -> RunFiles {
    let mut files = RunFiles::new();
    if let Some(library) = &cli.onnxruntime {
        files.add_input("--onnxruntime", library);
    }
    if let Some(library) = std::env::var_os("ORT_DYLIB_PATH") {
        files.add_input("ORT_DYLIB_PATH", library);
    }
    files
}

/// Adds a network to be read, with its external data.
pub(super) fn reads_model(files: &mut RunFiles, what: &str, model: &Model) {
    files.add_input(what, model.path()).add_inputs(format!("the external data of {what}"), model.external_files());
}

/// Adds the files to be read that are given.
pub(super) fn reads_given(files: &mut RunFiles, given: &[(&str, Option<&Path>)]) {
    for (what, path) in given {
        // A folder of arrays that a pipeline was run on is not a single file.
        if let Some(path) = path.filter(|path| !path.is_dir()) {
            files.add_input(*what, path);
        }
    }
}

/// Adds clean samples: a file, or all files of a folder.
pub(super) fn reads_data(files: &mut RunFiles, data: Option<&Path>) -> Result<(), Error> {
    match data {
        Some(folder) if folder.is_dir() => {
            files.add_inputs("a file of --data", sample_files(folder)?);
        }
        Some(file) => {
            files.add_input("--data", file);
        }
        None => {}
    }
    Ok(())
}

/// Adds a pruned network to be written, with its external data.
pub(super) fn writes_pruned(files: &mut RunFiles, model: &Model, output: &Path) {
    files.add_output("OUT.onnx", output).add_output("the external data of OUT.onnx", model.data_path(output));
}

/// Adds the files that pruning writes: the network, its plan, its checkpoints and the report.
pub(super) fn writes_of_pruning(
    files: &mut RunFiles,
    model: &Model,
    args: &PruneArgs,
    (of_gradients, of_refit): (bool, bool),
) {
    if let Some(output) = args.output.as_deref().filter(|_| !args.dry_run) {
        writes_pruned(files, model, output);
        match &args.plan {
            Some(plan) => files.add_output("--plan", plan),
            None => files.add_output("the plan of OUT.onnx", plan_path(output)),
        };
        let base = args.base().unwrap_or(output);
        if of_gradients {
            files.add_output("the checkpoint of OUT.onnx", checkpoint_path(base));
        }
        if of_refit {
            files.add_output("the checkpoint of the refit of OUT.onnx", refit_checkpoint_path(base));
        }
    }
    if let Some(report) = &args.report {
        files.add_output("--report", report);
    }
}
