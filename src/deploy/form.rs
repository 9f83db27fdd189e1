//! A network that was built from another one in memory, with the weights of its file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::graph::Graph;
use crate::graph::model::Model;
use crate::onnx::{DataType, GraphProto, TensorProto, type_proto};
use crate::write::{self, InitializerOut, Made, MemoryWeight, Staged, Streamed};

/// Tensors of fewer bytes are written from memory.
const SMALL: usize = 1024;

/// A network that was built from another one.
#[derive(Clone, Debug)]
pub struct Form {
    /// The model with its new graph. Its initializers have the elements and types of the file, or are new.
    pub model: Model,
    /// The types in which initializers are stored, by name, if they differ from those of the model.
    pub stored: BTreeMap<String, DataType>,
}

impl Form {
    /// Returns a model as it is, with its nodes in topological order: some checkers accept no other.
    pub fn of(model: &Model, graph: &Graph) -> Self {
        let node = graph.nodes.iter().map(|node| node.proto.clone()).collect();
        let model = model.with_graph(GraphProto { node, ..model.graph().clone() });
        Self { model, stored: BTreeMap::new() }
    }

    /// Returns the graph, with the initializers as in the model.
    pub fn graph(&self) -> &GraphProto {
        self.model.graph()
    }

    /// Returns the form with another graph.
    #[must_use]
    pub fn with_graph(&self, graph: GraphProto) -> Self {
        Self { model: self.model.with_graph(graph), stored: self.stored.clone() }
    }

    /// Writes the network into a hidden folder beside `out`. The folder is removed unless it is published.
    ///
    /// # Errors
    /// A weight can't be read, or a file can't be written.
    pub fn stage(&self, out: &Path, metadata: &[(String, String)]) -> Result<Staged, Error> {
        let initializers: Vec<InitializerOut> =
            self.graph().initializer.iter().map(|tensor| self.initializer(tensor)).collect::<Result<_, _>>()?;
        let made = Made { graph: self.graph(), initializers: &initializers, metadata };
        write::stage_made(&self.model, &made, out)
    }

    fn initializer(&self, tensor: &TensorProto) -> Result<InitializerOut, Error> {
        let (from, to) = (tensor.element_type(), self.stored.get(&tensor.name).copied());
        if to.is_none()
            && (tensor.raw_data.len() < SMALL && tensor.external_data.is_empty() || from.byte_size().is_none())
        {
            return Ok(InitializerOut::New(tensor.clone()));
        }
        let source = Arc::new(MemoryWeight::new(from, &tensor.dims, self.model.tensor_view(tensor)?));
        let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
        Ok(InitializerOut::Streamed(Streamed { index: None, name, data_type: to.unwrap_or(from), dims, source }))
    }
}

/// Sets the element type of a declared value, if it is a tensor.
pub(crate) fn declare_type(value: &mut crate::onnx::ValueInfoProto, dtype: DataType) {
    if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
        tensor.elem_type = dtype as i32;
    }
}
