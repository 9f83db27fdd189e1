//! Where a command writes its network: to a file, or into the folder of a pipeline, in which the denoiser is new and
//! all other files are copies.

use std::path::{Path, PathBuf};

use onnx_diffprune::pipelines::{Pipeline, PipelineOutput};
use onnx_diffprune::{Error, Model};
use serde_json::json;

use super::folder::{base_beside, is_file_name};
use super::printer::Printer;

/// The paths that a command writes a network to.
pub(super) struct Destination {
    /// The file that is written. For a pipeline, it is in a hidden folder.
    pub(super) network: PathBuf,
    /// The final path of the same file, which messages show.
    pub(super) shown: PathBuf,
    /// The path that checkpoints are named after.
    pub(super) base: PathBuf,
    /// The path of the report. `None`: no report is written.
    pub(super) report: Option<PathBuf>,
    /// The output folder of a pipeline with its final path. `None`: the output is a file.
    folder: Option<(PipelineOutput, PathBuf)>,
}

impl Destination {
    /// Returns the destination of a network that is computed from the one in `from`, a file or the folder of a pipeline. If
    /// `from` is a folder, the output is a folder too, unless its name ends with `.onnx`.
    ///
    /// # Errors
    /// `from` is a folder but no pipeline, or the output folder can't be used.
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

    /// Whether the output is the folder of a pipeline.
    pub(super) fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Returns the model; in a pipeline, its external data file will keep its name.
    pub(super) fn named(&self, model: Model) -> Model {
        if self.is_folder() { model.keeping_data_name() } else { model }
    }

    /// Calls `write` to write the network, then copies the other files of the pipeline and moves the folder to its final
    /// path. The results are printed after that.
    ///
    /// # Errors
    /// The error of `write`, with final paths in its message; a file that can't be copied.
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
                let error = error.with_final_paths(folder.roots());
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
            let text = format!(
                "{}: copied unchanged, so it holds the weights of the network before this command",
                file.display()
            );
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
