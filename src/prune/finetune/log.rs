//! Logs a run into its folder: `metrics.jsonl`, TensorBoard's event files, and images.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::evaluation::StepEvaluation;
use crate::diffusion::grid_png;
use crate::error::Error;
use crate::files::write_file;
use crate::finetune::trainer::StepReport;
use crate::metrics::{EventFile, JsonLines, Picture};

/// Maximum number of steps between two entries. Short runs log every step, long ones every tenth.
const EVERY: u64 = 10;

/// The files of a run.
pub(super) struct RunLog {
    folder: PathBuf,
    lines: JsonLines,
    events: EventFile,
    every: u64,
}

impl RunLog {
    /// Creates new files, or continues those of a run that is resumed after step `done`.
    ///
    /// # Errors
    /// Fails if the folder can't be written.
    pub(super) fn open(folder: &Path, steps: u64, done: Option<u64>) -> Result<Self, Error> {
        let path = folder.join("metrics.jsonl");
        let lines = match done {
            Some(done) => JsonLines::resume(&path, done)?,
            None => JsonLines::create(&path)?,
        };
        let every = if steps > 100 * EVERY { EVERY } else { 1 };
        Ok(Self { folder: folder.to_owned(), lines, events: EventFile::create(folder, done)?, every })
    }

    /// Logs a step.
    ///
    /// # Errors
    /// Fails if a file can't be written.
    pub(super) fn step(&mut self, report: &StepReport, samples_per_second: f64) -> Result<(), Error> {
        if !report.step.is_multiple_of(self.every) && !report.is_skipped {
            return Ok(());
        }
        let StepReport { step, loss, norm, rate, is_skipped } = *report;
        self.lines.write(
            step,
            &json!({
                "loss": loss,
                "gradient_norm": norm,
                "learning_rate": rate,
                "samples_per_second": samples_per_second,
                "skipped": is_skipped,
            }),
        )?;
        let values = [
            ("loss/train", loss as f32),
            ("gradient_norm", norm as f32),
            ("learning_rate", rate as f32),
            ("samples_per_second", samples_per_second as f32),
        ];
        self.events.scalars(step, &values)
    }

    /// Logs an evaluation, and an image of the samples if they are images.
    ///
    /// # Errors
    /// Fails if a file can't be written.
    pub(super) fn evaluation(&mut self, of: &StepEvaluation, range: (f64, f64)) -> Result<(), Error> {
        if !of.losses.is_empty() {
            self.lines.write(of.step, &json!({"held_out_loss": of.loss}))?;
            self.events.scalars(of.step, &[("loss/held-out", of.loss as f32)])?;
        }
        let Some(drawn) = &of.drawn else { return Ok(()) };
        let finite = drawn.mapv(|value| if value.is_finite() { value } else { range.0 as f32 });
        // Samples that are not images are not logged as an image.
        let Ok(png) = grid_png(&finite, range) else { return Ok(()) };
        write_file(&self.folder.join(format!("samples-{:06}.png", of.step)), &png)?;
        let number =
            |at: usize| png.get(at..at + 4).map_or(0, |four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
        // A PNG file starts with 8 bytes of signature and an 8-byte chunk header, followed by width and height.
        let channels = if drawn.shape().get(1) == Some(&3) { 3 } else { 1 };
        let picture = Picture { width: number(16), height: number(20), channels, png: png.into() };
        self.events.picture(of.step, "samples", &picture)
    }
}
