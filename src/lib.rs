//! Structural pruning of exported diffusion networks, on the ONNX graph itself.

pub mod array;
pub mod npz;
pub mod random_inputs;
pub mod runtime;
