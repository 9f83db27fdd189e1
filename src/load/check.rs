//! Checks of a decoded model: every name is defined once and before the graph needs it, no cycles, constants that
//! fill their shapes.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::Model;
use crate::error::Error;
use crate::onnx::{DataLocation, DataType, GraphProto, NodeProto, TensorProto};

/// The oldest opset whose operators the rules describe.
const OLDEST_OPSET: i64 = 9;

/// The largest size of a tensor without elements.
const LARGEST_EMPTY: i64 = 1 << 20;

pub(super) fn check(model: &Model) -> Result<(), Error> {
    let fail = |message: String| Error::input(model.path(), message);
    let graph = model.graph();
    if graph.node.is_empty() {
        return Err(fail("the graph is empty: it has no nodes".to_owned()));
    }
    match model.opset("") {
        None => return Err(fail("the model imports no standard operator set (domain ai.onnx)".to_owned())),
        Some(version) if version < OLDEST_OPSET => {
            return Err(fail(format!("expected opset {OLDEST_OPSET} or newer, found {version}"))
                .hint("export it again, or convert it with onnx.version_converter"));
        }
        Some(_) => {}
    }
    check_names(graph).map_err(fail)?;
    for tensor in &graph.initializer {
        check_tensor(model, tensor)?;
    }
    for node in &graph.node {
        for tensor in inner_tensors(node) {
            let at_node = |error: Error| error.at_node(&node.name, node.op_type.clone());
            if tensor.data_location == DataLocation::External as i32 {
                let text = format!("tensor {:?}: only initializers of the main graph may be external data", tensor.name);
                return Err(at_node(fail(text)).hint("load and save it with onnx.save to bring the tensor into the file"));
            }
            check_tensor(model, tensor).map_err(at_node)?;
        }
    }
    Ok(())
}

/// The tensors in the attributes of a node and in its subgraphs.
fn inner_tensors(node: &NodeProto) -> Vec<&TensorProto> {
    let mut tensors = Vec::new();
    for attribute in &node.attribute {
        tensors.extend(attribute.t.iter().chain(&attribute.tensors));
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            tensors.extend(&graph.initializer);
            tensors.extend(graph.node.iter().flat_map(inner_tensors));
        }
    }
    tensors
}

fn check_names(graph: &GraphProto) -> Result<(), String> {
    let mut defined: HashMap<&str, String> = HashMap::new();
    for tensor in &graph.initializer {
        if defined.insert(&tensor.name, "an initializer".to_owned()).is_some() {
            return Err(format!("two initializers are named {:?}", tensor.name));
        }
    }
    for tensor in graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref()) {
        if let Some(other) = defined.insert(&tensor.name, "a sparse initializer".to_owned()) {
            return Err(format!("value {:?} is defined twice: by {other} and by a sparse initializer", tensor.name));
        }
    }
    let mut inputs = HashSet::new();
    for input in &graph.input {
        if !inputs.insert(&input.name) {
            return Err(format!("two graph inputs are named {:?}", input.name));
        }
        defined.entry(&input.name).or_insert_with(|| "a graph input".to_owned());
    }
    for node in &graph.node {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            let by = format!("node {:?} ({})", node.name, node.op_type);
            if let Some(other) = defined.insert(output, by.clone()) {
                return Err(format!("value {output:?} is defined twice: by {other} and by {by}"));
            }
        }
    }
    for node in &graph.node {
        let mut reads: BTreeSet<&str> = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
        outer_reads(node, &mut reads);
        for name in reads {
            if !defined.contains_key(name) {
                let at = format!("node {:?} ({})", node.name, node.op_type);
                return Err(format!("{at} reads value {name:?}, which nothing defines"));
            }
        }
    }
    for output in &graph.output {
        if !defined.contains_key(output.name.as_str()) {
            return Err(format!("graph output {:?} is not defined by anything", output.name));
        }
    }
    Ok(())
}

/// Adds the names that the subgraphs of a node read from outside.
fn outer_reads<'a>(node: &'a NodeProto, reads: &mut BTreeSet<&'a str>) {
    for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
        let mut inner: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        inner.extend(graph.input.iter().map(|input| input.name.as_str()));
        inner.extend(graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)));
        let mut wanted = BTreeSet::new();
        for node in &graph.node {
            wanted.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
            outer_reads(node, &mut wanted);
        }
        wanted.extend(graph.output.iter().map(|output| output.name.as_str()));
        reads.extend(wanted.into_iter().filter(|name| !inner.contains(name)));
    }
}

fn check_tensor(model: &Model, tensor: &TensorProto) -> Result<(), Error> {
    let fail = |message: String| Error::input(model.path(), format!("tensor {:?}: {message}", tensor.name));
    if let Some(size) = tensor.dims.iter().find(|size| **size < 0) {
        return Err(fail(format!("its shape {:?} has the negative size {size}", tensor.dims)));
    }
    // Sizes of zero count as one, so that no product of some of the sizes overflows either.
    let element = tensor.element_type().byte_size().unwrap_or(1) as i64;
    let fits = tensor.dims.iter().try_fold(element, |bytes, size| bytes.checked_mul(*size.max(&1)));
    if fits.is_none() {
        return Err(fail(format!("its shape {:?} has more elements than any memory", tensor.dims)));
    }
    // Only the data bounds the sizes, and where one size is zero there is none.
    if tensor.dims.contains(&0) && tensor.dims.iter().any(|size| *size > LARGEST_EMPTY) {
        return Err(fail(format!("its shape {:?} names a large size but no elements", tensor.dims)));
    }
    if tensor.data_location == DataLocation::External as i32 {
        let bytes = model.tensor_view(tensor)?;
        let count = tensor.dims.iter().product::<i64>();
        if u64::try_from(count).is_ok_and(|count| count > bytes.len() as u64 * 8) {
            return Err(fail(format!("expected {count} elements for shape {:?}, found fewer", tensor.dims)));
        }
        return Ok(());
    }
    let Some(expected) = byte_length(tensor) else {
        // Strings, and types of less than a byte: at least one bit holds an element.
        let held = 8 * (tensor.raw_data.len() + tensor.int32_data.len() * 4) + tensor.string_data.len();
        let count = tensor.dims.iter().product::<i64>();
        if u64::try_from(count).is_ok_and(|count| count > held as u64) {
            return Err(fail(format!("expected {count} elements for shape {:?}, found fewer", tensor.dims)));
        }
        return Ok(());
    };
    let found = inline_length(tensor);
    if found != expected {
        let dims = &tensor.dims;
        let text = format!("expected {expected} bytes for shape {dims:?} of {}, found {found}", tensor.element_type().spec_name());
        return Err(fail(text));
    }
    Ok(())
}

/// Bytes that the elements of a tensor take; `None` for types without a size in whole bytes.
pub(super) fn byte_length(tensor: &TensorProto) -> Option<u64> {
    let element = tensor.element_type().byte_size()? as u64;
    tensor.dims.iter().try_fold(element, |bytes, size| bytes.checked_mul(u64::try_from(*size).ok()?))
}

fn inline_length(tensor: &TensorProto) -> u64 {
    if !tensor.raw_data.is_empty() {
        return tensor.raw_data.len() as u64;
    }
    let element = tensor.element_type().byte_size().unwrap_or(1);
    let count = match tensor.element_type() {
        DataType::Float => tensor.float_data.len(),
        DataType::Complex64 => tensor.float_data.len() / 2,
        DataType::Double => tensor.double_data.len(),
        DataType::Complex128 => tensor.double_data.len() / 2,
        DataType::Int64 => tensor.int64_data.len(),
        DataType::Uint32 | DataType::Uint64 => tensor.uint64_data.len(),
        _ => tensor.int32_data.len(),
    };
    (count * element) as u64
}

/// The elements of a tensor that is not external, little-endian.
pub(super) fn inline_bytes(tensor: &TensorProto) -> Cow<'_, [u8]> {
    if !tensor.raw_data.is_empty() {
        return Cow::Borrowed(&tensor.raw_data);
    }
    let narrow = |size: usize| tensor.int32_data.iter().flat_map(move |value| value.to_le_bytes().into_iter().take(size));
    Cow::Owned(match tensor.element_type() {
        DataType::Float | DataType::Complex64 => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::Double | DataType::Complex128 => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::Int64 => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::Uint64 => tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DataType::Uint32 => tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(4)).collect(),
        other => narrow(other.byte_size().unwrap_or(4)).collect(),
    })
}
