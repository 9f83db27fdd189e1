//! Structural pruning of exported diffusion networks, on the ONNX graph itself.
//!
//! The modules are listed in the order in which a model passes through them:
//!
//! `load → graph → infer → fold → couple → importance → select → rewrite → write → verify`
//!
//! ```no_run
//! use onnx_diffprune::pipeline::{PruneOptions, Target, analyse, cut};
//!
//! let model = onnx_diffprune::load::load("unet.onnx".as_ref())?;
//! let analysis = analyse(&model)?;
//! let cut = cut(&analysis, &PruneOptions::new(Target::Ratio(0.5)))?;
//! onnx_diffprune::write::write(&model, &cut.rewritten.edits, "pruned.onnx".as_ref())?;
//! println!("{} of {} parameters are left", cut.after.parameters, cut.before.parameters);
//! # Ok::<(), onnx_diffprune::error::Error>(())
//! ```

// Rooms, lowest first: a room imports only rooms above it in this list.
pub mod error;

pub mod onnx;

pub mod array;

pub mod npz;

mod kernels;

pub mod runtime;

pub mod graph;

pub mod write;

pub mod operator;

pub mod ops;

pub mod infer;

pub mod load;

pub mod fold;

pub mod lower;

pub mod couple;

pub mod macs;

pub mod analysis;

pub mod inputs;

pub mod gradient;

pub mod diffusion;

pub mod score;

pub mod select;

pub mod rewrite;

pub mod changed;

pub mod plan;

pub mod verify;

pub mod training;

pub mod pipeline;

pub mod report;

#[cfg(feature = "cli")]
pub mod cli;
