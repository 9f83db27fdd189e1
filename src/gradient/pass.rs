//! Running a gradient graph.

use std::collections::HashMap;

use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::load::Model;
use crate::runtime::{Optimization, Runtime, RuntimeError, Session, SessionOptions};

use super::{GradientGraph, LOSS, UseGradient};

/// A gradient graph that ONNX Runtime has loaded.
#[derive(Debug)]
pub struct GradientPass {
    session: Session,
    gradients: Vec<UseGradient>,
}

/// Loss and gradients of one run.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// The loss, the mean over all elements of the prediction.
    pub loss: f64,
    /// One array for each of [`GradientGraph::gradients`], in that order.
    pub uses: Vec<Vec<f32>>,
}

impl GradientPass {
    /// Loads the graph; `model` is the file that it was made from, beside which external data is found.
    ///
    /// # Errors
    /// ONNX Runtime refuses the graph.
    pub fn new(runtime: &Runtime, graph: &GradientGraph, model: &Model, threads: Option<usize>) -> Result<Self, Error> {
        use prost::Message;
        let options = SessionOptions {
            optimization: Optimization::All,
            external_data_folder: Some(model.folder().to_owned()),
            threads,
        };
        let session = runtime
            .session_from_bytes(&graph.model.encode_to_vec(), &options)
            .map_err(|error| unmet(model, "load", error))?;
        Ok(Self { session, gradients: graph.gradients.clone() })
    }

    /// The names of the inputs that a run needs: those of the network that the loss depends on, and the target.
    pub fn input_names(&self) -> Vec<&str> {
        self.session.inputs().iter().map(|input| input.name.as_str()).collect()
    }

    /// Computes the loss and all gradients. Inputs of half or double precision are given as float32.
    ///
    /// # Errors
    /// The run fails; the model is named.
    pub fn run(&mut self, model: &Model, inputs: &[(String, Array)]) -> Result<Gradients, Error> {
        let outputs = self.session.run(inputs).map_err(|error| unmet(model, "run", error))?;
        let mut by_name: HashMap<String, Array> = outputs.into_iter().collect();
        let loss = by_name.remove(LOSS).and_then(|loss| loss.to_f64().first().copied()).unwrap_or(f64::NAN);
        let uses =
            self.gradients.iter().map(|gradient| match by_name.remove(&gradient.output).map(|array| array.data) {
                Some(ArrayData::F32(values)) => values,
                Some(other) => other.to_f64().into_iter().map(|value| value as f32).collect(),
                None => Vec::new(),
            });
        Ok(Gradients { loss, uses: uses.collect() })
    }

    /// What the entries of [`Gradients::uses`] are the gradients by.
    pub fn uses(&self) -> &[UseGradient] {
        &self.gradients
    }
}

fn unmet(model: &Model, what: &str, error: RuntimeError) -> Error {
    Error::unmet(format!("the gradient graph does not {what} in ONNX Runtime: {error}")).in_file(model.path())
}
