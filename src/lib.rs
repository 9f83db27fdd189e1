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

// 1. Read a model file.
pub mod load;

// 2. Nodes and values, shapes and sizes.
pub mod fold;

pub mod graph;

pub mod dim;

pub mod fact;

pub mod infer;

// What diffusion networks take, predict and draw.
pub mod diffusion;

// 3. Which channels live or die together.
pub mod couple;

// 4. Which of them matter least.
pub mod gradient;

mod kernels;

pub mod importance;

pub mod select;

pub mod kept;

pub mod macs;

// 5. A smaller model, and the plan that describes it.
pub mod rewrite;

pub mod plan;

pub mod write;

// 6. Proof that it computes the same.
pub mod verify;

// What a person reads of it.
pub mod report;

// All stages in order.
pub mod pipeline;

// The gradients as artifacts for training sessions.
pub mod training;

// What the stages ask of an operator, and the operators.
pub mod operator;

pub mod ops;

// The file format and ONNX Runtime.
pub mod onnx;

pub mod runtime;

pub mod array;

pub mod npz;

pub mod random_inputs;

pub mod error;

// The command line.
#[cfg(feature = "cli")]
pub mod cli;
