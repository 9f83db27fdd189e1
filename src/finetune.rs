//! Fine-tuning: training the weights of a network on its own graph, with the denoising loss and the outputs of a
//! teacher.
//!
//! A step runs one gradient graph with forward pass, loss and gradients ([`graph`]) in an ordinary session, whose
//! weights and gradients are bound once ([`pass`]). Then the optimizer updates the weights ([`optimizer`]). The data,
//! timestep and noise of a sample depend only on its global position ([`draw`]). A teacher provides its output and the
//! other values that are compared ([`teaching`]): intermediate values ([`features`]) and directional derivatives
//! ([`directions`]).

pub mod directions;
pub mod draw;
pub mod features;
pub mod graph;
pub mod objective;
pub mod optimizer;
pub mod pass;
pub mod schedule;
pub mod shards;
pub mod teacher;
pub mod teaching;
pub mod trainer;
pub mod update;
