//! Digests of the part of a cut that has not changed.

use std::collections::BTreeMap;

use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AddedBias, ChangedWeight, ChangedWeights, names};
use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::write::whole_node;

/// Number of hexadecimal digits of a node's or initializer's digest, which only serves to find the one that differs.
const PART: usize = 16;

/// The digest of a cut without the weights that change: all nodes, all other initializers, and the inputs and outputs
/// of the graph.
///
/// It does not depend on how a file stores its tensors, on the order of initializers, or on names, descriptions and
/// metadata that do not affect the computation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutDigest {
    /// SHA-256 of the whole, in hexadecimal.
    pub sha256: String,
    /// The first 16 hexadecimal digits of the SHA-256 of every node, by its first output.
    pub nodes: BTreeMap<String, String>,
    /// The first 16 hexadecimal digits of the SHA-256 of every initializer that has not changed, by its name.
    pub tensors: BTreeMap<String, String>,
}

impl CutDigest {
    /// Computes the digest of a file without these weights and biases.
    ///
    /// # Errors
    /// Fails if a tensor can't be read.
    pub(crate) fn of(model: &Model, weights: &[ChangedWeight], biases: &[AddedBias]) -> Result<Self, Error> {
        let changed = names(weights, biases);
        let mut all = Sha256::new();
        all.update(interface(model));
        let mut digest = Self { sha256: String::new(), nodes: BTreeMap::new(), tensors: BTreeMap::new() };
        for node in &model.graph().node {
            // The weight is a Constant node in the cut, and an initializer after it has changed.
            if changed.contains(node.first_output()) {
                continue;
            }
            let hash = Sha256::digest(canonical(model, node, biases)?);
            all.update(hash);
            digest.nodes.insert(node.first_output().to_owned(), part(&hash));
        }
        let tensors = model.graph().initializer.iter().filter(|tensor| !changed.contains(tensor.name.as_str()));
        let by_name: BTreeMap<&str, &TensorProto> = tensors.map(|tensor| (tensor.name.as_str(), tensor)).collect();
        for (name, tensor) in by_name {
            let hash = tensor_hash(model, tensor)?;
            all.update(hash);
            digest.tensors.insert(name.to_owned(), part(&hash));
        }
        digest.sha256 = hex(&all.finalize());
        Ok(digest)
    }

    /// Describes a difference to the digest `found` of another file; `None` if there is none.
    pub(crate) fn difference(&self, found: &Self) -> Option<String> {
        if self.sha256 == found.sha256 {
            return None;
        }
        let text = |name: &String, what: &str, parts: &BTreeMap<String, String>, others: &BTreeMap<String, String>| {
            Some(match (parts.get(name), others.get(name)) {
                (Some(a), Some(b)) if a == b => return None,
                (Some(_), Some(_)) => {
                    format!("{what} {name:?} differs from the verified cut, but is not listed as changed")
                }
                (Some(_), None) => format!("{what} {name:?} of the verified cut is missing"),
                _ => format!("{what} {name:?} is not in the verified cut, and is not listed as new"),
            })
        };
        let tensors = self.tensors.keys().chain(found.tensors.keys());
        let mut tensors = tensors.filter_map(|name| text(name, "initializer", &self.tensors, &found.tensors));
        let nodes = self.nodes.keys().chain(found.nodes.keys());
        let mut nodes = nodes.filter_map(|name| text(name, "the node with output", &self.nodes, &found.nodes));
        let other = || "inputs, outputs, operator sets or the order of nodes differ from the verified cut".to_owned();
        Some(tensors.next().or_else(|| nodes.next()).unwrap_or_else(other))
    }
}

impl ChangedWeights {
    /// Describes a difference between a file and the verified cut that is not listed as changed; `None` if there is
    /// none.
    ///
    /// # Errors
    /// Fails if a tensor can't be read.
    pub(crate) fn unnamed_difference(&self, file: &Model) -> Result<Option<String>, Error> {
        Ok(self.cut.difference(&CutDigest::of(file, &self.weights, &self.biases)?))
    }
}

/// Encodes the inputs and outputs of the graph, and its operator sets.
fn interface(model: &Model) -> Vec<u8> {
    let (proto, graph) = (model.proto(), model.graph());
    let mut opset_import = proto.opset_import.clone();
    opset_import.sort_by(|a, b| a.domain.cmp(&b.domain));
    let graph = GraphProto {
        input: graph.input.clone(),
        output: graph.output.clone(),
        sparse_initializer: graph.sparse_initializer.clone(),
        ..GraphProto::default()
    };
    let model = ModelProto { ir_version: proto.ir_version, opset_import, graph: Some(graph), ..ModelProto::default() };
    model.encode_to_vec()
}

/// Encodes a node in a canonical form, without the biases that were added.
fn canonical(model: &Model, node: &NodeProto, biases: &[AddedBias]) -> Result<Vec<u8>, Error> {
    let mut node = NodeProto { doc_string: String::new(), ..node.clone() };
    let output = node.first_output().to_owned();
    for bias in biases.iter().filter(|bias| output == bias.node) {
        if let Some(input) = node.input.get_mut(bias.slot).filter(|input| **input == bias.name) {
            input.clear();
        }
    }
    while node.input.pop_if(|input| input.is_empty()).is_some() {}
    node.attribute.sort_by(|a, b| a.name.cmp(&b.name));
    if !model.has_external_files() {
        return Ok(node.encode_to_vec());
    }
    let whole = NodeProto::decode(whole_node(model, &node)?).map_err(|error| {
        Error::invalid(model.path(), format!("node {:?} can't be decoded: {error}", node.name)).caused_by(error)
    })?;
    Ok(whole.encode_to_vec())
}

fn tensor_hash(model: &Model, tensor: &TensorProto) -> Result<[u8; 32], Error> {
    let mut hash = Sha256::new();
    let name = tensor.name.as_bytes();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    hash.update(tensor.data_type.to_le_bytes());
    hash.update((tensor.dims.len() as u64).to_le_bytes());
    tensor.dims.iter().for_each(|size| hash.update(size.to_le_bytes()));
    if tensor.element_type() == DataType::String {
        let strings = TensorProto { string_data: tensor.string_data.clone(), ..TensorProto::default() };
        hash.update(strings.encode_to_vec());
    } else {
        hash.update(&*model.tensor_bytes(tensor)?);
    }
    Ok(hash.finalize().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn part(hash: &[u8]) -> String {
    hex(&hash[..PART / 2])
}
