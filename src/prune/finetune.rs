//! Fine-tunes a network and writes its new weights into the file.

mod checkpoint;
mod demand;
mod evaluation;
mod log;
mod run;
mod samples;
mod settings;
mod teaching;
mod tuned;
mod weights;

pub use evaluation::StepEvaluation;
pub use run::FinetuneReport;
pub use settings::{FinetuneSettings, Recipe};
pub use tuned::Tuned;
