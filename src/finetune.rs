//! Fine-tuning: training the weights of a network on its own graph, by its denoising loss and the output of a teacher.
//!
//! A step is one graph of ours: forward pass, loss and gradients ([`graph`]), run in an ordinary session whose weights and
//! gradients are bound once ([`pass`]), then the optimizer's update ([`optimizer`]). What every sample of a run is given, its
//! place in the data, its timestep and its noise, follows from its global position alone ([`draw`]). A teacher is asked for its
//! output and whatever else is compared ([`teaching`]): inner values ([`features`]), derivatives ([`directions`]).

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
