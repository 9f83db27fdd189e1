//! The two networks that verification compares, as ONNX Runtime loads them from memory.

use prost::Message;

use super::widen::{widen, widen_array};
use crate::array::Array;
use crate::graph::model::Model;
use crate::onnx::ModelProto;
use crate::runtime::{Optimization, Runtime, RuntimeError, Session, SessionOptions};

/// The reference and the pruned network, in their own precision or widened.
#[derive(Clone)]
pub(super) struct Pair<'m> {
    pub(super) reference: ModelProto,
    pub(super) pruned: ModelProto,
    /// Whether both compute in float32 instead of half precision.
    pub(super) is_widened: bool,
    /// Whose external data each reads.
    models: (&'m Model, &'m Model),
}

impl<'m> Pair<'m> {
    /// `reference` reads the external data of `original`; `lowered` stands for the pruned file where ONNX Runtime
    /// can't run that on the CPU.
    pub(super) fn new(
        reference: ModelProto,
        original: &'m Model,
        pruned: &'m Model,
        lowered: Option<ModelProto>,
    ) -> Self {
        let own = || ModelProto { graph: Some(pruned.graph().clone()), ..pruned.proto().clone() };
        let proto = lowered.unwrap_or_else(own);
        Self { reference, pruned: proto, is_widened: false, models: (original, pruned) }
    }

    /// Both in float32.
    pub(super) fn widened(&self) -> Self {
        let mut wide = Self { is_widened: true, ..self.clone() };
        widen(&mut wide.reference);
        widen(&mut wide.pruned);
        wide
    }

    /// Inputs in the precision of the pair.
    pub(super) fn inputs(&self, inputs: &[(String, Array)]) -> Vec<(String, Array)> {
        let convert = |array: &Array| if self.is_widened { widen_array(array) } else { array.clone() };
        inputs.iter().map(|(name, array)| (name.clone(), convert(array))).collect()
    }

    /// A session of the reference.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn reference_session(&self, runtime: &Runtime) -> Result<Session, RuntimeError> {
        session_of(runtime, &self.reference, self.models.0, Optimization::None)
    }

    /// A session of a graph that compares the reference's values with the pruned network's.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn proof_session(&self, runtime: &Runtime, model: &ModelProto) -> Result<Session, RuntimeError> {
        let options = SessionOptions {
            optimization: Optimization::None,
            external_data_folder: Some(self.models.0.data_folder()),
            has_kernels: true,
            ..SessionOptions::default()
        };
        runtime.session_from_bytes(&self.models.0.located(model).encode_to_vec(), &options)
    }

    /// A session of the pruned network.
    ///
    /// # Errors
    /// ONNX Runtime rejects it.
    pub(super) fn pruned_session(&self, runtime: &Runtime) -> Result<Session, RuntimeError> {
        session_of(runtime, &self.pruned, self.models.1, Optimization::Basic)
    }
}

/// The reference runs as it is written: the library's search for what it can compute ahead takes longer than the runs.
fn session_of(
    runtime: &Runtime,
    proto: &ModelProto,
    model: &Model,
    optimization: Optimization,
) -> Result<Session, RuntimeError> {
    let options = SessionOptions {
        optimization,
        external_data_folder: Some(model.data_folder()),
        ..SessionOptions::default()
    };
    runtime.session_from_bytes(&model.located(proto).encode_to_vec(), &options)
}
