//! Structural pruning of exported diffusion networks, on the ONNX graph itself.
//!
//! ```no_run
//! use onnx_diffprune::{Model, Ratio, Runtime, ScoreOptions};
//!
//! let runtime = Runtime::open(None)?;
//! let model = Model::open("unet.onnx")?;
//! let scores = model.analyse()?.score(&ScoreOptions::diff_pruning("images"), &runtime)?;
//! let cut = scores.cut(Ratio(0.5))?;
//! let written = cut.stage("pruned.onnx")?.verify(&runtime)?.save()?;
//! println!("{} of {} parameters are kept", cut.after().parameters, cut.before().parameters);
//! # Ok::<(), onnx_diffprune::Error>(())
//! ```
//!
//! The output is written to a hidden folder. [`Staged::save`] moves it to its final path, with its plan beside it. A run
//! that fails, or that its [`Watch`] stops, leaves no files behind. The other features are methods of the types:
//! [`Analysis::repeat`] repeats the cut of a plan, [`Analysis::verify`] verifies a pruned file against its original,
//! [`Analysis::inspect`] shows what can be pruned, [`Analysis::write_artifacts`] writes training artifacts,
//! [`networks::Network`] measures the denoising loss and generates samples, and [`Model::evaluate`] compares networks with
//! their original.
//!
//! The magnitude criterion needs no data and, for most networks, no ONNX Runtime:
//!
//! ```
//! use onnx_diffprune::{Model, Ratio, ScoreOptions};
//!
//! # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dit_tiny.onnx");
//! # let folder = tempfile::tempdir()?;
//! # let output = folder.path().join("pruned.onnx");
//! let scores = Model::open(model)?.analyse()?.score(&ScoreOptions::magnitude(), None)?;
//! let written = scores.cut(Ratio(0.5))?.stage(&output)?.save()?;
//! assert!(written.bytes < Model::open(model)?.total_bytes()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// The modules are private; only the items re-exported below are public. The feature `internals` makes the modules
// public for the tests, the examples and the benchmarks. The lints below are only useful with it.
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub, dead_code, unused_imports))]

// Rooms, lowest first: a room only imports rooms above it in this list.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod error;
#[cfg(not(feature = "internals"))]
mod error;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod files;
#[cfg(not(feature = "internals"))]
mod files;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod onnx;
#[cfg(not(feature = "internals"))]
mod onnx;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod array;
#[cfg(not(feature = "internals"))]
mod array;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod npz;
#[cfg(not(feature = "internals"))]
mod npz;

mod kernels;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod metrics;
#[cfg(not(feature = "internals"))]
mod metrics;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod collective;
#[cfg(not(feature = "internals"))]
mod collective;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod runtime;
#[cfg(not(feature = "internals"))]
mod runtime;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod graph;
#[cfg(not(feature = "internals"))]
mod graph;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod write;
#[cfg(not(feature = "internals"))]
mod write;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod operator;
#[cfg(not(feature = "internals"))]
mod operator;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ops;
#[cfg(not(feature = "internals"))]
mod ops;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod infer;
#[cfg(not(feature = "internals"))]
mod infer;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod load;
#[cfg(not(feature = "internals"))]
mod load;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod fold;
#[cfg(not(feature = "internals"))]
mod fold;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod lower;
#[cfg(not(feature = "internals"))]
mod lower;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod couple;
#[cfg(not(feature = "internals"))]
mod couple;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod macs;
#[cfg(not(feature = "internals"))]
mod macs;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod analysis;
#[cfg(not(feature = "internals"))]
mod analysis;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod inputs;
#[cfg(not(feature = "internals"))]
mod inputs;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod gradient;
#[cfg(not(feature = "internals"))]
mod gradient;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod diffusion;
#[cfg(not(feature = "internals"))]
mod diffusion;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod score;
#[cfg(not(feature = "internals"))]
mod score;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod select;
#[cfg(not(feature = "internals"))]
mod select;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod rewrite;
#[cfg(not(feature = "internals"))]
mod rewrite;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod changed;
#[cfg(not(feature = "internals"))]
mod changed;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod refit;
#[cfg(not(feature = "internals"))]
mod refit;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod plan;
#[cfg(not(feature = "internals"))]
mod plan;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod verify;
#[cfg(not(feature = "internals"))]
mod verify;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod training;
#[cfg(not(feature = "internals"))]
mod training;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod evaluate;
#[cfg(not(feature = "internals"))]
mod evaluate;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod finetune;
#[cfg(not(feature = "internals"))]
mod finetune;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod pipeline;
#[cfg(not(feature = "internals"))]
mod pipeline;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod deploy;
#[cfg(not(feature = "internals"))]
mod deploy;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod prune;
#[cfg(not(feature = "internals"))]
mod prune;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod report;
#[cfg(not(feature = "internals"))]
mod report;

// The public API.
pub use error::{Error, ErrorKind};
pub use graph::sizes::Sizes;
pub use plan::Plan;
pub use prune::{
    Analysis, CriterionOption, Cut, CutOptions, GradientSettings, Model, OutputSamples, Progress, Ratio, RefitSettings,
    Runtime, ScoreOptions, Scores, Stage, Staged, Target, Task, Watch, Written,
};
pub use runtime::Device;
pub use verify::{VerifyOptions, VerifyReport};

/// The values of the choices in [`ScoreOptions`], [`CutOptions`] and [`GradientSettings`].
pub mod options {
    pub use crate::couple::options::{AttentionOption, NormGroups};
    pub use crate::gradient::Precision;
    pub use crate::gradient::accumulate::ThresholdMode;
    pub use crate::refit::{RefitOptions, Weighting};
    pub use crate::score::{GroupReduction, Norm, Published, ScoringMembers};
    pub use crate::select::Scope;
}

/// Denoising networks: how they were trained, the roles of their inputs, their loss, and samples from them.
pub mod networks {
    pub use crate::diffusion::{
        PreconditioningLocation, PredictionType, ProcessOptions, RoleNames, RoleSummary, SampleOptions, Sampler,
        ScheduleName, Skip, TimeScale, UsualSizes, VarianceType,
    };
    pub use crate::prune::{GeneratedSamples, LossOptions, LossReport, Network, NetworkOptions};
}

/// Comparison of networks with their original: the arguments and the result of [`Model::evaluate`].
pub mod evaluation {
    pub use crate::evaluate::{
        ChannelOrder, Distribution, FeatureLayout, FeatureOptions, FeatureSummary, KernelDistance, KernelOptions,
    };
    pub use crate::prune::{
        Consistency, Distances, Drawing, EvaluateOptions, EvaluatedNetwork, Evaluation, EvaluationLimits, LimitCheck,
    };
}

/// Latency of networks side by side: [`benchmarks::bench`].
pub mod benchmarks {
    pub use crate::prune::{BenchNetwork, BenchOptions, BenchPoint, BenchReport, bench};
    pub use crate::runtime::{Latency, OperatorTime};
}

/// Preparation of networks for a runtime: [`deployment::deploy`].
pub mod deployment {
    pub use crate::deploy::{
        Calibration, Capability, DeployPrecision, DeployTarget, Engine, Extent, HalfReport, InputShapes, KeptNode,
        LayerCost, Loader, Profile, QuantizeReport,
    };
    pub use crate::prune::{DeployOptions, DeployReport, EngineOptions, OutputDistance, deploy};
}

/// Training of the weights of a network.
pub mod finetuning {
    pub use crate::finetune::draw::TimestepDraw;
    pub use crate::finetune::features::FeatureChoice;
    pub use crate::finetune::objective::Objective;
    pub use crate::finetune::optimizer::{OptimizerKind, OptimizerOptions};
    pub use crate::finetune::schedule::RateSchedule;
    pub use crate::finetune::trainer::StepReport;
    pub use crate::finetune::update::UpdateKind;
    pub use crate::prune::{FinetuneReport, FinetuneSettings, Recipe, StepEvaluation, Tuned};
}

/// Arrays in memory and in files, and clean samples, which need not fit in memory.
pub mod data {
    pub use crate::array::{Array, ArrayData, ElementType};
    pub use crate::diffusion::{
        Batch, Loader, LoaderOptions, Ranges, SampleOrder, SampleSource, SourceOptions, captions, image_files,
        replace_dropped,
    };
    pub use crate::prune::{read_npz, read_text, sample_files};
}

/// Encoding of images and captions into the inputs of a latent network.
pub mod encoding {
    pub use crate::prune::{EncodeOptions, Encoded, LatentChoice, TextOptions, encode};
}

/// Pruning in rounds. The plan of every round describes one cut of the first original: [`Cut::stage_after`] and
/// [`CutOptions::of_round`].
pub mod rounds {
    pub use crate::prune::RoundFolder;
}

/// Several processes that work as one: [`GradientSettings::ranks`].
pub mod ranks {
    pub use crate::collective::{Alone, Collective, from_first, open};
    pub use crate::prune::threads_of_rank;
}

/// The parts of a [`Plan`].
pub mod plans {
    pub use crate::changed::{AddedBias, ChangedWeight, ChangedWeights, CutDigest};
    pub use crate::graph::digest::DigestKind;
    pub use crate::plan::{GroupPlan, MemberPlan, RefitPlan, TensorPlan};
    pub use crate::prune::plan_path;
}

/// The costs and savings of a cut, the result of its verification, and the HTML report.
pub mod reports {
    pub use crate::gradient::accumulate::LossPoint;
    pub use crate::macs::Cost;
    pub use crate::macs::demand::Demand;
    pub use crate::onnx::names::printable;
    pub use crate::onnx::tool_name;
    pub use crate::prune::{BlockTimes, Change, Outline, OutlineBlock, OutlineLevel};
    pub use crate::prune::{
        CutJudgement, CutLatency, GradientReport, LossKind, RefitLosses, RefitPictures, RefitReport,
    };
    pub use crate::refit::RefitLayer;
    pub use crate::report::{Drawing, Drawings, EvaluationPage, FigureTable, Losses, Report, TrainingPage};
    pub use crate::rewrite::Unfused;
    pub use crate::runtime::Latency;
    pub use crate::verify::{
        Conversion, Difference, OutputError, RunReport, StandIn, UnchangedReport, Unproven, ValuesReport,
    };
}

/// The structure of a network and what can be pruned: the result of [`Analysis::inspect`].
pub mod inspection {
    pub use crate::prune::{BarrierInfo, GroupInfo, Inspection, MemberInfo, NodeInfo};
}

/// Libraries of ONNX Runtime and the devices that they can use.
pub mod devices {
    pub use crate::prune::library_providers;
    pub use crate::runtime::{Candidate, DeviceStatus, MINIMUM_VERSION, candidates};
}

/// Helpers for programs: check the files of a run for conflicts, and remove temporary files at the end.
pub mod program {
    pub use crate::files::{Ending, RunFiles, end};
}

/// Folders of pipelines: a denoiser with its encoders, its decoder and its scheduler.
pub mod pipelines {
    pub use crate::pipeline::{Around, Component, ComponentConfig, Part, Pipeline, PipelineOutput, WrittenPipeline};
}

/// The files that a training session of ONNX Runtime loads.
pub mod artifacts {
    pub use crate::prune::{ArtifactOptions, WrittenArtifacts};
    pub use crate::training::FILES;
}
