//! Trained weights, and their conversion to edits of a file.

use std::sync::Arc;

use crate::changed::ChangedWeight;
use crate::error::Error;
use crate::finetune::graph::TrainedWeight;
use crate::graph::model::Model;
use crate::onnx::TensorProto;
use crate::refit::Refitted;
use crate::write::{Edits, InitializerOut, MemoryWeight, NodeOut};

/// Trained weights, in the order of the training graph.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TunedWeights {
    /// Names and shapes.
    pub weights: Arc<Vec<TrainedWeight>>,
    /// The elements of each.
    pub values: Vec<Vec<f32>>,
}

impl TunedWeights {
    fn parts(&self) -> impl Iterator<Item = (&str, Vec<i64>, &[f32])> {
        self.weights.iter().zip(&self.values).map(|(weight, values)| {
            let dims = weight.dims.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
            (weight.name.as_str(), dims, values.as_slice())
        })
    }

    /// Returns the edits to the file that was trained.
    ///
    /// # Errors
    /// Fails if the file lacks a weight.
    pub(super) fn edits(&self, model: &Model) -> Result<Edits, Error> {
        let graph = model.graph();
        let mut edits = Edits {
            nodes: (0..graph.node.len()).map(NodeOut::Original).collect(),
            initializers: (0..graph.initializer.len()).map(InitializerOut::Original).collect(),
            ..Edits::default()
        };
        for (name, dims, values) in self.parts() {
            edits.stream(model, name, Arc::new(MemoryWeight::of_floats(&dims, values)))?;
        }
        Ok(edits)
    }

    /// Returns the weights as changed weights without readers.
    pub(super) fn changed(&self) -> Vec<ChangedWeight> {
        let changed = |(name, dims, _): (&str, Vec<i64>, &[f32])| ChangedWeight {
            name: name.to_owned(),
            tensor: name.to_owned(),
            dims,
            readers: Vec::new(),
        };
        self.parts().map(changed).collect()
    }

    /// Returns the weights as refitted weights.
    pub(super) fn refitted(&self) -> Refitted {
        let weights = self.parts().map(|(name, dims, values)| TensorProto::of_floats(name, values, &dims)).collect();
        Refitted { weights, ..Refitted::default() }
    }
}
