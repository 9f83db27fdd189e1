//! Diffusion: processes, networks that denoise, and samples.
#![allow(clippy::unwrap_used)]

mod multistep;
mod samples;
mod schedulers;

#[path = "../support/mod.rs"]
mod support;
