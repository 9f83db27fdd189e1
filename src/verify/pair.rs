//! The two networks that verification compares, as ONNX Runtime loads them from memory.

use std::borrow::Cow;

use prost::Message;

use super::pieces::Pieces;
use super::rounding::{Rounding, without_rounding};
use super::widen::{widen, widen_array};
use crate::array::Array;
use crate::graph::model::Model;
use crate::onnx::ModelProto;
use crate::runtime::{Optimization, Runtime, RuntimeError, Session, SessionOptions};

/// The reference and the pruned network, in their own precision or widened to float32.
#[derive(Clone)]
pub(super) struct Pair<'m> {
    pub(super) reference: ModelProto,
    pub(super) pruned: ModelProto,
    /// Whether both compute in float32 instead of half precision.
    pub(super) is_widened: bool,
    /// Whether both leave out the rounding of activations to quantisation steps.
    pub(super) is_unrounded: bool,
    /// The models whose external data the reference and the pruned network read.
    models: (&'m Model, &'m Model),
}

impl<'m> Pair<'m> {
    /// Builds a pair. `reference` reads the external data of `original`; `lowered` replaces the pruned file if ONNX
    /// Runtime can't run that on the CPU.
    pub(super) fn new(
        reference: ModelProto,
        original: &'m Model,
        pruned: &'m Model,
        lowered: Option<ModelProto>,
    ) -> Self {
        let own = || ModelProto { graph: Some(pruned.graph().clone()), ..pruned.proto().clone() };
        let proto = lowered.unwrap_or_else(own);
        Self { reference, pruned: proto, is_widened: false, is_unrounded: false, models: (original, pruned) }
    }

    /// Returns both without the rounding of activations, in float32.
    ///
    /// # Errors
    /// One of them can't be written in this form.
    pub(super) fn without_rounding(&self, rounding: Rounding) -> Result<Self, RuntimeError> {
        let (is_widened, is_unrounded) = (rounding.is_half, rounding.bits.is_some());
        let mut exact = Self { is_widened, is_unrounded, ..self.clone() };
        exact.reference = exact.formed(self.models.0, self.reference.clone())?;
        exact.pruned = exact.formed(self.models.1, self.pruned.clone())?;
        Ok(exact)
    }

    /// Converts a network that reads the external data of `model` to the precision of the pair.
    fn formed(&self, model: &Model, proto: ModelProto) -> Result<ModelProto, RuntimeError> {
        let mut formed = match self.is_unrounded {
            true => without_rounding(model, &proto)
                .map_err(|error| RuntimeError::ModelRejected { message: error.to_string() })?,
            false => proto,
        };
        if self.is_widened {
            widen(&mut formed);
        }
        Ok(formed)
    }

    /// Converts inputs to the precision of the pair.
    pub(super) fn inputs(&self, inputs: &[(String, Array)]) -> Vec<(String, Array)> {
        let convert = |array: &Array| if self.is_widened { widen_array(array) } else { array.clone() };
        inputs.iter().map(|(name, array)| (name.clone(), convert(array))).collect()
    }

    /// Creates a session of the reference.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn reference_session(&self, runtime: &Runtime) -> Result<Session, RuntimeError> {
        session_of(runtime, &self.reference, self.models.0, Optimization::None)
    }

    /// Returns the sessions of a graph that compares the reference's values with the pruned network's.
    ///
    /// # Errors
    /// The graph can't be converted to the precision of the pair.
    pub(super) fn pieces(&self, model: ModelProto) -> Result<Pieces, RuntimeError> {
        let options = SessionOptions {
            optimization: Optimization::None,
            external_data_folder: Some(self.models.0.data_folder()),
            has_kernels: true,
            no_qdq_fusion: true,
            no_memory_reuse: true,
            no_memory_pattern: true,
            no_spinning: true,
            ..SessionOptions::default()
        };
        let formed = self.formed(self.models.0, model)?;
        let located = match self.models.0.located(&formed) {
            Cow::Owned(located) => located,
            Cow::Borrowed(_) => formed,
        };
        Ok(Pieces::new(located, options))
    }

    /// Creates a session of the pruned network.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn pruned_session(&self, runtime: &Runtime) -> Result<Session, RuntimeError> {
        session_of(runtime, &self.pruned, self.models.1, Optimization::Basic)
    }
}

/// Creates a session. The reference runs without optimizations: constant folding in ONNX Runtime takes longer than the
/// runs.
fn session_of(
    runtime: &Runtime,
    proto: &ModelProto,
    model: &Model,
    optimization: Optimization,
) -> Result<Session, RuntimeError> {
    let options = SessionOptions {
        optimization,
        no_qdq_fusion: true,
        no_memory_reuse: optimization == Optimization::None,
        no_memory_pattern: optimization == Optimization::None,
        no_spinning: true,
        external_data_folder: Some(model.data_folder()),
        ..SessionOptions::default()
    };
    runtime.session_from_bytes(&model.located(proto).encode_to_vec(), &options)
}
