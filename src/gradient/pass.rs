//! Running a gradient graph.

use std::collections::HashMap;

use crate::array::Array;
use crate::error::Error;
use crate::load::Model;
use crate::runtime::{Optimization, Runtime, RuntimeError, Session, SessionOptions};

use super::{GradientGraph, UseGradient};

/// A gradient graph that ONNX Runtime has loaded.
#[derive(Debug)]
pub struct GradientPass {
    session: Session,
    gradients: Vec<UseGradient>,
    /// The place of every gradient, by the name of its output.
    places: HashMap<String, usize>,
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
        let places = graph.gradients.iter().enumerate().map(|(at, gradient)| (gradient.output.clone(), at)).collect();
        Ok(Self { session, gradients: graph.gradients.clone(), places })
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
        let mut uses = vec![Vec::new(); self.gradients.len()];
        let loss = self.run_each(model, inputs.to_vec(), |at, values| uses[at] = values.to_vec())?;
        Ok(Gradients { loss, uses })
    }

    /// Computes the loss and shows the gradient of every use, by its place in [`GradientGraph::gradients`], without
    /// copying it. Inputs that the loss does not depend on are left out. Returns the loss.
    ///
    /// # Errors
    /// The run fails; the model is named.
    pub fn run_each(
        &mut self,
        model: &Model,
        mut inputs: Vec<(String, Array)>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<f64, Error> {
        inputs.retain(|(name, _)| self.session.inputs().iter().any(|input| input.name == *name));
        let mut loss = f64::NAN;
        let places = &self.places;
        self.session
            .run_each(&inputs, |name, values| match places.get(name) {
                Some(at) => each(*at, values),
                None => loss = values.first().copied().map_or(f64::NAN, f64::from),
            })
            .map_err(|error| unmet(model, "run", error))?;
        Ok(loss)
    }

    /// What the entries of [`Gradients::uses`] are the gradients by.
    pub fn uses(&self) -> &[UseGradient] {
        &self.gradients
    }
}

fn unmet(model: &Model, what: &str, error: RuntimeError) -> Error {
    Error::unmet(format!("the gradient graph does not {what} in ONNX Runtime: {error}")).in_file(model.path())
}
