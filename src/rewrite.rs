//! Rewriting: from kept indices to a smaller model.

mod patch;

pub use patch::PatchCx;
