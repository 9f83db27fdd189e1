//! Training sessions: one step of forward and backward pass through the library's training API.

use std::path::Path;

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::SessionInputValue;
use ort::training::{Checkpoint, Trainer, training_api};

use super::error::{RuntimeError, plain};
use super::session::{SessionOptions, builder, failed, rejected};
use super::values::borrow;
use crate::array::Array;

/// What a training session is made from; the bytes of the files.
#[derive(Clone, Copy, Debug)]
pub struct TrainingModels<'a> {
    /// Forward pass, loss and gradients.
    pub training: &'a [u8],
    /// Forward pass and loss.
    pub eval: &'a [u8],
    /// The step of the optimizer.
    pub optimizer: &'a [u8],
    /// The values of the weights.
    pub checkpoint: &'a [u8],
}

/// A training session.
#[derive(Debug)]
pub struct TrainingSession {
    inner: Trainer,
}

/// Makes a training session.
pub(super) fn open(
    environment: &Environment,
    library: &Path,
    models: &TrainingModels<'_>,
    options: &SessionOptions,
) -> Result<TrainingSession, RuntimeError> {
    training_api().map_err(|_| RuntimeError::NoTraining { path: library.to_owned() })?;
    let checkpoint = Checkpoint::load_from_buffer(models.checkpoint).map_err(|error| rejected(&error))?;
    let builder = builder(environment, options).map_err(|error| rejected(&error))?;
    let allocator = Allocator::default();
    let (training, eval, optimizer) = (models.training, models.eval, models.optimizer);
    let inner = Trainer::new_from_memory(builder, allocator, checkpoint, training, eval, optimizer)
        .map_err(|error| rejected(&error))?;
    Ok(TrainingSession { inner })
}

impl TrainingSession {
    /// Computes loss and gradients and shows every output's elements; outputs that are not float32 are left out.
    ///
    /// `inputs` are the inputs of a step in the order of the training model: the library does not look at their names.
    ///
    /// # Errors
    /// The step fails.
    pub fn step(&mut self, inputs: &[(String, Array)], mut each: impl FnMut(&str, &[f32])) -> Result<(), RuntimeError> {
        let values = inputs.iter().map(|(name, array)| borrow(name, array)).collect::<Result<Vec<_>, _>>()?;
        let views: Vec<SessionInputValue<'_>> =
            values.iter().map(|value| SessionInputValue::View(value.view())).collect();
        // The next step replaces the gradients that are accumulated.
        self.inner.optimizer().reset_grad().map_err(|error| failed(&error))?;
        let none: &[SessionInputValue<'_>] = &[];
        let outputs = self.inner.step(views.as_slice(), none).map_err(|error| failed(&error))?;
        for (name, value) in outputs.iter() {
            if !value.dtype().tensor_type().is_some_and(|ty| ty == ort::value::TensorElementType::Float32) {
                continue;
            }
            let (_, values) = value
                .try_extract_tensor::<f32>()
                .map_err(|error| RuntimeError::RunFailed { message: format!("output {name:?}: {}", plain(&error)) })?;
            each(name, values);
        }
        Ok(())
    }

    /// Changes the weights by one step of the optimizer along the gradients of the last step.
    ///
    /// # Errors
    /// The step fails.
    pub fn optimize(&mut self, learning_rate: f32) -> Result<(), RuntimeError> {
        let mut optimizer = self.inner.optimizer();
        optimizer.set_lr(learning_rate).map_err(|error| failed(&error))?;
        optimizer.step().map_err(|error| failed(&error))
    }
}
