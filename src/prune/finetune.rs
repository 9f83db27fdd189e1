//! Fine-tuning a network and bringing its new weights into the file.

mod checkpoint;
mod evaluation;
mod run;
mod samples;
mod settings;
mod tuned;

pub use evaluation::Evaluation;
pub use run::{FinetuneReport, TunedWeights};
pub use settings::{FinetuneSettings, Recipe};
pub use tuned::Tuned;
