//! Fine-tuning against PyTorch, and resumed runs against uninterrupted ones.
#![allow(clippy::unwrap_used)]

mod distillation;
mod pytorch;
mod ranks;
mod runs;
mod teacher;
mod updates;

#[path = "../support/mod.rs"]
mod support;
