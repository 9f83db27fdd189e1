//! Structural pruning of exported diffusion networks, on the ONNX graph itself.

pub mod error;

pub mod onnx;

pub mod load;

pub mod dim;

pub mod fact;

pub mod graph;

pub mod operator;

pub mod ops;

pub mod infer;

pub mod couple;

pub mod importance;

pub mod select;

pub mod kept;

pub mod macs;

pub mod rewrite;

pub mod plan;

pub mod verify;

pub mod write;

pub mod pipeline;

