//! The output file as a list of chunks: original bytes if nothing changes, patched fields otherwise.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::embed::{Message, embedded};
use super::slice::Sliced;
use super::wire::{Field, delimited, fields, header, text, varint};
use super::{Chunk, DimOut, EXTERNAL_MINIMUM, Edits, ExternalData, InitializerOut, NodeOut, total};
use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::{
    AttributeProto, DataLocation, DataType, GraphProto, ModelProto, StringStringEntryProto, TensorProto,
};

/// Field numbers of `proto/onnx.proto`.
mod number {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const MODEL_OPSET_IMPORT: u32 = 8;
    pub(super) const MODEL_METADATA: u32 = 14;
    pub(super) const MODEL_FUNCTIONS: u32 = 25;
    pub(super) const GRAPH_NODE: u32 = 1;
    pub(super) const GRAPH_INITIALIZER: u32 = 5;
    pub(super) const GRAPH_INPUT: u32 = 11;
    pub(super) const GRAPH_VALUE_INFO: u32 = 13;
    pub(super) const GRAPH_SPARSE_INITIALIZER: u32 = 15;
    pub(super) const NODE_INPUT: u32 = 1;
    pub(super) const NODE_ATTRIBUTE: u32 = 5;
    pub(super) const TENSOR_DIMS: u32 = 1;
    pub(super) const TENSOR_NAME: u32 = 8;
    pub(super) const TENSOR_RAW_DATA: u32 = 9;
    pub(super) const TENSOR_EXTERNAL_DATA: u32 = 13;
    pub(super) const TENSOR_DATA_LOCATION: u32 = 14;
    /// float_data, int32_data, int64_data, double_data, uint64_data.
    pub(super) const TENSOR_TYPED: [u32; 5] = [4, 5, 7, 10, 11];
}

fn push(chunks: &mut Vec<Chunk<'_>>, bytes: Bytes) {
    chunks.push(Chunk::Bytes(bytes));
}

/// Returns all chunks of the output model.
///
/// # Errors
/// A tensor can't be read or sliced, or the model has no node or initializer at a position.
pub(super) fn model_chunks<'m>(
    model: &'m Model,
    edits: &'m Edits,
    mut external: Option<&mut ExternalData<'m>>,
) -> Result<Vec<Chunk<'m>>, Error> {
    let mut chunks = Vec::new();
    let all = fields(model.bytes());
    let count = |tag: u32| all.iter().filter(|field| field.tag == tag).count();
    // Decoders merge a graph that is stored in several parts. Positions would be ambiguous.
    let parts = count(number::MODEL_GRAPH);
    if parts != 1 {
        let text = format!("expected one graph in the file, found a graph in {parts} parts");
        return Err(Error::invalid(model.path(), text).hint("load and save the model with the onnx package first"));
    }
    for field in &all {
        match field.tag {
            number::MODEL_GRAPH => {
                let graph = graph_chunks(model, edits, &field.payload, external.as_deref_mut())?;
                push(&mut chunks, header(field.tag, total(&graph)));
                chunks.extend(graph);
            }
            number::MODEL_METADATA => {
                let key = text(&field.payload, 1).unwrap_or_default();
                let is_replaced = edits.metadata.iter().any(|(name, _)| *name == key);
                if !is_replaced && !edits.dropped_metadata.iter().any(|prefix| key.starts_with(prefix)) {
                    push(&mut chunks, field.whole.clone());
                }
            }
            number::MODEL_FUNCTIONS if model.is_inlined() => {}
            _ => push(&mut chunks, field.whole.clone()),
        }
    }
    // Inlined functions add the operator sets that their nodes need.
    for import in model.proto().opset_import.iter().skip(count(number::MODEL_OPSET_IMPORT)) {
        push(&mut chunks, delimited(number::MODEL_OPSET_IMPORT, &import.encode_to_vec()));
    }
    for (key, value) in &edits.metadata {
        let entry = StringStringEntryProto { key: key.clone(), value: value.clone() };
        push(&mut chunks, delimited(number::MODEL_METADATA, &entry.encode_to_vec()));
    }
    Ok(chunks)
}

/// Returns all chunks of a model with a new graph. `initializers` are written instead of those of `graph`.
///
/// # Errors
/// A tensor can't be read, or an initializer refers to a position in the file.
pub(super) fn made_chunks<'m>(
    model: &'m Model,
    (graph, initializers): (&GraphProto, &'m [InitializerOut]),
    metadata: &[(String, String)],
    external: Option<&mut ExternalData<'m>>,
) -> Result<Vec<Chunk<'m>>, Error> {
    let mut rest = ModelProto { graph: None, functions: Vec::new(), ..model.proto().clone() };
    rest.metadata_props.retain(|entry| metadata.iter().all(|(key, _)| *key != entry.key));
    let entry = |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
    rest.metadata_props.extend(metadata.iter().map(entry));
    let bare = GraphProto { initializer: Vec::new(), ..graph.clone() };
    let mut inner = Vec::new();
    push(&mut inner, embedded(model, Message::Graph, &bare.encode_to_vec().into())?);
    write_tensors(&mut inner, model, initializers, &[], external)?;
    let mut chunks = Vec::new();
    push(&mut chunks, rest.encode_to_vec().into());
    push(&mut chunks, header(number::MODEL_GRAPH, total(&inner)));
    chunks.extend(inner);
    Ok(chunks)
}

fn graph_chunks<'m>(
    model: &'m Model,
    edits: &'m Edits,
    graph: &Bytes,
    mut external: Option<&mut ExternalData<'m>>,
) -> Result<Vec<Chunk<'m>>, Error> {
    let all = fields(graph);
    let tensors: Vec<&Field> = all.iter().filter(|field| field.tag == number::GRAPH_INITIALIZER).collect();
    let mut chunks = Vec::new();
    let mut wrote_nodes = false;
    let mut wrote_tensors = false;
    for field in &all {
        match field.tag {
            number::GRAPH_NODE => {
                if !std::mem::replace(&mut wrote_nodes, true) {
                    let nodes: Vec<&Field> = all.iter().filter(|field| field.tag == number::GRAPH_NODE).collect();
                    write_nodes(&mut chunks, model, edits, &nodes)?;
                }
            }
            number::GRAPH_INITIALIZER => {
                if !std::mem::replace(&mut wrote_tensors, true) {
                    write_tensors(&mut chunks, model, &edits.initializers, &tensors, external.as_deref_mut())?;
                }
            }
            number::GRAPH_SPARSE_INITIALIZER => {
                push(&mut chunks, delimited(field.tag, &embedded(model, Message::Sparse, &field.payload)?));
            }
            number::GRAPH_VALUE_INFO | number::GRAPH_INPUT => {
                let name = text(&field.payload, 1).unwrap_or_default();
                match edits.shapes.get(&name) {
                    Some(shape) => push(&mut chunks, delimited(field.tag, &patch_type(&field.payload, shape))),
                    None => push(&mut chunks, field.whole.clone()),
                }
            }
            _ => push(&mut chunks, field.whole.clone()),
        }
    }
    if !wrote_tensors {
        write_tensors(&mut chunks, model, &edits.initializers, &tensors, external)?;
    }
    Ok(chunks)
}

fn write_nodes(chunks: &mut Vec<Chunk<'_>>, model: &Model, edits: &Edits, nodes: &[&Field]) -> Result<(), Error> {
    // If functions were inlined, the nodes of the file differ from those of the model.
    let original = |index: usize| -> Result<Bytes, Error> {
        let node = model.graph().node.get(index);
        let node = node.ok_or_else(|| missing(model, "node", index, model.graph().node.len()))?;
        let message = match nodes.get(index) {
            Some(field) if !model.is_inlined() => field.payload.clone(),
            _ => node.encode_to_vec().into(),
        };
        embedded(model, Message::Node, &message)
    };
    for node in &edits.nodes {
        let message = match node {
            NodeOut::Original(index) => original(*index)?,
            NodeOut::New(proto) => embedded(model, Message::Node, &proto.encode_to_vec().into())?,
            NodeOut::Patched { index, inputs, attributes, removed_attributes } => {
                patch_node(&original(*index)?, inputs, attributes, removed_attributes)
            }
        };
        push(chunks, header(number::GRAPH_NODE, message.len() as u64));
        push(chunks, message);
    }
    Ok(())
}

/// Returns a node message with other inputs and attributes, each at the position of the old ones.
fn patch_node(message: &Bytes, inputs: &[String], attributes: &[AttributeProto], removed: &[String]) -> Bytes {
    let mut bytes = Vec::with_capacity(message.len());
    let mut inputs = Some(inputs);
    let write_inputs = |inputs: &[String], bytes: &mut Vec<u8>| {
        inputs.iter().for_each(|name| bytes.extend_from_slice(&delimited(number::NODE_INPUT, name.as_bytes())));
    };
    let mut open: BTreeMap<&str, &AttributeProto> =
        attributes.iter().map(|attribute| (attribute.name.as_str(), attribute)).collect();
    for part in fields(message) {
        match part.tag {
            number::NODE_INPUT => write_inputs(inputs.take().unwrap_or_default(), &mut bytes),
            number::NODE_ATTRIBUTE => {
                let name = text(&part.payload, 1).unwrap_or_default();
                if let Some(attribute) = open.remove(name.as_str()) {
                    bytes.extend_from_slice(&delimited(number::NODE_ATTRIBUTE, &attribute.encode_to_vec()));
                } else if !removed.contains(&name) {
                    bytes.extend_from_slice(&part.whole);
                }
            }
            _ => bytes.extend_from_slice(&part.whole),
        }
    }
    // The node had no inputs before.
    write_inputs(inputs.unwrap_or_default(), &mut bytes);
    for attribute in open.into_values() {
        bytes.extend_from_slice(&delimited(number::NODE_ATTRIBUTE, &attribute.encode_to_vec()));
    }
    bytes.into()
}

fn missing(model: &Model, what: &str, index: usize, count: usize) -> Error {
    Error::invalid(model.path(), format!("expected the position of a {what} below {count}, found {index}"))
}

fn write_tensors<'m>(
    chunks: &mut Vec<Chunk<'m>>,
    model: &'m Model,
    initializers: &'m [InitializerOut],
    tensors: &[&Field],
    mut external: Option<&mut ExternalData<'m>>,
) -> Result<(), Error> {
    let original = |index: usize| -> Result<(&Field, &'m TensorProto), Error> {
        let found = tensors.get(index).copied().zip(model.graph().initializer.get(index));
        found.ok_or_else(|| missing(model, "initializer", index, tensors.len()))
    };
    for initializer in initializers {
        let parts = match initializer {
            InitializerOut::New(tensor) => {
                let message = tensor.encode_to_vec().into();
                tensor_chunks(model, tensor, &message, &tensor.name, &[], external.as_deref_mut())?
            }
            InitializerOut::Original(index) => {
                let (field, tensor) = original(*index)?;
                if external.is_none() || tensor.element_type() == DataType::String {
                    push(chunks, field.whole.clone());
                    continue;
                }
                tensor_chunks(model, tensor, &field.payload, &tensor.name, &[], external.as_deref_mut())?
            }
            InitializerOut::Sliced { index, name, axes } => {
                let (field, tensor) = original(*index)?;
                tensor_chunks(model, tensor, &field.payload, name, axes, external.as_deref_mut())?
            }
            InitializerOut::Streamed(streamed) => {
                let fail = |text: String| Error::usage(text).in_file(model.path());
                let length = streamed.check().map_err(fail)?;
                let message = match streamed.index {
                    Some(index) => {
                        let (field, tensor) = original(index)?;
                        if tensor.data_type != streamed.data_type as i32 {
                            let (expected, found) = (tensor.element_type().spec_name(), streamed.data_type.spec_name());
                            let name = &streamed.name;
                            return Err(fail(format!("tensor {name:?}: expected type {expected}, found {found}")));
                        }
                        field.payload.clone()
                    }
                    None => streamed.header().encode_to_vec().into(),
                };
                let elements = Chunk::Streamed(streamed, length);
                with_elements(&message, &streamed.name, &streamed.dims, elements, external.as_deref_mut())
            }
        };
        push(chunks, header(number::GRAPH_INITIALIZER, total(&parts)));
        chunks.extend(parts);
    }
    Ok(())
}

/// Returns a tensor message with other sizes and elements. All other fields are copied.
pub(super) fn tensor_chunks<'m>(
    model: &'m Model,
    tensor: &'m TensorProto,
    message: &Bytes,
    name: &str,
    axes: &[(usize, Vec<usize>)],
    external: Option<&mut ExternalData<'m>>,
) -> Result<Vec<Chunk<'m>>, Error> {
    let sliced = Sliced::new(model, tensor, axes)?;
    let dims = sliced.dims().to_vec();
    Ok(with_elements(message, name, &dims, Chunk::Sliced(sliced), external))
}

/// Returns a tensor message with this name, these sizes and elements. All other fields are copied.
fn with_elements<'m>(
    message: &Bytes,
    name: &str,
    dims: &[i64],
    elements: Chunk<'m>,
    external: Option<&mut ExternalData<'m>>,
) -> Vec<Chunk<'m>> {
    let mut chunks = Vec::new();
    for size in dims {
        push(&mut chunks, varint(number::TENSOR_DIMS, *size));
    }
    let is_same_name = text(message, number::TENSOR_NAME).as_deref() == Some(name);
    for field in fields(message) {
        match field.tag {
            number::TENSOR_DIMS
            | number::TENSOR_RAW_DATA
            | number::TENSOR_EXTERNAL_DATA
            | number::TENSOR_DATA_LOCATION => {}
            tag if number::TENSOR_TYPED.contains(&tag) => {}
            number::TENSOR_NAME if !is_same_name => {
                push(&mut chunks, delimited(number::TENSOR_NAME, name.as_bytes()));
            }
            _ => push(&mut chunks, field.whole),
        }
    }
    match external.filter(|_| elements.len() >= EXTERNAL_MINIMUM) {
        Some(external) => {
            let (location, offset, length) = external.add(elements);
            let entries = [("location", location), ("offset", offset.to_string()), ("length", length.to_string())];
            for (key, value) in entries {
                let entry = StringStringEntryProto { key: key.to_owned(), value };
                push(&mut chunks, delimited(number::TENSOR_EXTERNAL_DATA, &entry.encode_to_vec()));
            }
            push(&mut chunks, varint(number::TENSOR_DATA_LOCATION, DataLocation::External as i64));
        }
        None => {
            push(&mut chunks, header(number::TENSOR_RAW_DATA, elements.len()));
            chunks.push(elements);
        }
    }
    chunks
}

/// Replaces the shape in the tensor type of a ValueInfoProto: `type` (2) → `tensor_type` (1) → `shape` (2) → `dim` (1).
fn patch_type(message: &Bytes, shape: &[DimOut]) -> Vec<u8> {
    patch_path(message, &[2, 1, 2], &|shape_message| {
        let mut bytes = Vec::new();
        let mut axis = 0;
        for field in fields(shape_message) {
            if field.tag != 1 {
                bytes.extend_from_slice(&field.whole);
                continue;
            }
            match shape.get(axis) {
                None | Some(DimOut::Same) => bytes.extend_from_slice(&field.whole),
                Some(size) => {
                    // Keeps the denotation (3) and unknown fields, and removes value (1) and name (2).
                    let mut dim: Vec<u8> = fields(&field.payload)
                        .iter()
                        .filter(|part| part.tag > 2)
                        .flat_map(|part| part.whole.to_vec())
                        .collect();
                    if let DimOut::Value(size) = size {
                        dim.extend_from_slice(&varint(1, *size));
                    }
                    bytes.extend_from_slice(&delimited(1, &dim));
                }
            }
            axis += 1;
        }
        bytes
    })
}

fn patch_path(message: &Bytes, path: &[u32], patch: &dyn Fn(&Bytes) -> Vec<u8>) -> Vec<u8> {
    let Some((tag, rest)) = path.split_first() else {
        return patch(message);
    };
    let mut bytes = Vec::new();
    for field in fields(message) {
        if field.tag == *tag {
            bytes.extend_from_slice(&delimited(*tag, &patch_path(&field.payload, rest, patch)));
        } else {
            bytes.extend_from_slice(&field.whole);
        }
    }
    bytes
}
