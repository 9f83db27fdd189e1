//! ONNX Runtime through this package's own interface.
#![allow(clippy::unwrap_used)]

mod devices;
mod sessions;

#[path = "../support/mod.rs"]
mod support;
