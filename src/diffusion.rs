//! Everything specific to diffusion: noise schedules, the roles of a network's inputs and outputs, data, and sampling.
//!
//! A [`Process`] describes how a network was trained, [`Roles`] the meaning of its inputs and outputs. A [`Denoiser`]
//! is a network in ONNX Runtime that is fed accordingly. [`Samples`] are the data that it is evaluated on, and
//! [`generate`] samples new images.

mod conditioning;

mod config;

mod data;

mod denoiser;

mod denoising;

mod description;

mod grid;

mod noising;

mod process;

mod roles;

mod sampler;

mod schedule;

mod sizes;

pub use conditioning::Conditioning;
pub use config::{ConfiguredProcess, VarianceType, read_scheduler_config};
pub(crate) use data::ArrayDims;
pub use data::{
    Batch, Loader, LoaderOptions, Ranges, SampleOrder, SampleSource, Samples, SourceOptions, captions, image_files,
    refuse_more_unreadable, replace_dropped, sample_files,
};
pub use denoiser::Denoiser;
pub use denoising::{DenoisingTask, denoising_losses};
pub use description::{PreconditioningLocation, ProcessOptions, ScheduleName};
pub use grid::{check_grid, grid_png};
pub use noising::Noising;
pub use process::{Preconditioning, PredictionType, Process, TimeScale};
pub use roles::{Port, RoleNames, RoleSummary, Roles};
pub use sampler::{SampleOptions, Sampler, StepInput, Trajectory, generate, noise};
pub use schedule::{
    BetaSchedule, DiscreteOptions, FlowOptions, Level, NoiseSchedule, SigmaOptions, SigmaSpacing, Skip, Spacing,
};
pub use sizes::UsualSizes;
