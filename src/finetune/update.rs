//! The update of the weights from their gradients: a fused kernel in CPU memory, graphs of standard operators in device
//! memory, or with several ranks, the kernel for the shard of each rank.
//!
//! The first two keep moments and averages where they compute. Both compute what [`super::optimizer`] describes. On the
//! CPU they agree up to the last bits: both sum the norm of the gradients in float64.

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

/// The implementation of the optimizer's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum UpdateKind {
    /// A fused kernel, on the CPU only.
    Kernel,
    /// Graphs of standard operators, on any device.
    Graph,
}

impl UpdateKind {
    /// Returns the implementation that suits a device.
    pub fn of_device(device: Device) -> Self {
        if device == Device::Cpu { Self::Kernel } else { Self::Graph }
    }
}

/// The state of the optimizer, with the implementation that updates the weights of a pass.
#[derive(Debug)]
pub struct Update(Backend);

#[derive(Debug)]
enum Backend {
    Kernel(KernelUpdate),
    Graph(Box<GraphUpdate>),
    Sharded(Box<ShardedUpdate>),
}

/// The number and learning rate of a step, and whether it is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct At {
    /// The number of the step, counted from 1.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
    /// Whether the step is made. Otherwise only the norm of the gradients is computed.
    pub advances: bool,
}

impl Update {
    /// Creates the state before the first step, for the current weights. A step sums the gradients of `runs` runs of
    /// the pass on each rank. With several ranks, each keeps a shard of the state.
    ///
    /// # Errors
    /// The kernel is requested but the weights are not in CPU memory, graphs are requested for several ranks, memory is
    /// too small, or ONNX Runtime rejects a graph.
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
                let text =
                    "--update graph does not work with several ranks: each rank updates its shard with the kernel";
                return Err(Error::usage(text).hint("leave out --update"));
            }
            let sharded = ShardedUpdate::new(pass, options, ranks.clone()).map_err(unmet)?;
            return Ok(Self(Backend::Sharded(Box::new(sharded))));
        }
        let kind = kind.unwrap_or(UpdateKind::of_device(device));
        if kind == UpdateKind::Kernel && device != Device::Cpu {
            let text = format!("--update kernel runs on the CPU only, but the steps run on {device}");
            return Err(Error::usage(text).hint("leave out --update, or use --update graph"));
        }
        let backend = match kind {
            UpdateKind::Kernel => KernelUpdate::new(pass, options).map(Backend::Kernel),
            UpdateKind::Graph => GraphUpdate::new(pass, options, runs).map(|graph| Backend::Graph(Box::new(graph))),
        };
        backend.map(Self).map_err(unmet)
    }

    /// Adds the gradients of run `run` of `runs`. After the last run, the step uses their mean over the runs.
    ///
    /// # Errors
    /// A run on the device fails.
    pub fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), Error> {
        if runs == 1 {
            return Ok(());
        }
        let collected = match &mut self.0 {
            Backend::Kernel(kernel) => kernel.collect(pass, run, runs),
            Backend::Graph(graph) => graph.collect(run, runs),
            Backend::Sharded(sharded) => sharded.collect(pass, run, runs),
        };
        collected.map_err(unmet)
    }

    /// Updates the weights along the gradients, which are averaged over ranks and clipped, if all of them are finite.
    /// Returns the norm of the gradients before clipping. All ranks must call it.
    ///
    /// # Errors
    /// A run on the device fails, or a rank has ended.
    pub fn step(&mut self, pass: &mut TrainingPass, options: &OptimizerOptions, at: At) -> Result<f64, Error> {
        match &mut self.0 {
            Backend::Kernel(kernel) => kernel.step(pass, options, at).map_err(unmet),
            Backend::Graph(graph) => graph.step(options, at).map_err(unmet),
            Backend::Sharded(sharded) => sharded.step(pass, options, at),
        }
    }

    /// Returns the moving averages, or `None` if there are none. All ranks must call it.
    ///
    /// # Errors
    /// A copy from the device fails, or a rank has ended.
    pub fn averages(&mut self, pass: &mut TrainingPass) -> Result<Option<Vec<Vec<f32>>>, Error> {
        match &mut self.0 {
            Backend::Kernel(kernel) => Ok(kernel.averages()),
            Backend::Graph(graph) => graph.averages(pass).map_err(unmet),
            Backend::Sharded(sharded) => sharded.averages(),
        }
    }

    /// Returns the complete state in CPU memory on the first rank, and `None` on the others. All ranks must call it.
    ///
    /// # Errors
    /// A copy from the device fails, or a rank has ended.
    pub fn states(&mut self, pass: &mut TrainingPass) -> Result<Option<Vec<WeightState>>, Error> {
        match &mut self.0 {
            Backend::Kernel(kernel) => Ok(Some(kernel.states.clone())),
            Backend::Graph(graph) => graph.states(pass).map(Some).map_err(unmet),
            Backend::Sharded(sharded) => sharded.states(),
        }
    }

    /// Continues from a state of the same weights, which only the first rank passes. All ranks must call it.
    ///
    /// # Errors
    /// A copy to the device fails, or a rank has ended.
    pub fn restore(&mut self, pass: &mut TrainingPass, states: Option<Vec<WeightState>>) -> Result<(), Error> {
        match &mut self.0 {
            Backend::Kernel(kernel) => {
                kernel.states = states.unwrap_or_default();
                Ok(())
            }
            Backend::Graph(graph) => graph.restore(pass, &states.unwrap_or_default()).map_err(unmet),
            Backend::Sharded(sharded) => sharded.restore(states.as_deref()),
        }
    }
}

/// Adds the gradient of run `run`, times `share`, to the sum over the runs of a step. Run 0 overwrites the sum.
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
    let unmet = Error::unmet(format!("the optimizer's update failed: {error}"));
    match hint {
        Some(hint) => unmet.hint(hint),
        None => unmet,
    }
}
