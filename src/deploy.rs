//! Networks in the form in which a runtime runs them best: other precisions, and the files that the runtime needs.
//!
//! Forms are built from the graph in memory ([`Form`]). Weights are not copied; they are converted while they are written.

pub mod engine;

pub mod form;

pub mod half;

pub mod interface;

pub mod profile;

pub mod quantize;

pub mod ranges;

pub mod target;

pub use engine::{Capability, Engine, EngineBuilder, EngineRequest};
pub use form::Form;
pub use half::{HalfOptions, HalfReport, KeptNode, halve, is_half};
pub use interface::{Adapted, Bridge, Fed, Loader, Wanted, adapt};
pub use profile::{Extent, InputShapes, Profile};
pub use quantize::{Calibration, LayerCost, QuantizeOptions, QuantizeReport, Style, quantize};
pub use ranges::{Range, Ranges, Steps, watch_ranges};
pub use target::{DeployPrecision, DeployTarget};
