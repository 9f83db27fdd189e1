//! Training sessions: one step of forward and backward pass with the library's training API.

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use ort::AsPointer;
use ort::memory::Allocator;
use ort::training::{Checkpoint, Trainer, training_api};
use ort::value::{DynValue, DynValueRef, TensorElementType};

use super::Runtime;
use super::error::{RuntimeError, plain};
use super::session::{SessionOptions, builder, failed, rejected};
use super::values::borrow;
use crate::array::Array;

/// The contents of the files from which a training session is created.
#[derive(Clone, Copy, Debug)]
pub struct TrainingModels<'a> {
    /// The model of forward pass, loss and gradients.
    pub training: &'a [u8],
    /// The model of forward pass and loss.
    pub eval: &'a [u8],
    /// The model of the optimizer step.
    pub optimizer: &'a [u8],
    /// The values of the weights.
    pub checkpoint: &'a [u8],
}

/// A training session.
#[derive(Debug)]
pub struct TrainingSession {
    inner: Trainer,
    allocator: Allocator,
    /// The outputs of a step, in order.
    outputs: Vec<String>,
}

/// Creates a training session.
pub(super) fn open(
    runtime: &Runtime,
    models: &TrainingModels<'_>,
    options: &SessionOptions,
) -> Result<TrainingSession, RuntimeError> {
    training_api().map_err(|_| RuntimeError::NoTraining { path: runtime.library.clone() })?;
    let checkpoint = Checkpoint::load_from_buffer(models.checkpoint).map_err(|error| rejected(&error))?;
    let builder = builder(runtime, options).map_err(|error| rejected(&error))?;
    let allocator = Allocator::default();
    let (training, eval, optimizer) = (models.training, models.eval, models.optimizer);
    let inner = Trainer::new_from_memory(builder, allocator, checkpoint, training, eval, optimizer)
        .map_err(|error| rejected(&error))?;
    let allocator = Allocator::default();
    let outputs = output_names(&inner, &allocator).map_err(|error| rejected(&error))?;
    Ok(TrainingSession { inner, allocator, outputs })
}

/// Returns the outputs of a step: those of the training model without the accumulated gradients.
#[expect(unsafe_code, reason = "calling a C library")]
fn output_names(session: &Trainer, allocator: &Allocator) -> ort::Result<Vec<String>> {
    let api = training_api()?;
    let mut count = 0;
    // SAFETY: the session is alive, and the number is written to a local variable.
    unsafe {
        ort::Error::result_from_status((api.TrainingSessionGetTrainingModelOutputCount)(session.ptr(), &mut count))?;
    }
    let name = |at| {
        let mut name: *const c_char = std::ptr::null();
        let get = api.TrainingSessionGetTrainingModelOutputName;
        // SAFETY: as above; the name is a C string that the allocator has created for us, and is freed once it is copied.
        unsafe {
            ort::Error::result_from_status(get(session.ptr(), at, allocator.ptr().cast_mut(), &mut name))?;
            let text = CStr::from_ptr(name).to_string_lossy().into_owned();
            allocator.free(name.cast_mut());
            Ok(text)
        }
    };
    (0..count).map(name).collect()
}

impl TrainingSession {
    /// Computes loss and gradients, and passes the elements of every float32 output of a step to `each`.
    ///
    /// `inputs` are the inputs of a step in the order of the training model; the library ignores their names.
    ///
    /// # Errors
    /// The step fails.
    pub fn step(&mut self, inputs: &[(String, Array)], mut each: impl FnMut(&str, &[f32])) -> Result<(), RuntimeError> {
        let values = inputs.iter().map(|(name, array)| borrow(name, array)).collect::<Result<Vec<_>, _>>()?;
        // The next step replaces the accumulated gradients.
        self.inner.optimizer().reset_grad().map_err(|error| failed(&error))?;
        let outputs = self.train_step(&values).map_err(|error| failed(&error))?;
        for (name, value) in self.outputs.iter().zip(&outputs) {
            if value.dtype().tensor_type() != Some(TensorElementType::Float32) {
                continue;
            }
            let (_, values) = value
                .try_extract_tensor::<f32>()
                .map_err(|error| RuntimeError::RunFailed { message: format!("output {name:?}: {}", plain(&error)) })?;
            each(name, values);
        }
        Ok(())
    }

    /// Calls the library's `TrainStep`. `Trainer::step` of `ort` 2.0.0-rc.15 panics on outputs that are tensors, since it
    /// passes no allocator for them.
    #[expect(unsafe_code, reason = "calling a C library")]
    fn train_step(&mut self, inputs: &[DynValueRef<'_>]) -> ort::Result<Vec<DynValue>> {
        let api = training_api()?;
        let inputs: Vec<*const ort::sys::OrtValue> = inputs.iter().map(|value| value.ptr()).collect();
        let mut outputs = vec![std::ptr::null_mut(); self.outputs.len()];
        // SAFETY: the session lives as long as `self`, which is borrowed mutably; inputs live as long as the borrowed
        // values; both lengths are those of the arrays. The options of a run may be null.
        unsafe {
            let (session, options) = (self.inner.ptr().cast_mut(), std::ptr::null());
            let (given, made) = (inputs.as_ptr(), outputs.as_mut_ptr());
            ort::Error::result_from_status((api.TrainStep)(
                session,
                options,
                inputs.len(),
                given,
                outputs.len(),
                made,
            ))?;
        }
        let outputs = outputs.into_iter().map(|output| {
            let output = NonNull::new(output).ok_or_else(|| ort::Error::new("a training step returned no output"))?;
            // SAFETY: the library has created this value for us; the sessions run on the CPU, whose default
            // allocator this is.
            Ok(unsafe { DynValue::from_ptr(output, Some(&self.allocator)) })
        });
        outputs.collect()
    }

    /// Updates the weights by one step of the optimizer with the gradients of the last step.
    ///
    /// # Errors
    /// The step fails.
    pub fn optimize(&mut self, learning_rate: f32) -> Result<(), RuntimeError> {
        let mut optimizer = self.inner.optimizer();
        optimizer.set_lr(learning_rate).map_err(|error| failed(&error))?;
        optimizer.step().map_err(|error| failed(&error))
    }
}
