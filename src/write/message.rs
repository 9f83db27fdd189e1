//! The output file as a list of chunks: original bytes where nothing changes, patched fields elsewhere.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::slice::Sliced;
use super::wire::{Field, delimited, fields, header, text, varint};
use super::{Chunk, DimOut, EXTERNAL_MINIMUM, Edits, ExternalData, InitializerOut, NodeOut, total};
use crate::error::Error;
use crate::load::Model;
use crate::onnx::{DataLocation, StringStringEntryProto, TensorProto};

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

fn push(chunks: &mut Vec<Chunk>, bytes: Bytes) {
    chunks.push(Chunk::Bytes(bytes));
}

/// All chunks of the output model.
///
/// # Errors
/// A tensor that can't be read or sliced.
pub(super) fn model_chunks(
    model: &Model,
    edits: &Edits,
    mut external: Option<&mut ExternalData>,
) -> Result<Vec<Chunk>, Error> {
    let mut chunks = Vec::new();
    let mut imports = 0;
    let mut wrote_graph = false;
    for field in fields(model.bytes()) {
        match field.tag {
            number::MODEL_OPSET_IMPORT => {
                imports += 1;
                push(&mut chunks, field.whole);
            }
            number::MODEL_GRAPH => {
                // Decoders merge a graph that comes in two parts; positions in the parts would be ambiguous.
                if std::mem::replace(&mut wrote_graph, true) {
                    return Err(Error::input(model.path(), "expected one graph, found two"));
                }
                let graph = graph_chunks(model, edits, &field.payload, external.as_deref_mut())?;
                push(&mut chunks, header(field.tag, total(&graph)));
                chunks.extend(graph);
            }
            number::MODEL_METADATA => {
                let key = text(&field.payload, 1).unwrap_or_default();
                if edits.metadata.iter().all(|(name, _)| *name != key) {
                    push(&mut chunks, field.whole);
                }
            }
            number::MODEL_FUNCTIONS if model.is_inlined() => {}
            _ => push(&mut chunks, field.whole),
        }
    }
    // Inlined functions may use domains that the model itself did not.
    for import in model.proto().opset_import.iter().skip(imports) {
        push(&mut chunks, delimited(number::MODEL_OPSET_IMPORT, &import.encode_to_vec()));
    }
    for (key, value) in &edits.metadata {
        let entry = StringStringEntryProto { key: key.clone(), value: value.clone() };
        push(&mut chunks, delimited(number::MODEL_METADATA, &entry.encode_to_vec()));
    }
    Ok(chunks)
}

fn graph_chunks(
    model: &Model,
    edits: &Edits,
    graph: &Bytes,
    mut external: Option<&mut ExternalData>,
) -> Result<Vec<Chunk>, Error> {
    let all = fields(graph);
    let inlined = if model.is_inlined() { encoded_nodes(model) } else { Vec::new() };
    let nodes: Vec<&Field> = if model.is_inlined() {
        inlined.iter().collect()
    } else {
        all.iter().filter(|field| field.tag == number::GRAPH_NODE).collect()
    };
    let tensors: Vec<&Field> = all.iter().filter(|field| field.tag == number::GRAPH_INITIALIZER).collect();
    let mut chunks = Vec::new();
    let mut wrote_nodes = false;
    let mut wrote_tensors = false;
    for field in &all {
        match field.tag {
            number::GRAPH_NODE => {
                if !std::mem::replace(&mut wrote_nodes, true) {
                    write_nodes(&mut chunks, edits, &nodes);
                }
            }
            number::GRAPH_INITIALIZER => {
                if !std::mem::replace(&mut wrote_tensors, true) {
                    write_tensors(&mut chunks, model, edits, &tensors, external.as_deref_mut())?;
                }
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
        write_tensors(&mut chunks, model, edits, &tensors, external)?;
    }
    Ok(chunks)
}

/// The nodes of a model whose functions were inlined: they stand in no file.
fn encoded_nodes(model: &Model) -> Vec<Field> {
    let field = |node: &crate::onnx::NodeProto| {
        let payload = Bytes::from(node.encode_to_vec());
        Field { tag: number::GRAPH_NODE, whole: delimited(number::GRAPH_NODE, &payload), payload }
    };
    model.graph().node.iter().map(field).collect()
}

fn write_nodes(chunks: &mut Vec<Chunk>, edits: &Edits, nodes: &[&Field]) {
    for node in &edits.nodes {
        match node {
            NodeOut::Original(index) => {
                if let Some(field) = nodes.get(*index) {
                    push(chunks, field.whole.clone());
                }
            }
            NodeOut::New(proto) => push(chunks, delimited(number::GRAPH_NODE, &proto.encode_to_vec())),
            NodeOut::Patched { index, inputs, attributes, removed_attributes } => {
                let Some(field) = nodes.get(*index) else { continue };
                let mut bytes = Vec::new();
                let mut wrote_inputs = false;
                let mut open: BTreeMap<&str, &crate::onnx::AttributeProto> =
                    attributes.iter().map(|attribute| (attribute.name.as_str(), attribute)).collect();
                for part in fields(&field.payload) {
                    match part.tag {
                        number::NODE_INPUT => {
                            if !std::mem::replace(&mut wrote_inputs, true) {
                                inputs.iter().for_each(|name| {
                                    bytes.extend_from_slice(&delimited(number::NODE_INPUT, name.as_bytes()));
                                });
                            }
                        }
                        number::NODE_ATTRIBUTE => {
                            let name = text(&part.payload, 1).unwrap_or_default();
                            if let Some(attribute) = open.remove(name.as_str()) {
                                let encoded = attribute.encode_to_vec();
                                bytes.extend_from_slice(&delimited(number::NODE_ATTRIBUTE, &encoded));
                            } else if !removed_attributes.contains(&name) {
                                bytes.extend_from_slice(&part.whole);
                            }
                        }
                        _ => bytes.extend_from_slice(&part.whole),
                    }
                }
                if !wrote_inputs {
                    for name in inputs {
                        bytes.extend_from_slice(&delimited(number::NODE_INPUT, name.as_bytes()));
                    }
                }
                for attribute in open.into_values() {
                    bytes.extend_from_slice(&delimited(number::NODE_ATTRIBUTE, &attribute.encode_to_vec()));
                }
                push(chunks, delimited(number::GRAPH_NODE, &bytes));
            }
        }
    }
}

fn write_tensors(
    chunks: &mut Vec<Chunk>,
    model: &Model,
    edits: &Edits,
    tensors: &[&Field],
    mut external: Option<&mut ExternalData>,
) -> Result<(), Error> {
    for initializer in &edits.initializers {
        let parts = match initializer {
            InitializerOut::New(tensor) => {
                push(chunks, delimited(number::GRAPH_INITIALIZER, &tensor.encode_to_vec()));
                continue;
            }
            InitializerOut::Original(index) => {
                let (Some(field), Some(tensor)) = (tensors.get(*index), model.graph().initializer.get(*index)) else {
                    continue;
                };
                let moves = external.is_some() && tensor.element_type().byte_size().is_some();
                if !moves {
                    push(chunks, field.whole.clone());
                    continue;
                }
                tensor_chunks(model, tensor, &field.payload, &tensor.name, &[], external.as_deref_mut())?
            }
            InitializerOut::Sliced { index, name, axes } => {
                let (Some(field), Some(tensor)) = (tensors.get(*index), model.graph().initializer.get(*index)) else {
                    continue;
                };
                tensor_chunks(model, tensor, &field.payload, name, axes, external.as_deref_mut())?
            }
        };
        push(chunks, header(number::GRAPH_INITIALIZER, total(&parts)));
        chunks.extend(parts);
    }
    Ok(())
}

/// A tensor message with other sizes and elements; all fields that do not hold those are copied.
fn tensor_chunks(
    model: &Model,
    tensor: &TensorProto,
    message: &Bytes,
    name: &str,
    axes: &[(usize, Vec<usize>)],
    external: Option<&mut ExternalData>,
) -> Result<Vec<Chunk>, Error> {
    let sliced = Sliced::new(model, tensor, axes)?;
    let mut chunks = Vec::new();
    for size in sliced.dims() {
        push(&mut chunks, varint(number::TENSOR_DIMS, size));
    }
    for field in fields(message) {
        match field.tag {
            number::TENSOR_DIMS
            | number::TENSOR_RAW_DATA
            | number::TENSOR_EXTERNAL_DATA
            | number::TENSOR_DATA_LOCATION => {}
            tag if number::TENSOR_TYPED.contains(&tag) => {}
            number::TENSOR_NAME => push(&mut chunks, delimited(number::TENSOR_NAME, name.as_bytes())),
            _ => push(&mut chunks, field.whole),
        }
    }
    match external.filter(|_| sliced.len() >= EXTERNAL_MINIMUM) {
        Some(external) => {
            let (location, offset, length) = external.add(Chunk::Sliced(sliced));
            let entries = [("location", location), ("offset", offset.to_string()), ("length", length.to_string())];
            for (key, value) in entries {
                let entry = StringStringEntryProto { key: key.to_owned(), value };
                push(&mut chunks, delimited(number::TENSOR_EXTERNAL_DATA, &entry.encode_to_vec()));
            }
            push(&mut chunks, varint(number::TENSOR_DATA_LOCATION, DataLocation::External as i64));
        }
        None => {
            push(&mut chunks, header(number::TENSOR_RAW_DATA, sliced.len()));
            chunks.push(Chunk::Sliced(sliced));
        }
    }
    Ok(chunks)
}

/// A ValueInfoProto whose tensor type has another shape: `type` (2) → `tensor_type` (1) → `shape` (2) → `dim` (1).
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
                    // The denotation (3) and unknown fields stay; value (1) and name (2) go.
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
    let Some((tag, rest)) = path.split_first() else { return patch(message) };
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
