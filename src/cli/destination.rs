//! Where a command writes its network: a file, or the folder of a pipeline, in which the denoiser is new and all else a copy.

use std::path::{Path, PathBuf};

use onnx_diffprune::pipelines::{Pipeline, PipelineOutput};
use onnx_diffprune::{Error, Model};
use serde_json::json;

use super::folder::{base_beside, is_file_name};
use super::printer::Printer;

/// The place of a network that is written.
pub(super) struct Destination {
    /// The file that is written, in a hidden folder where a pipeline is.
    pub(super) network: PathBuf,
    /// The same in its place.
    pub(super) shown: PathBuf,
    /// What checkpoints are named after.
    pub(super) base: PathBuf,
    /// The report, if there is one.
    pub(super) report: Option<PathBuf>,
    /// The folder, with its place.
    folder: Option<(PipelineOutput, PathBuf)>,
}

impl Destination {
    /// The place of a network that is made of the one in `from`, a file or the folder of a pipeline. Of a folder the output
    /// is a folder too, unless it has the name of a model's file.
    ///
    /// # Errors
    /// A folder that is no pipeline; a place that is taken.
    pub(super) fn of(from: &Path, output: &Path, report: Option<&Path>) -> Result<Self, Error> {
        if !Pipeline::is_meant(from) || is_file_name(output) {
            let [network, shown, base] = [(); 3].map(|()| output.to_owned());
            return Ok(Self { network, shown, base, report: report.map(Path::to_owned), folder: None });
        }
        let pipeline = Pipeline::open(from)?;
        let denoiser = pipeline.denoiser();
        let mut folder = PipelineOutput::beside(&pipeline, output, &[denoiser])?;
        Ok(Self {
            network: folder.staged(&denoiser.model),
            shown: folder.place_of(&denoiser.model),
            base: base_beside(output, &denoiser.name),
            report: report.map(|report| folder.room_for(report)),
            folder: Some((folder, output.to_owned())),
        })
    }

    /// Whether it is the folder of a pipeline.
    pub(super) fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// The model whose data file keeps its name in a pipeline.
    pub(super) fn named(&self, model: Model) -> Model {
        if self.is_folder() { model.keeping_data_name() } else { model }
    }

    /// Has `write` write the network, then copies what else is in the pipeline and moves the folder to its place. The
    /// results are told when all is there.
    ///
    /// # Errors
    /// What `write` says, with the places of files in the end; a file that can't be copied.
    pub(super) fn fill(
        self,
        printer: &Printer,
        is_first: bool,
        write: impl FnOnce(&Self, &Printer) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        if !self.is_folder() {
            return write(&self, printer);
        }
        let holding = printer.holding();
        let done = write(&self, &holding);
        let Some((folder, place)) = self.folder else { return done };
        let passed = match done {
            Ok(passed) => passed,
            Err(error) => {
                let error = error.told_elsewhere(folder.roots());
                folder.publish_beside()?;
                return Err(error);
            }
        };
        if !passed || !is_first {
            return Ok(passed);
        }
        let progress = printer.progress(1);
        progress.step("copying");
        printer.go_on()?;
        let written = folder.publish()?;
        drop(progress);
        for file in &written.unchanged_weights {
            let text = format!("{} is copied as it was: weights of the network before", file.display());
            printer.warning(&text);
        }
        for (mut json, text) in holding.held() {
            (json["folder_written"], json["copied"]) = (json!(place), json!(written.copied));
            let copied = written.copied.len();
            printer.result(&json, || format!("{text}\nwrote {}: {copied} other files copied", place.display()));
        }
        Ok(true)
    }
}
