//! Embedding of external data of tensors other than initializers.
//!
//! Constants of nodes and subgraphs, and sparse initializers, may refer to data files of the input. The output may be
//! in another folder and has its own data file, so their elements are embedded in the output's model file.

use bytes::Bytes;
use prost::Message as _;

use super::message::tensor_chunks;
use super::wire::{delimited, fields};
use crate::error::Error;
use crate::files::unwritable;
use crate::graph::model::Model;
use crate::onnx::{DataLocation, TensorProto};

/// The types of messages that can contain tensors.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Node,
    Attribute,
    Graph,
    Sparse,
    Tensor,
}

impl Message {
    /// Returns the message type of the field `tag`, if it can contain tensors.
    fn field(self, tag: u32) -> Option<Self> {
        match (self, tag) {
            (Message::Node, 5) => Some(Message::Attribute),
            (Message::Attribute, 5 | 10) => Some(Message::Tensor),
            (Message::Attribute, 6 | 11) => Some(Message::Graph),
            (Message::Attribute, 22 | 23) => Some(Message::Sparse),
            (Message::Graph, 1) => Some(Message::Node),
            (Message::Graph, 5) => Some(Message::Tensor),
            (Message::Graph, 15) => Some(Message::Sparse),
            (Message::Sparse, 1 | 2) => Some(Message::Tensor),
            _ => None,
        }
    }
}

/// Returns the message with the external data of its tensors embedded, or unchanged if there is none.
///
/// # Errors
/// External data can't be read.
pub(super) fn embedded(model: &Model, kind: Message, message: &Bytes) -> Result<Bytes, Error> {
    if !model.has_external_files() {
        return Ok(message.clone());
    }
    if let Message::Tensor = kind {
        let tensor = TensorProto::decode(message.clone()).map_err(|error| {
            Error::invalid(model.path(), format!("a tensor can't be decoded: {error}")).caused_by(error)
        })?;
        if tensor.data_location != DataLocation::External as i32 {
            return Ok(message.clone());
        }
        let mut bytes = Vec::new();
        for chunk in tensor_chunks(model, &tensor, message, &tensor.name, &[], None)? {
            chunk.write(&mut bytes).map_err(|error| unwritable(model.path(), error))?;
        }
        return Ok(bytes.into());
    }
    let mut bytes = Vec::with_capacity(message.len());
    for field in fields(message) {
        match kind.field(field.tag) {
            Some(inner) => bytes.extend_from_slice(&delimited(field.tag, &embedded(model, inner, &field.payload)?)),
            None => bytes.extend_from_slice(&field.whole),
        }
    }
    Ok(bytes.into())
}
