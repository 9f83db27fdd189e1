//! Training, against PyTorch and against itself resumed.
#![allow(clippy::unwrap_used)]

mod distillation;
mod pytorch;
mod ranks;
mod runs;
mod teacher;
mod updates;

#[path = "../support/mod.rs"]
mod support;
