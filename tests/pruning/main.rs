//! Cuts and what their verification is worth.
#![allow(clippy::unwrap_used)]

mod changed_weights;
mod computed_weights;
mod counted_outputs;
mod converted;
mod inconclusive;
mod mutations;
mod quantized;
mod random_graphs;
mod rounding;
mod rounds;
mod unfused;
mod whole_cuts;

#[path = "../support/mod.rs"]
mod support;
