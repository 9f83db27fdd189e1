//! What a long run tells of itself while it goes on: lines of JSON and TensorBoard's event files.
//!
//! Both grow record by record, each with the system once it is written. A program that is killed leaves at most its last
//! record in part, which readers skip.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
mod generated;
mod jsonl;
mod tensorboard;

pub use jsonl::JsonLines;
pub use tensorboard::{EventFile, Picture};
