//! The update of the weights by their gradients: a fused kernel in the memory of the processor, or graphs of standard
//! operators in that of a device.
//!
//! Both keep moments and averages where they compute, and compute the same: [`super::optimizer`] says what. On the processor
//! they agree to the last bits; the norm of all gradients is summed in double precision in both.

mod graph;
mod graphs;
mod kernel;

use serde::{Deserialize, Serialize};

use super::optimizer::{OptimizerOptions, WeightState};
use super::pass::TrainingPass;
use crate::error::Error;
use crate::runtime::{Device, RuntimeError};
use graph::GraphUpdate;
use kernel::KernelUpdate;

/// What makes the optimizer's step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum UpdateKind {
    /// A fused kernel of ours, on the processor alone.
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
    /// The state before the first step, of the weights as they are. A step sums the gradients of `runs` runs of the pass.
    ///
    /// # Errors
    /// The kernel is asked for where weights are in another memory; too little memory; ONNX Runtime refuses a graph.
    pub fn new(
        kind: Option<UpdateKind>,
        pass: &mut TrainingPass,
        options: &OptimizerOptions,
        runs: usize,
    ) -> Result<Self, Error> {
        let device = pass.device();
        let kind = kind.unwrap_or(UpdateKind::of_device(device));
        if kind == UpdateKind::Kernel && device != Device::Cpu {
            let text = format!("the update by the kernel runs on the processor, the steps run on {device}");
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
    pub fn collect(&mut self, pass: &mut TrainingPass, run: usize, runs: usize) -> Result<(), RuntimeError> {
        if runs == 1 {
            return Ok(());
        }
        match &mut self.0 {
            Place::Kernel(kernel) => kernel.collect(pass, run, runs),
            Place::Graph(graph) => graph.collect(run, runs),
        }
    }

    /// What the step goes along for the weight of this number.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn gradient(&mut self, pass: &mut TrainingPass, at: usize) -> Result<Vec<f32>, RuntimeError> {
        let of = pass.tensors();
        match &mut self.0 {
            Place::Kernel(_) => of.transfer.read(&of.gradients[at]),
            Place::Graph(graph) => of.transfer.read(graph.gradient(of.gradients, at)),
        }
    }

    /// Replaces what [`Update::gradient`] gives.
    ///
    /// # Errors
    /// A copy to the device fails.
    pub fn set_gradient(&mut self, pass: &mut TrainingPass, at: usize, values: &[f32]) -> Result<(), RuntimeError> {
        let of = pass.tensors();
        match &mut self.0 {
            Place::Kernel(_) => of.transfer.write(values, &mut of.gradients[at]),
            Place::Graph(graph) => of.transfer.write(values, graph.gradient_mut(of.gradients, at)),
        }
    }

    /// Moves the weights along the gradients, clipped to the largest norm, where all of them are finite. Returns their norm.
    ///
    /// # Errors
    /// A run on the device fails.
    pub fn step(&mut self, pass: &mut TrainingPass, options: &OptimizerOptions, at: At) -> Result<f64, RuntimeError> {
        match &mut self.0 {
            Place::Kernel(kernel) => kernel.step(pass, options, at),
            Place::Graph(graph) => graph.step(options, at),
        }
    }

    /// The moving averages; none where none is kept.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn averages(&mut self, pass: &mut TrainingPass) -> Result<Option<Vec<Vec<f32>>>, RuntimeError> {
        match &mut self.0 {
            Place::Kernel(kernel) => Ok(kernel.averages()),
            Place::Graph(graph) => graph.averages(pass),
        }
    }

    /// The state in the memory of the processor.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn states(&mut self, pass: &mut TrainingPass) -> Result<Vec<WeightState>, RuntimeError> {
        match &mut self.0 {
            Place::Kernel(kernel) => Ok(kernel.states.clone()),
            Place::Graph(graph) => graph.states(pass),
        }
    }

    /// Goes on from a state of the same weights.
    ///
    /// # Errors
    /// A copy to the device fails.
    pub fn restore(&mut self, pass: &mut TrainingPass, states: Vec<WeightState>) -> Result<(), RuntimeError> {
        match &mut self.0 {
            Place::Kernel(kernel) => {
                kernel.states = states;
                Ok(())
            }
            Place::Graph(graph) => graph.restore(pass, &states),
        }
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
