//! The changes between the input model and the output.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::slice::sliced_dims;
use super::{Streamed, WeightSource};
use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::{AttributeProto, DataType, NodeProto, TensorProto};

/// A node of the output.
#[derive(Clone, Debug)]
pub enum NodeOut {
    /// The node at this position of the file, unchanged.
    Original(usize),
    /// The node at this position with other inputs and attributes.
    Patched {
        /// Position in the file.
        index: usize,
        /// All inputs.
        inputs: Vec<String>,
        /// Attributes to replace by name, or to add.
        attributes: Vec<AttributeProto>,
        /// Names of attributes to remove.
        removed_attributes: Vec<String>,
    },
    /// A new node.
    New(NodeProto),
}

/// An initializer of the output.
#[derive(Clone, Debug)]
// Few are new, and boxing them would only complicate the code that creates them.
#[allow(clippy::large_enum_variant)]
pub enum InitializerOut {
    /// The initializer at this position of the file, unchanged.
    Original(usize),
    /// The initializer at this position, sliced along some axes.
    Sliced {
        /// Position in the file.
        index: usize,
        /// The name in the output.
        name: String,
        /// The sliced axes with their kept indices.
        axes: Vec<(usize, Vec<usize>)>,
    },
    /// A new initializer.
    New(TensorProto),
    /// An initializer whose elements come from another source.
    Streamed(Streamed),
}

/// A size of a declared shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DimOut {
    /// The size in the file.
    Same,
    /// A new size.
    Value(i64),
    /// An unknown size.
    Unknown,
}

/// The changes between the input model and the output.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// All nodes in a topological order.
    pub nodes: Vec<NodeOut>,
    /// All initializers.
    pub initializers: Vec<InitializerOut>,
    /// New shapes of declared values, by name.
    pub shapes: BTreeMap<String, Vec<DimOut>>,
    /// Metadata entries to add or replace.
    pub metadata: Vec<(String, String)>,
    /// Prefixes of keys: metadata entries of the file with such a key are removed, unless they are replaced.
    pub dropped_metadata: Vec<String>,
}

impl InitializerOut {
    /// Returns the name in the output. Empty: the model has no initializer at the position.
    pub fn name<'e>(&'e self, model: &'e Model) -> &'e str {
        match self {
            Self::Original(index) => model.graph().initializer.get(*index).map_or("", |tensor| &tensor.name),
            Self::Sliced { name, .. } => name,
            Self::New(tensor) => &tensor.name,
            Self::Streamed(streamed) => &streamed.name,
        }
    }

    /// Returns the position in the file of the initializer that it is or replaces, and the element type and sizes in
    /// the output.
    fn form(&self, model: &Model) -> Option<(Option<usize>, DataType, Vec<i64>)> {
        let original = |index: usize| model.graph().initializer.get(index);
        Some(match self {
            Self::Original(index) => {
                let tensor = original(*index)?;
                (Some(*index), tensor.element_type(), tensor.dims.clone())
            }
            Self::Sliced { index, axes, .. } => {
                let tensor = original(*index)?;
                (Some(*index), tensor.element_type(), sliced_dims(&tensor.dims, axes))
            }
            Self::New(tensor) => (None, tensor.element_type(), tensor.dims.clone()),
            Self::Streamed(streamed) => (streamed.index, streamed.data_type, streamed.dims.clone()),
        })
    }
}

impl NodeOut {
    /// Returns the node as stored in the model, or the new node, without its patches.
    fn proto<'e>(&'e self, model: &'e Model) -> Option<&'e NodeProto> {
        match self {
            Self::Original(index) | Self::Patched { index, .. } => model.graph().node.get(*index),
            Self::New(proto) => Some(proto),
        }
    }
}

impl Edits {
    /// Streams the elements of a weight of the output from another source. The weight is an initializer (whole, sliced
    /// or new), or the output of a Constant node, which is then replaced by an initializer of the same name. The
    /// element type of the output does not change. Floating-point elements of another type are converted.
    ///
    /// # Errors
    /// The output has no such weight, or it has another shape, or a type to which the elements can't be converted.
    pub fn stream(&mut self, model: &Model, name: &str, source: Arc<dyn WeightSource>) -> Result<(), Error> {
        let fail = |text: String| Error::usage(text).in_file(model.path());
        let streamed = |(index, data_type, dims)| Streamed { index, name: name.to_owned(), data_type, dims, source };
        if let Some(at) = self.initializers.iter().position(|known| known.name(model) == name) {
            let form = self.initializers[at].form(model);
            let form =
                form.ok_or_else(|| fail(format!("tensor {name:?}: the model has no initializer at its position")))?;
            let streamed = streamed(form);
            streamed.check().map_err(fail)?;
            self.initializers[at] = InitializerOut::Streamed(streamed);
            return Ok(());
        }
        let constant = |node: &NodeOut| {
            let proto = node.proto(model)?;
            let is_it = proto.op_type == "Constant" && proto.output.iter().any(|output| output == name);
            let tensor = proto.tensor("value").filter(|_| is_it)?;
            Some((None, tensor.element_type(), tensor.dims.clone()))
        };
        let found = self.nodes.iter().enumerate().find_map(|(at, node)| Some((at, constant(node)?)));
        let Some((at, form)) = found else {
            return Err(fail(format!("expected a weight {name:?} in the output, found none with this name")));
        };
        let streamed = streamed(form);
        streamed.check().map_err(fail)?;
        self.nodes.remove(at);
        self.initializers.push(InitializerOut::Streamed(streamed));
        Ok(())
    }

    /// Adds an initializer whose elements come from another source.
    ///
    /// # Errors
    /// The source has another shape, or a type that can't be converted.
    pub fn add_initializer(&mut self, model: &Model, streamed: Streamed) -> Result<(), Error> {
        streamed.check().map_err(|text| Error::usage(text).in_file(model.path()))?;
        self.initializers.push(InitializerOut::Streamed(streamed));
        Ok(())
    }

    /// Connects the value `name` to an empty input slot of the node whose first named output is `output`. Missing slots
    /// before it are left empty.
    ///
    /// # Errors
    /// The output has no such node, or the slot is in use.
    pub fn add_input(&mut self, model: &Model, output: &str, slot: usize, name: &str) -> Result<(), Error> {
        let fail = |text: String| Error::usage(text).in_file(model.path());
        let gives = |node: &NodeOut| node.proto(model).is_some_and(|proto| proto.first_output() == output);
        let node = self.nodes.iter_mut().find(|node| gives(node));
        let node = node.ok_or_else(|| fail(format!("expected a node with the output {output:?}, found none")))?;
        if let NodeOut::Original(index) = *node {
            let inputs = model.graph().node[index].input.clone();
            *node = NodeOut::Patched { index, inputs, attributes: Vec::new(), removed_attributes: Vec::new() };
        }
        let inputs = match node {
            NodeOut::Patched { inputs, .. } => inputs,
            NodeOut::New(proto) => &mut proto.input,
            // Converted to a patched node above.
            NodeOut::Original(_) => return Ok(()),
        };
        if let Some(taken) = inputs.get(slot).filter(|input| !input.is_empty()) {
            let text = format!("expected no input {slot} of the node with the output {output:?}, found {taken:?}");
            return Err(fail(text));
        }
        if inputs.len() <= slot {
            inputs.resize(slot + 1, String::new());
        }
        name.clone_into(&mut inputs[slot]);
        Ok(())
    }
}
