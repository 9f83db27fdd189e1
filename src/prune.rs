//! Runs all stages in order, as callers of the library use them: analyse → score → cut → stage → verify → save.
//!
//! The types that callers hold (`Model`, `Analysis`, `Scores`, `Cut`, `Staged`) own their data and can be sent to other
//! threads.

pub mod apply;

mod artifacts;

mod barriers;

mod bench;

mod choice;

mod cut;

pub mod cutting;

mod data;

mod deploy;

mod describe;

mod encode;

mod evaluate;
mod finetune;

mod gradients;

mod inspection;

mod model;

mod network;

mod options;

mod outline;

mod output;

mod progress;

mod prompts;

mod refit;

mod rounds;

mod runtime;

mod staged;

pub use artifacts::{ArtifactOptions, WrittenArtifacts};
pub use bench::{BenchNetwork, BenchOptions, BenchPoint, BenchReport, bench};
pub use cut::{Cut, Scores};
pub use data::{library_providers, read_npz, read_text, sample_files};
pub use deploy::{DeployOptions, DeployReport, EngineOptions, OutputDistance, deploy};
pub use encode::{EncodeOptions, Encoded, LatentChoice, TextOptions, encode};
pub use evaluate::{
    Consistency, Distances, Drawing, EvaluateOptions, EvaluatedNetwork, Evaluation, EvaluationLimits, LimitCheck,
};
pub use finetune::{FinetuneReport, FinetuneSettings, Recipe, StepEvaluation, Tuned};
pub use gradients::{GradientReport, threads as threads_of_rank};
pub use inspection::{BarrierInfo, GroupInfo, Inspection, MemberInfo, NodeInfo};
pub use model::{Analysis, Model};
pub use network::{GeneratedSamples, LossOptions, LossReport, Network, NetworkOptions};
pub use options::{CriterionOption, CutOptions, GradientSettings, PruneOptions, Ratio, ScoreOptions, Target};
pub use outline::{BlockTimes, Change, Outline, OutlineBlock, OutlineLevel};
pub use output::{OutputSamples, Task};
pub use progress::{Progress, Stage, Watch};
pub use refit::{CutJudgement, LossKind, RefitLosses, RefitPictures, RefitReport, RefitSettings};
pub use rounds::RoundFolder;
pub use runtime::Runtime;
pub use staged::{CutLatency, Staged, Written, plan_path};
