//! Diffusion processes, denoising networks, and samples.
#![allow(clippy::unwrap_used)]

mod labels;
mod multistep;
mod network;
mod prompts;
mod samples;
mod schedulers;

#[path = "../support/mod.rs"]
mod support;
