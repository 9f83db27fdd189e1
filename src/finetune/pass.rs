//! Runs the graph of a training step, with weights and gradients in device memory.

use crate::array::Array;
use crate::error::Error;
use crate::gradient::LOSS;
use crate::gradient::pass::{GradientPass, PassOptions, first, run_scaled, unmet};
use crate::gradient::precision::{LossScale, OVERFLOW};
use crate::graph::model::Model;
use crate::onnx::numbers::packed_numbers;
use crate::runtime::{BoundSession, Device, DeviceTensor, Runtime, RuntimeError, Transfer};

use super::graph::{TrainedWeight, TrainingGraph};
use crate::analysis::Analysis;

/// The graph of a step in a session. Weights and gradients are bound once.
#[derive(Debug)]
pub struct TrainingPass {
    pass: GradientPass,
    model: Model,
    weights: Vec<DeviceTensor>,
    gradients: Vec<DeviceTensor>,
    losses: Losses,
    transfer: Transfer,
}

/// The tensors of a pass, and the means to copy them.
#[derive(Debug)]
pub struct PassTensors<'a> {
    /// The weights.
    pub weights: &'a mut [DeviceTensor],
    /// The gradients of the last run.
    pub gradients: &'a mut [DeviceTensor],
    /// Copies between these tensors and CPU memory.
    pub transfer: &'a mut Transfer,
}

/// The scalar outputs of a run, in CPU memory.
#[derive(Debug)]
struct Losses {
    loss: DeviceTensor,
    terms: Vec<DeviceTensor>,
    overflow: Option<DeviceTensor>,
}

/// The loss of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// The sum of all terms.
    pub loss: f64,
    /// The value of each term, if there are several. Otherwise empty.
    pub terms: Vec<f64>,
}

/// Returns the elements of a constant in float32.
///
/// # Errors
/// It can't be read.
pub fn constant_values(analysis: &Analysis, weight: &TrainedWeight) -> Result<Vec<f32>, Error> {
    let model = &analysis.model;
    let fail = || {
        Error::unmet(format!("weight {:?}: its elements can't be read as numbers", weight.name)).in_file(model.path())
    };
    let tensor = analysis.graph.tensor(model, weight.value).ok_or_else(fail)?;
    let bytes = model.tensor_bytes(tensor)?;
    packed_numbers(tensor.element_type(), &bytes, weight.elements()).ok_or_else(fail)
}

impl TrainingPass {
    /// Loads the graph, with the weights of the model.
    ///
    /// # Errors
    /// ONNX Runtime rejects the graph, the device can't be used, or a weight can't be read.
    pub fn new(
        runtime: &Runtime,
        analysis: &Analysis,
        of: &TrainingGraph,
        options: &PassOptions,
    ) -> Result<Self, Error> {
        let model = analysis.model.clone();
        let options = PassOptions { keeps_on_device: Some(true), ..*options };
        let mut pass = GradientPass::with_options(runtime, &of.graph, &model, &options)?;
        let failed = |error: RuntimeError| unmet(&model, "load", error);
        let (Some((bound, scale)), terms) = (pass.bound_mut(), &of.graph.terms) else {
            return Err(Error::unmet("the pass of a training step must keep its values on the device"));
        };
        let terms: Vec<&str> = terms.iter().map(|term| term.output.as_str()).filter(|output| *output != LOSS).collect();
        let losses = Losses::bind(bound, &terms, scale.is_some()).map_err(failed)?;
        let mut transfer = Transfer::new(runtime, bound.session().execution().used).map_err(failed)?;
        let (mut weights, mut gradients) = (Vec::new(), Vec::new());
        for weight in &of.weights {
            let mut gradient = bound.device_tensor(&weight.dims).map_err(failed)?;
            bound.bind_output(&weight.gradient, &mut gradient).map_err(failed)?;
            gradients.push(gradient);
            let values = constant_values(analysis, weight)?;
            let mut tensor = bound.device_tensor(&weight.dims).map_err(failed)?;
            transfer.write(&values, &mut tensor).map_err(failed)?;
            bound.bind_input(&weight.name, &tensor).map_err(failed)?;
            weights.push(tensor);
        }
        model.set_aside();
        Ok(Self { pass, model, weights, gradients, losses, transfer })
    }

    /// Computes loss and gradients.
    ///
    /// # Errors
    /// The run fails, or gradients overflow half precision at any scale.
    pub fn run(&mut self, inputs: &[(String, Array)]) -> Result<StepLoss, Error> {
        let Self { pass, model, losses, .. } = self;
        let Some((bound, scale)) = pass.bound_mut() else { return Ok(StepLoss::default()) };
        losses.run(bound, scale, inputs).map_err(|error| unmet(model, "run", error))
    }

    /// Returns the device that the pass runs on.
    pub fn device(&self) -> Device {
        self.pass.execution().used
    }

    /// Describes the device that the pass runs on, compared with the requested one.
    pub fn execution(&self) -> String {
        self.pass.execution().to_string()
    }

    /// Returns the weights, and the gradients of the last run.
    pub fn parts(&mut self) -> (&mut [DeviceTensor], &mut [DeviceTensor]) {
        (&mut self.weights, &mut self.gradients)
    }

    /// Does what [`TrainingPass::parts`] does, and also returns the means to copy the tensors.
    pub fn tensors(&mut self) -> PassTensors<'_> {
        PassTensors { weights: &mut self.weights, gradients: &mut self.gradients, transfer: &mut self.transfer }
    }

    /// Returns the runtime of the pass.
    pub(crate) fn runtime(&self) -> &Runtime {
        self.pass.runtime()
    }

    /// Returns the elements of all weights.
    ///
    /// # Errors
    /// A copy from the device fails.
    pub fn weights(&mut self) -> Result<Vec<Vec<f32>>, RuntimeError> {
        let PassTensors { weights, transfer, .. } = self.tensors();
        weights.iter().map(|weight| transfer.read(weight)).collect()
    }

    /// Replaces the elements of the weights by as many new ones.
    ///
    /// # Errors
    /// A copy to the device fails.
    pub fn set_weights(&mut self, values: &[Vec<f32>]) -> Result<(), RuntimeError> {
        let PassTensors { weights, transfer, .. } = self.tensors();
        weights.iter_mut().zip(values).try_for_each(|(weight, values)| transfer.write(values, weight))
    }
}

impl Losses {
    fn bind(bound: &mut BoundSession, terms: &[&str], is_scaled: bool) -> Result<Self, RuntimeError> {
        let mut scalar = |name: &str| {
            let mut tensor = bound.host_tensor(&[])?;
            bound.bind_output(name, &mut tensor)?;
            Ok::<_, RuntimeError>(tensor)
        };
        let loss = scalar(LOSS)?;
        let terms = terms.iter().map(|name| scalar(name)).collect::<Result<_, _>>()?;
        let overflow = is_scaled.then(|| scalar(OVERFLOW)).transpose()?;
        Ok(Self { loss, terms, overflow })
    }

    fn run(
        &self,
        bound: &mut BoundSession,
        scale: Option<&mut LossScale>,
        inputs: &[(String, Array)],
    ) -> Result<StepLoss, RuntimeError> {
        let loss = run_scaled(bound, scale, inputs, (&self.loss, self.overflow.as_ref()))?;
        let terms = self.terms.iter().map(|term| Ok(first(term.values()?))).collect::<Result<_, RuntimeError>>()?;
        Ok(StepLoss { loss, terms })
    }
}
