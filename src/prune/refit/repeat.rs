//! Refits that resume after an interruption, and refits that a plan describes.

use super::super::progress::{Progress, Watch, notify};
use super::{CHECKPOINT_PERIOD, Extent, RefitSettings};
use crate::error::Error;
use crate::graph::digest::DigestKind;
use crate::graph::model::Model;
use crate::plan::{Plan, RefitPlan};
use crate::refit::{RefitCheckpoint, RefitOptions};

/// Returns the checkpoint of the fits. Its fingerprint must match for a run to be resumed.
pub(super) fn checkpoint(
    settings: &RefitSettings,
    (plan, pruned): (&Plan, &Model),
    (extent, data_blake3, process): (Extent, &str, &str),
    watch: &mut Watch<'_>,
) -> Result<Option<RefitCheckpoint>, Error> {
    let Some(path) = &settings.checkpoint else { return Ok(None) };
    let RefitOptions { ridge, rows, seed, weighting, exclude, device, .. } = &settings.options;
    let exclude = exclude.as_ref().map(regex::Regex::as_str);
    let fingerprint = format!(
        "{} {} {extent:?} {data_blake3} {process} {ridge} {rows} {seed} {weighting:?} {exclude:?} {device}",
        plan.input_digest,
        pruned.digest(DigestKind::default())
    );
    match (settings.resume, path.exists()) {
        (true, true) => {
            notify(watch, Progress::Note(&format!("the refit resumes from {}", path.display())))?;
        }
        (false, true) => {
            let text = format!(
                "{} is the checkpoint of an interrupted refit, which this run replaces; use --resume to continue from it",
                path.display()
            );
            notify(watch, Progress::Warning(&text))?;
        }
        _ => {}
    }
    Ok(Some(RefitCheckpoint {
        path: path.clone(),
        fingerprint,
        period: settings.checkpoint_period,
        resumes: settings.resume,
    }))
}

/// Refuses to repeat a refit on other data, or for another process.
pub(super) fn refuse_other(plan: &RefitPlan, process: &str, data_blake3: &str) -> Result<(), Error> {
    if plan.process != process {
        let text = format!(
            "the weights of the plan were fitted for another process: expected {}, found {process}",
            plan.process
        );
        return Err(
            Error::usage(text).hint("use the same schedule options or --scheduler-config as for the first refit")
        );
    }
    if plan.data_blake3 != data_blake3 {
        let text = format!(
            "the weights of the plan were fitted on other samples: expected BLAKE3 {}, found {data_blake3}",
            plan.data_blake3
        );
        return Err(Error::usage(text).hint("use the same data, data range and inputs as for the first refit"));
    }
    Ok(())
}

impl RefitSettings {
    /// Returns the settings of the refit that a plan records.
    ///
    /// # Errors
    /// Fails if the plan has an invalid regular expression.
    pub fn repeated(plan: &RefitPlan) -> Result<Self, Error> {
        let exclude = plan.exclude.as_deref().map(regex::Regex::new).transpose();
        let exclude = exclude.map_err(|error| {
            Error::usage(format!("the plan's refit has an invalid regular expression to exclude layers: {error}"))
        })?;
        let options = RefitOptions {
            ridge: plan.ridge,
            rows: plan.rows,
            seed: plan.seed,
            weighting: plan.weights,
            exclude,
            ..RefitOptions::default()
        };
        Ok(Self {
            samples: Some(plan.samples),
            batch: Some(plan.batch),
            timesteps: Some(plan.timesteps),
            held_out: plan.held_out,
            pictures: 0,
            options,
            checkpoint: None,
            checkpoint_period: CHECKPOINT_PERIOD,
            resume: false,
            repeats: Some(plan.clone()),
        })
    }
}
