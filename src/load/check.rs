//! Checks of a decoded model: supported opset, names, and constants whose data fills their shape.

use super::names;
use crate::error::Error;
use crate::graph::model::{Model, all_tensors};
use crate::graph::tensor;
use crate::onnx::{DataLocation, NodeProto, TensorProto};

/// The oldest opset that the operator rules cover.
const OLDEST_OPSET: i64 = 9;

/// Maximum product of the other sizes of a tensor without elements.
const LARGEST_EMPTY: i64 = 1 << 20;

pub(super) fn check(model: &Model) -> Result<(), Error> {
    let fail = |message: String| Error::malformed(model.path(), message);
    let graph = model.graph();
    if graph.node.is_empty() {
        return Err(fail("the graph is empty: it has no nodes".to_owned()));
    }
    check_operator_sets(model)?;
    names::check_names(graph).map_err(|(message, node)| match node {
        Some(node) => fail(message).at_node(&node_name(node), node.op_type.clone()),
        None => fail(message),
    })?;
    for (tensor, node) in all_tensors(graph) {
        check_tensor(model, tensor).map_err(|error| match node {
            Some(node) => error.at_node(&node_name(node), node.op_type.clone()),
            None => error,
        })?;
    }
    Ok(())
}

/// Returns the name of a node, or what it produces if it has no name.
fn node_name(node: &NodeProto) -> String {
    match node.output.first() {
        Some(output) if node.name.is_empty() => format!("producing {output}"),
        _ => node.name.clone(),
    }
}

fn check_operator_sets(model: &Model) -> Result<(), Error> {
    let fail = |message: String| Error::malformed(model.path(), message);
    match model.opset("") {
        None => {
            return Err(fail("the model does not import the standard operator set (domain ai.onnx)".to_owned()).hint(
                "the version decides what its operators mean: add the opset that it was exported for to opset_import, \
                 or export it again",
            ));
        }
        Some(version) if version < OLDEST_OPSET => {
            return Err(fail(format!("expected opset {OLDEST_OPSET} or newer, found {version}"))
                .hint("export the model again with a newer opset, or convert it with onnx.version_converter"));
        }
        Some(_) => {}
    }
    Ok(())
}

fn check_tensor(model: &Model, tensor: &TensorProto) -> Result<(), Error> {
    let fail = |message: String| Error::malformed(model.path(), format!("tensor {:?}: {message}", tensor.name));
    if tensor.segment.is_some() {
        return Err(fail("it is stored in segments, which are not supported".to_owned()));
    }
    let expected = tensor::byte_length(tensor).map_err(fail)?;
    // Only the stored data bounds the sizes, and a tensor with a size of zero has no data.
    let others = tensor.dims.iter().fold(1i64, |product, size| product.saturating_mul(*size.max(&1)));
    if tensor.dims.contains(&0) && others > LARGEST_EMPTY {
        return Err(fail(format!("its shape {:?} has a size of zero and other sizes that are too large", tensor.dims)));
    }
    if tensor.data_location == DataLocation::External as i32 {
        let bytes = model.tensor_bytes(tensor)?;
        return check_count(tensor, bytes.len().saturating_mul(8)).map_err(fail);
    }
    let Some(expected) = expected else {
        // Strings, and types of less than a byte.
        let bits = 8 * (tensor.raw_data.len() + 4 * tensor.int32_data.len());
        return check_count(tensor, bits + tensor.string_data.len()).map_err(fail);
    };
    let found = tensor::stored_length(tensor);
    if found != expected {
        let (dims, name) = (&tensor.dims, tensor.element_type().spec_name());
        return Err(fail(format!("expected {expected} bytes for shape {dims:?} of {name}, found {found}")));
    }
    Ok(())
}

/// Checks a tensor whose type has no size in whole bytes: it can't have more elements than its data has bits.
fn check_count(tensor: &TensorProto, most: usize) -> Result<(), String> {
    let count = tensor.dims.iter().try_fold(1usize, |count, size| count.checked_mul(usize::try_from(*size).ok()?));
    match count {
        Some(count) if count <= most => Ok(()),
        _ => Err(format!("its data is too short for shape {:?}", tensor.dims)),
    }
}
