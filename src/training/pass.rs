//! Gradients through the training API of ONNX Runtime.

use std::collections::HashMap;

use prost::Message;

use super::Artifacts;
use crate::array::Array;
use crate::error::Error;
use crate::gradient::pass::Gradients;
use crate::gradient::{LOSS, UseGradient};
use crate::graph::model::Model;
use crate::runtime::{Optimization, Runtime, RuntimeError, SessionOptions, TrainingModels, TrainingSession};

/// A training session that computes loss and gradients through the training API. Its counterpart without that API is
/// [`crate::gradient::pass::GradientPass`].
#[derive(Debug)]
pub struct TrainingPass {
    session: TrainingSession,
    inputs: Vec<String>,
    gradients: Vec<UseGradient>,
    /// The index of every gradient, by the name of its output.
    places: HashMap<String, usize>,
}

impl TrainingPass {
    /// Opens a session. `model` is the file that the artifacts were built from.
    ///
    /// # Errors
    /// The artifacts have no gradients among their outputs ([`super::TrainingOptions::outputs_gradients`]), the library
    /// has no training API, or it rejects the artifacts.
    pub fn new(runtime: &Runtime, artifacts: &Artifacts, model: &Model, threads: Option<usize>) -> Result<Self, Error> {
        if artifacts.gradients.is_empty() {
            let text =
                "expected artifacts with gradients as outputs, found none among the outputs of the training model";
            return Err(Error::usage(text).in_file(model.path()).hint("set TrainingOptions::gives_gradients"));
        }
        let options = SessionOptions { optimization: Optimization::All, threads, ..SessionOptions::default() };
        let (training, eval) = (artifacts.training_model.encode_to_vec(), artifacts.eval_model.encode_to_vec());
        let optimizer = artifacts.optimizer_model.encode_to_vec();
        let models = TrainingModels {
            training: &training,
            eval: &eval,
            optimizer: &optimizer,
            checkpoint: &artifacts.checkpoint,
        };
        let session = runtime.training_session(&models, &options).map_err(|error| unmet(model, error))?;
        let gradients = artifacts.gradients.clone();
        let places = gradients.iter().enumerate().map(|(at, gradient)| (gradient.output.clone(), at)).collect();
        Ok(Self { session, inputs: artifacts.inputs.clone(), gradients, places })
    }

    /// Returns the uses of weights with respect to which the entries of [`Gradients::uses`] are the gradients.
    pub fn uses(&self) -> &[UseGradient] {
        &self.gradients
    }

    /// Computes the loss and all gradients at the current weights. Pass inputs of half or double precision as float32.
    /// Names that a step does not need are ignored.
    ///
    /// # Errors
    /// An input is missing, or the step fails. The error names the model.
    pub fn run(&mut self, model: &Model, inputs: &[(String, Array)]) -> Result<Gradients, Error> {
        let mut ordered = Vec::with_capacity(self.inputs.len());
        for name in &self.inputs {
            let found = inputs.iter().find(|(given, _)| given == name).cloned();
            ordered.push(found.ok_or_else(|| unmet(model, RuntimeError::MissingInput { name: name.clone() }))?);
        }
        let mut gradients =
            Gradients { loss: f64::NAN, uses: vec![Vec::new(); self.gradients.len()], ..Gradients::default() };
        let places = &self.places;
        self.session
            .step(&ordered, |name, values| match places.get(name) {
                Some(at) => gradients.uses[*at] = values.to_vec(),
                None if name == LOSS => gradients.loss = values.first().copied().map_or(f64::NAN, f64::from),
                None => {}
            })
            .map_err(|error| unmet(model, error))?;
        Ok(gradients)
    }

    /// Updates the session's weights by one AdamW step along the gradients of the last run.
    ///
    /// # Errors
    /// The step fails. The error names the model.
    pub fn optimize(&mut self, model: &Model, learning_rate: f32) -> Result<(), Error> {
        self.session.optimize(learning_rate).map_err(|error| unmet(model, error))
    }
}

fn unmet(model: &Model, error: RuntimeError) -> Error {
    let hint = error.hint();
    let error = Error::unmet(format!("ONNX Runtime's training session failed: {error}")).in_file(model.path());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
