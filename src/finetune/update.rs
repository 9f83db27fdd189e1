//! The update of the weights by their gradients: a fused kernel in the memory of the CPU, graphs of standard
//! operators in that of a device, or with several ranks the kernel on each for its shard.
//!
//! The first two keep moments and averages where they compute, and compute the same: [`super::optimizer`] says what. On the CPU
//! they agree to the last bits; the norm of all gradients is summed in double precision in both.

mod graph;
mod graphs;
mod kernel;
mod sharded;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::optimizer::{OptimizerOptions, WeightState};
use super::pass::TrainingPass;
use crate::collective::Collective;
use crate::error::Error;
use crate::runtime::{Device, RuntimeError};
use graph::GraphUpdate;
use kernel::KernelUpdate;
use sharded::ShardedUpdate;

/// What makes the optimizer's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum UpdateKind {
    /// A fused kernel of ours, on the CPU alone.
    Kernel,
    /// Graphs of standard operators, on any device.
    Graph,
}

impl UpdateKind {
    /// What suits a device.
    pub fn of_device(device: Device) -> Self {
        if device == Device::Cpu { Self::Kernel } else { Self::Graph }
    }
}

/// The state of the optimizer, and what advances it with the weights of a pass.
#[derive(Debug)]
pub struct Update(Place);

#[derive(Debug)]
enum Place {
    Kernel(KernelUpdate),
    Graph(Box<GraphUpdate>),
    Sharded(Box<ShardedUpdate>),
}

/// When a step is made, and what it depends on beside the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// Whether the step is made; if not, the norm of the gradients is computed alone.
    pub advances: bool,
}

impl Update {
    /// The state before the first step, of the weights as they are. A step sums the gradients of `runs` runs of the pass on
    /// each of the ranks. Several ranks keep a shard of the state each.
    ///
    /// # Errors
    /// The kernel is asked for where weights are in another memory, or graphs for several ranks; too little memory; ONNX
    /// Runtime refuses a graph.
    pub fn new(
        kind: Option<UpdateKind>,
        pass: &mut TrainingPass,
        options: &OptimizerOptions,
        runs: usize,
        ranks: &Arc<dyn Collective>,
    ) -> Result<Self, Error> {
        let device = pass.device();
        if ranks.size() > 1 {
            if kind == Some(UpdateKind::Graph) {
                let text = "with several ranks every one updates its shard by the kernel, not by graphs";
                return Err(Error::usage(text).hint("leave out --update"));
            }
            let sharded = ShardedUpdate::new(pass, options, ranks.clone()).map_err(unmet)?;
            return Ok(Self(Place::Sharded(Box::new(sharded))));
        }
        let kind = kind.unwrap_or(UpdateKind::of_device(device));
        if kind == UpdateKind::Kernel && device != Device::Cpu {
            let text = format!("the update by the kernel runs on the CPU, the steps run on {device}");
            return Err(Error::usage(text).hint("leave out --update, or give --update graph"));
        }
        let place = match kind {
            UpdateKind::Kernel => KernelUpdate::new(pass, options).map(Place::Kernel),
            UpdateKind::Graph => GraphUpdate::new(pass, options, runs).map(|graph| Place::Graph(Box::new(graph))),
        };
        place.map(Self).map_err(unmet)
    }

    /// Takes the gradients of run `run` of `runs`; after the last, what the step goes along is their mean over the runs.
    ///
    /// # Errors
    /// A run on the device fails.
    pub fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), Error> {
        if runs == 1 {
            return Ok(());
        }
        let collected = match &mut self.0 {
            Place::Kernel(kernel) => kernel.collect(pass, run, runs),
            Place::Graph(graph) => graph.collect(run, runs),
            Place::Sharded(sharded) => sharded.collect(pass, run, runs),
        };
        collected.map_err(unmet)
    }

    /// Moves the weights along the gradients, their mean over ranks, clipped to the largest norm, where all of them are
    /// finite. Returns their norm. Called by all ranks.
    ///
    /// # Errors
    /// A run on the device fails; a rank has ended.
    pub fn step(&mut self, pass: &mut TrainingPass, options: &OptimizerOptions, at: At) -> Result<f64, Error> {
        match &mut self.0 {
            Place::Kernel(kernel) => kernel.step(pass, options, at).map_err(unmet),
            Place::Graph(graph) => graph.step(options, at).map_err(unmet),
            Place::Sharded(sharded) => sharded.step(pass, options, at),
        }
    }

    /// The moving averages; none where none is kept. Called by all ranks.
    ///
    /// # Errors
    /// A copy from the device fails; a rank has ended.
    pub fn averages(&mut self, pass: &mut TrainingPass) -> Result<Option<Vec<Vec<f32>>>, Error> {
        match &mut self.0 {
            Place::Kernel(kernel) => Ok(kernel.averages()),
            Place::Graph(graph) => graph.averages(pass).map_err(unmet),
            Place::Sharded(sharded) => sharded.averages(),
        }
    }

    /// The state in the memory of the CPU, whole, on the first rank; `None` on others. Called by all ranks.
    ///
    /// # Errors
    /// A copy from the device fails; a rank has ended.
    pub fn states(&mut self, pass: &mut TrainingPass) -> Result<Option<Vec<WeightState>>, Error> {
        match &mut self.0 {
            Place::Kernel(kernel) => Ok(Some(kernel.states.clone())),
            Place::Graph(graph) => graph.states(pass).map(Some).map_err(unmet),
            Place::Sharded(sharded) => sharded.states(),
        }
    }

    /// Goes on from a state of the same weights, which the first rank has. Called by all ranks.
    ///
    /// # Errors
    /// A copy to the device fails; a rank has ended.
    pub fn restore(&mut self, pass: &mut TrainingPass, states: Option<Vec<WeightState>>) -> Result<(), Error> {
        match &mut self.0 {
            Place::Kernel(kernel) => {
                kernel.states = states.unwrap_or_default();
                Ok(())
            }
            Place::Graph(graph) => graph.restore(pass, &states.unwrap_or_default()).map_err(unmet),
            Place::Sharded(sharded) => sharded.restore(states.as_deref()),
        }
    }
}

/// Adds a share of the gradient of run `run` to the sum over the runs of a step, which the first begins.
fn add_run(sum: &mut Vec<f32>, gradient: &[f32], run: usize, share: f32) {
    if run == 0 {
        sum.clear();
        sum.extend(gradient.iter().map(|value| share * value));
    } else {
        sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += share * value);
    }
}

fn unmet(error: RuntimeError) -> Error {
    let hint = error.hint();
    let unmet = Error::unmet(format!("the optimizer's update does not run: {error}"));
    match hint {
        Some(hint) => unmet.hint(hint),
        None => unmet,
    }
}
