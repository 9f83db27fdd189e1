//! Cuts, and the faults that their verification detects.
#![allow(clippy::unwrap_used)]

mod changed_weights;
mod composed;
mod computed_weights;
mod converted;
mod counted_outputs;
mod inconclusive;
mod mutations;
mod outline;
mod quantized;
mod random_graphs;
mod replaced;
mod rounding;
mod rounds;
mod stand_ins;
mod unfused;
mod whole_cuts;

#[path = "../support/mod.rs"]
mod support;
