//! The interface of an operator to ONNX Runtime's own kernel for it.

use crate::graph::dim::Dim;
use crate::graph::fact::Fact;

/// The inputs with which a kernel would run.
pub struct KernelCx<'a> {
    pub(crate) inputs: Vec<Option<&'a Fact>>,
}

impl KernelCx<'_> {
    /// Returns the size of an axis of input `slot`, if static; of the last axis if `axis` is `None`.
    pub fn size(&self, slot: usize, axis: Option<usize>) -> Option<i64> {
        let shape = self.inputs.get(slot).copied().flatten()?.shape.as_ref()?;
        axis.map_or(shape.last(), |axis| shape.get(axis)).and_then(Dim::as_const)
    }
}
