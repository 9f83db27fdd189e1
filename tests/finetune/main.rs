//! Training, against PyTorch and against itself resumed.
#![allow(clippy::unwrap_used)]

mod distillation;
mod pytorch;
mod runs;

#[path = "../support/mod.rs"]
mod support;
