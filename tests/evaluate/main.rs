//! Evaluation of networks: metrics against other implementations, and feature networks.
#![allow(clippy::unwrap_used)]

mod features;
mod metrics;
mod ranks;

#[path = "../support/mod.rs"]
mod support;
