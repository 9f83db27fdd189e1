//! ONNX Runtime through the interface of this package.
#![allow(clippy::unwrap_used)]

mod devices;
mod sessions;

#[path = "../support/mod.rs"]
mod support;
