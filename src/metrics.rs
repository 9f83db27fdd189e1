//! Metrics of a long run, written while it continues: lines of JSON and TensorBoard event files.
//!
//! Both files grow record by record, and each record is handed to the operating system once it is written. If the
//! program is killed, at most the last record is incomplete. Readers skip it.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
mod generated;
mod jsonl;
mod tensorboard;

pub use jsonl::JsonLines;
pub use tensorboard::{EventFile, Picture};
