//! Reports the progress of long calls to the caller, who may stop them.

use std::ops::ControlFlow;

use super::finetune::StepEvaluation;
use crate::error::Error;
use crate::finetune::trainer::StepReport;

/// A stage of a long call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Generates samples with the network.
    Sampling,
    /// Runs the network to compute losses.
    Losses,
    /// Computes losses and gradients.
    Gradients,
    /// Scores channels.
    Scoring,
    /// Measures the error of a fit for every channel group, to compare groups.
    Comparing,
    /// Fits weights.
    Refitting,
    /// Trains weights.
    Training,
    /// Compares a pruned file with its original.
    Verifying,
    /// Counts operations and parameters of networks.
    Counting,
    /// Measures latencies of networks.
    Timing,
    /// Computes features of samples.
    Features,
    /// Computes distances between sets of features.
    Distances,
    /// Converts a network to another precision or form, and compares both.
    Converting,
    /// Waits for another program to build an engine.
    Building,
    /// Encodes images and captions.
    Encoding,
}

/// A progress report of a long call.
///
/// The caller's function returns `ControlFlow::Break(())` to stop. The call then ends with an error of the kind
/// [`crate::error::ErrorKind::Cancelled`] and leaves no output. Only the checkpoint requested by
/// [`super::GradientSettings::checkpoint`] is kept, so that the run can be resumed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The progress of a stage.
    At {
        /// The stage.
        stage: Stage,
        /// Number of finished steps.
        done: usize,
        /// Total number of steps.
        total: usize,
    },
    /// The recognised roles in a denoising network, and its process: one line each.
    Network(&'a str),
    /// A step of training.
    Trained {
        /// The report of the step.
        report: &'a StepReport,
        /// Total number of steps of the run.
        total: u64,
    },
    /// An evaluation of a network during its training.
    Evaluated(&'a StepEvaluation),
    /// Information for the user.
    Note(&'a str),
    /// A warning for the user.
    Warning(&'a str),
}

/// The function that receives the progress of a call.
pub type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Reports progress to the caller, who may stop the call.
pub(super) fn notify(watch: &mut Watch<'_>, progress: Progress<'_>) -> Result<(), Error> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled()),
    }
}

/// Ignores all progress.
pub(super) fn unwatched(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
