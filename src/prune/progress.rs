//! What a long call tells its caller, who may stop it.

use std::ops::ControlFlow;

use super::finetune::StepEvaluation;
use crate::error::Error;
use crate::finetune::trainer::StepReport;

/// What a long call is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Samples are drawn from the network.
    Sampling,
    /// The network is run for losses alone.
    Losses,
    /// Losses and gradients are computed.
    Gradients,
    /// Channels are scored.
    Scoring,
    /// It is measured what each group of channels is worth beside others.
    Comparing,
    /// Weights are fitted.
    Refitting,
    /// Weights are trained.
    Training,
    /// A pruned file is compared with its original.
    Verifying,
    /// Operations and parameters of networks are counted.
    Counting,
    /// It is measured how long runs of networks take.
    Timing,
    /// Features of samples are computed.
    Features,
    /// Distances between sets of features are computed.
    Distances,
    /// A network is brought to another form and compared with what it was.
    Converting,
    /// An engine is built by another program.
    Building,
    /// Images and captions are encoded.
    Encoding,
}

/// What a long call tells its caller.
///
/// The caller's function answers `ControlFlow::Break(())` to stop: the call then ends with an error of the kind
/// [`crate::error::ErrorKind::Cancelled`], and no output is left. Only the checkpoint that
/// [`super::GradientSettings::checkpoint`] asks for stays, so that the run can go on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// How far a stage is.
    At {
        /// The stage.
        stage: Stage,
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        total: usize,
    },
    /// What was taken for what in a denoising network, and its process: one line each.
    Network(&'a str),
    /// A step of training.
    Trained {
        /// What became of it.
        report: &'a StepReport,
        /// Steps of the run.
        total: u64,
    },
    /// A network that was judged in the middle of its training.
    Evaluated(&'a StepEvaluation),
    /// Something that the user may want to know before the result.
    Note(&'a str),
    /// Something that the user should know before the result.
    Warning(&'a str),
}

/// What gets the progress of a call.
pub type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Tells the caller, who may stop the call.
pub(super) fn tell(watch: &mut Watch<'_>, progress: Progress<'_>) -> Result<(), Error> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled()),
    }
}

/// Where nobody watches.
pub(super) fn unwatched(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
