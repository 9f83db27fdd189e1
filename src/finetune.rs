//! Fine-tuning: training the weights of a network on its own graph, by its denoising loss and the output of a teacher.
//!
//! A step is one graph of ours: forward pass, loss and gradients ([`graph`]), run in an ordinary session whose weights and
//! gradients are bound once ([`pass`]), then the optimizer's update ([`optimizer`]). What every sample of a run is given, its
//! place in the data, its timestep and its noise, follows from its global position alone ([`draw`]).

pub mod draw;
pub mod graph;
pub mod objective;
pub mod optimizer;
pub mod pass;
pub mod schedule;
pub mod shards;
pub mod teacher;
pub mod trainer;
pub mod update;
