//! Gradients and the scores computed from them, against PyTorch, standard operators and float32.
#![allow(clippy::unwrap_used)]

mod by_index;
mod diff_pruning;
mod kernels;
mod loss;
mod precision;
mod pytorch;
mod ranks;
mod training;

#[path = "../support/mod.rs"]
mod support;
