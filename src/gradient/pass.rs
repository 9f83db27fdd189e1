//! Execution of a gradient graph.

use std::collections::HashMap;

use crate::array::Array;
use crate::error::Error;
use crate::graph::model::Model;
use crate::lower;
use crate::runtime::{
    BoundSession, Device, DeviceTensor, Execution, Optimization, Runtime, RuntimeError, Session, SessionOptions,
};

use super::precision::{LOSS_SCALE, LossScale, OVERFLOW};
use super::{GradientGraph, LOSS, Precision, UseGradient, ValueGradient};

/// A gradient graph loaded in ONNX Runtime.
#[derive(Debug)]
pub struct GradientPass {
    /// The runtime of the session.
    runtime: Runtime,
    runner: Runner,
    gradients: Vec<UseGradient>,
    value_gradients: Vec<ValueGradient>,
    /// The outputs of the terms of the loss.
    terms: Vec<String>,
    /// The index of every gradient by the name of its output.
    places: HashMap<String, usize>,
    precision: Precision,
    /// The loss scale of the next run. `None`: not in half precision.
    loss_scale: Option<LossScale>,
}

/// A session whose gradients are copied to the CPU, or remain on the device.
#[derive(Debug)]
enum Runner {
    Direct(Session),
    Bound(Box<BoundSession>),
}

/// Where and how a gradient graph runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Number of threads within an operator on the CPU. `None`: ONNX Runtime decides.
    pub threads: Option<usize>,
    /// The device.
    pub device: Device,
    /// Whether nodes that the device can't run may run on the CPU.
    pub allow_fallback: bool,
    /// Whether gradients and their sums remain in the memory of the device. `None`: yes on every device except the CPU,
    /// where it would add copies instead of saving them.
    pub keeps_on_device: Option<bool>,
}

/// The loss and gradients of one run.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// The loss, the sum of all terms. A denoising loss is the mean over all elements of the prediction.
    pub loss: f64,
    /// Every term times its weight, in the order of [`GradientGraph::terms`].
    pub terms: Vec<f64>,
    /// One array for each of [`GradientGraph::gradients`], in the same order.
    pub uses: Vec<Vec<f32>>,
    /// One array for each of [`GradientGraph::value_gradients`], in the same order.
    pub values: Vec<Vec<f32>>,
}

impl GradientPass {
    /// Loads the graph on the CPU. `model` is the file from which the graph was built; its folder contains the external
    /// data.
    ///
    /// # Errors
    /// ONNX Runtime can't load the graph.
    pub fn new(runtime: &Runtime, graph: &GradientGraph, model: &Model, threads: Option<usize>) -> Result<Self, Error> {
        Self::with_options(runtime, graph, model, &PassOptions { threads, ..PassOptions::default() })
    }

    /// Like [`GradientPass::new`], on any device.
    ///
    /// # Errors
    /// ONNX Runtime can't load the graph, or the device is not usable or does not run the whole graph.
    pub fn with_options(
        runtime: &Runtime,
        graph: &GradientGraph,
        model: &Model,
        options: &PassOptions,
    ) -> Result<Self, Error> {
        use prost::Message;
        let session_options = SessionOptions {
            optimization: Optimization::All,
            external_data_folder: Some(model.data_folder()),
            threads: options.threads,
            device: options.device,
            allow_fallback: options.allow_fallback,
            record_placement: false,
            no_memory_pattern: options.device == Device::Cpu,
            no_arena: options.device == Device::Cpu,
            no_qdq_fusion: true,
            has_kernels: graph.has_kernels,
            no_memory_reuse: false,
            no_spinning: false,
            as_deployed: false,
            profile: None,
        };
        let session = runtime
            .session_from_bytes(&model.located(&graph.model).encode_to_vec(), &session_options)
            .map_err(|error| unmet(model, "load", error))?;
        // Loading and repacking the weights has left about as much free memory in the allocator as is in use.
        crate::runtime::release_free_memory();
        model.set_aside();
        let places = graph.gradients.iter().enumerate().map(|(at, gradient)| (gradient.output.clone(), at)).collect();
        let runner = if options.keeps_on_device.unwrap_or(session.execution().used != Device::Cpu) {
            Runner::Bound(Box::new(BoundSession::new(session).map_err(|error| unmet(model, "load", error))?))
        } else {
            Runner::Direct(session)
        };
        Ok(Self {
            runtime: runtime.clone(),
            runner,
            gradients: graph.gradients.clone(),
            value_gradients: graph.value_gradients.clone(),
            terms: graph.terms.iter().map(|term| term.output.clone()).collect(),
            places,
            precision: graph.precision,
            loss_scale: graph.loss_scale,
        })
    }

    /// Returns the runtime of the session.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn session(&self) -> &Session {
        match &self.runner {
            Runner::Direct(session) => session,
            Runner::Bound(bound) => bound.session(),
        }
    }

    /// Returns the session with bound outputs and its loss scale. `None`: gradients are copied to the CPU.
    pub(crate) fn bound_mut(&mut self) -> Option<(&mut BoundSession, Option<&mut LossScale>)> {
        match &mut self.runner {
            Runner::Direct(_) => None,
            Runner::Bound(bound) => Some((bound, self.loss_scale.as_mut())),
        }
    }

    /// Returns the precision of convolutions and matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns the factor of the loss in half precision; gradients are divided by it. `None`: not in half precision.
    pub fn loss_scale(&self) -> Option<f32> {
        self.loss_scale.map(LossScale::value)
    }

    /// Returns the requested device and the one in use.
    pub fn execution(&self) -> &Execution {
        self.session().execution()
    }

    /// Returns the names of the inputs that a run needs: the network's inputs on which the loss depends, and those of
    /// the loss.
    pub fn input_names(&self) -> Vec<&str> {
        self.session().inputs().iter().map(|input| input.name.as_str()).collect()
    }

    /// Returns the inputs that a run needs. The loss may not depend on all inputs of the network.
    pub fn needed(&self, mut inputs: Vec<(String, Array)>) -> Vec<(String, Array)> {
        let names = self.session().inputs();
        inputs.retain(|(name, _)| names.iter().any(|input| input.name == *name));
        inputs
    }

    /// Computes the loss and all gradients. Inputs of half or double precision are passed as float32.
    ///
    /// # Errors
    /// The run fails. The error names the model.
    pub fn run(&mut self, model: &Model, inputs: &[(String, Array)]) -> Result<Gradients, Error> {
        let mut found = Gradients {
            uses: vec![Vec::new(); self.gradients.len()],
            values: vec![Vec::new(); self.value_gradients.len()],
            terms: vec![f64::NAN; self.terms.len()],
            loss: f64::NAN,
        };
        let by_value: HashMap<String, usize> =
            self.value_gradients.iter().enumerate().map(|(at, gradient)| (gradient.output.clone(), at)).collect();
        let places = self.places.clone();
        let terms = self.terms.clone();
        found.loss = self.run_outputs(model, inputs, |_, name, values| {
            if let Some(at) = places.get(name) {
                found.uses[*at] = values.to_vec();
            } else if let Some(at) = by_value.get(name) {
                found.values[*at] = values.to_vec();
            } else if let Some(at) = terms.iter().position(|term| term == name) {
                found.terms[at] = first(values);
            }
        })?;
        Ok(found)
    }

    /// Computes the loss. Calls `each` with the loss and the gradient of every use, identified by its index in
    /// [`GradientGraph::gradients`], without copying it. Returns the loss. In half precision, a run that overflows is
    /// repeated with a smaller loss scale.
    ///
    /// # Errors
    /// The run fails, or gradients overflow half precision at any loss scale. The error names the model.
    pub fn run_each(
        &mut self,
        model: &Model,
        inputs: &[(String, Array)],
        mut each: impl FnMut(f64, usize, &[f32]),
    ) -> Result<f64, Error> {
        let places = std::mem::take(&mut self.places);
        let loss = self.run_outputs(model, inputs, |loss, name, values| {
            if let Some(at) = places.get(name) {
                each(loss, *at, values);
            }
        });
        self.places = places;
        loss
    }

    /// Runs the graph. Calls `each` with the loss and every output except the overflow flag; the loss comes first.
    /// Returns the loss.
    fn run_outputs(
        &mut self,
        model: &Model,
        inputs: &[(String, Array)],
        mut each: impl FnMut(f64, &str, &[f32]),
    ) -> Result<f64, Error> {
        let session = match &mut self.runner {
            Runner::Direct(session) => session,
            Runner::Bound(bound) => bound.session_mut(),
        };
        loop {
            let (mut loss, mut overflow) = (f64::NAN, 0.0);
            // The loss is the first output, the overflow flag the second.
            let see = |name: &str, values: &[f32]| match name {
                OVERFLOW => overflow = first(values),
                _ => {
                    if name == LOSS {
                        loss = first(values);
                    }
                    if overflow == 0.0 {
                        each(loss, name, values);
                    }
                }
            };
            let run = match &self.loss_scale {
                None => session.run_each(inputs, see),
                Some(scale) => {
                    let scale = (LOSS_SCALE.to_owned(), scale.array());
                    session.run_each(&[inputs, &[scale]].concat(), see)
                }
            };
            run.map_err(|error| unmet(model, "run", error))?;
            match &mut self.loss_scale {
                Some(scale) if loss.is_finite() && overflow != 0.0 => {
                    scale.lower().map_err(|error| unmet(model, "run", error))?;
                }
                _ => return Ok(loss),
            }
        }
    }

    /// Returns the uses of weights to which the entries of [`Gradients::uses`] belong.
    pub fn uses(&self) -> &[UseGradient] {
        &self.gradients
    }
}

/// Runs a pass whose loss and overflow flag are bound to these scalars in CPU memory. In half precision, a run that
/// overflows is repeated with a smaller loss scale. Returns the loss.
///
/// # Errors
/// The run fails, or gradients overflow half precision at any loss scale.
pub(crate) fn run_scaled(
    bound: &mut BoundSession,
    mut scale: Option<&mut LossScale>,
    inputs: &[(String, Array)],
    (loss, overflow): (&DeviceTensor, Option<&DeviceTensor>),
) -> Result<f64, RuntimeError> {
    for (name, array) in inputs {
        // The loss may not depend on every input of the network.
        if bound.session().inputs().iter().any(|input| input.name == *name) {
            bound.set_input(name, array)?;
        }
    }
    loop {
        if let Some(scale) = &scale {
            bound.set_input(LOSS_SCALE, &scale.array())?;
        }
        bound.run()?;
        let scalar = |tensor: &DeviceTensor| Ok(first(tensor.values()?));
        let found: f64 = scalar(loss)?;
        let overflow = overflow.map_or(Ok(0.0), scalar)?;
        match &mut scale {
            Some(scale) if found.is_finite() && overflow != 0.0 => scale.lower()?,
            _ => return Ok(found),
        }
    }
}

/// Returns the value of a scalar output, or NaN if it is empty.
pub(crate) fn first(values: &[f32]) -> f64 {
    values.first().copied().map_or(f64::NAN, f64::from)
}

/// Returns the error for a failure to `what` (a verb such as "run") the gradient graph.
pub(crate) fn unmet(model: &Model, what: &str, error: RuntimeError) -> Error {
    if let Some(unknown) = lower::foreign(model, &error, "the gradients can't be computed") {
        return unknown.hint("use --criterion magnitude with --no-verify, which does not run the network");
    }
    let hint = error.hint();
    let text = format!("ONNX Runtime can't {what} the gradient graph: {error}");
    let unmet = Error::unmet(text).in_file(model.path());
    match hint {
        Some(hint) => unmet.hint(hint),
        None => unmet,
    }
}
