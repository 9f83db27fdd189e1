//! Sessions whose inputs and outputs remain in the memory of the device between runs (ONNX Runtime's `IoBinding`).
//!
//! A bound input is copied to the device once and remains there until it is bound again. An output that is bound to a
//! [`DeviceTensor`] remains on the device, where another session can read it. On the CPU this works without copies: the
//! device's memory is the CPU's.

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::value::{DynTensor, Tensor};

use super::device::Device;
use super::error::{RuntimeError, plain};
use super::session::{Session, failed};
use super::values::owned;
use crate::array::Array;

/// A float32 tensor in the memory of a device.
#[derive(Debug)]
pub struct DeviceTensor {
    dims: Vec<usize>,
    value: Tensor<f32>,
    is_readable: bool,
}

impl DeviceTensor {
    /// Returns the sizes of its axes.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Returns the elements of a tensor in the CPU's memory (see [`BoundSession::host_tensor`]).
    ///
    /// # Errors
    /// The tensor is in another memory.
    pub fn values(&self) -> Result<&[f32], RuntimeError> {
        if !self.is_readable {
            let message = "a tensor in the memory of a device can't be read in place".to_owned();
            return Err(RuntimeError::RunFailed { message });
        }
        Ok(self.value.extract_tensor().1)
    }

    /// Returns the elements for modification, as [`DeviceTensor::values`].
    ///
    /// # Errors
    /// The tensor is in another memory.
    pub fn values_mut(&mut self) -> Result<&mut [f32], RuntimeError> {
        self.values()?;
        Ok(self.value.extract_tensor_mut().1)
    }
}

/// A session with bound inputs and outputs.
#[derive(Debug)]
pub struct BoundSession {
    binding: IoBinding,
    device: Device,
    on_device: Allocator,
    session: Session,
}

impl BoundSession {
    /// Creates a session with nothing bound.
    ///
    /// # Errors
    /// ONNX Runtime can't create the binding or an allocator.
    pub fn new(session: Session) -> Result<Self, RuntimeError> {
        let device = session.execution().used;
        let memory = match device.index() {
            None => MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default),
            Some(index) => {
                let index = i32::try_from(index).unwrap_or(i32::MAX);
                MemoryInfo::new(AllocationDevice::CUDA, index, AllocatorType::Device, MemoryType::Default)
            }
        };
        let on_device =
            memory.and_then(|memory| Allocator::new(&session.inner, memory)).map_err(|error| failed(&error))?;
        let binding = session.inner.create_binding().map_err(|error| failed(&error))?;
        Ok(Self { binding, device, on_device, session })
    }

    /// Returns the session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the session, for runs without the bound inputs and outputs.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Creates a tensor in the memory of the device, with uninitialised elements.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn device_tensor(&self, dims: &[usize]) -> Result<DeviceTensor, RuntimeError> {
        let value = Tensor::new(&self.on_device, dims.to_vec()).map_err(|error| failed(&error))?;
        Ok(DeviceTensor { dims: dims.to_vec(), value, is_readable: self.device == Device::Cpu })
    }

    /// Creates a tensor in the CPU's memory, for outputs that are read after every run, with uninitialised elements.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn host_tensor(&self, dims: &[usize]) -> Result<DeviceTensor, RuntimeError> {
        let value = Tensor::new(&Allocator::default(), dims.to_vec()).map_err(|error| failed(&error))?;
        Ok(DeviceTensor { dims: dims.to_vec(), value, is_readable: true })
    }

    /// Copies an array to the device as the input of this name for later runs.
    ///
    /// # Errors
    /// The array does not match the input.
    pub fn set_input(&mut self, name: &str, array: &Array) -> Result<(), RuntimeError> {
        self.session.check_input(name, array)?;
        let value: DynTensor = owned(name, array)?;
        self.binding.bind_input(name, &value).map_err(|error| in_input(name, &error))
    }

    /// Binds a tensor as the input of this name for later runs, without a copy.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub fn bind_input(&mut self, name: &str, tensor: &DeviceTensor) -> Result<(), RuntimeError> {
        self.binding.bind_input(name, &tensor.value).map_err(|error| in_input(name, &error))
    }

    /// Binds a tensor that later runs write the output of this name into.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub fn bind_output(&mut self, name: &str, tensor: &mut DeviceTensor) -> Result<(), RuntimeError> {
        self.binding
            .bind_output(name, &mut tensor.value)
            .map_err(|error| RuntimeError::RunFailed { message: format!("output {name:?}: {}", plain(&error)) })
    }

    /// Unbinds all inputs and outputs.
    pub fn unbind(&mut self) {
        self.binding.clear();
    }

    /// Runs the model. All inputs must be set or bound, and so must every output that is wanted.
    ///
    /// # Errors
    /// The run fails.
    pub fn run(&mut self) -> Result<(), RuntimeError> {
        // Copies to the device may not be complete, nor the outputs when the run returns.
        self.binding.synchronize_inputs().map_err(|error| failed(&error))?;
        let Session { inner, run_options, .. } = &mut self.session;
        inner.run_binding_with_options(&self.binding, run_options).map(|_| ()).map_err(|error| failed(&error))?;
        self.binding.synchronize_outputs().map_err(|error| failed(&error))
    }
}

fn in_input<R>(name: &str, error: &ort::Error<R>) -> RuntimeError {
    RuntimeError::RunFailed { message: format!("input {name:?}: {}", plain(error)) }
}
