//! Computation of folded values in ONNX Runtime.

use std::collections::BTreeMap;

use prost::Message;

use super::{Fold, Part};
use crate::array::{Array, ElementType};
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};
use crate::onnx::{DataType, GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::runtime::{Optimization, Runtime, SessionOptions};

impl Fold {
    /// Computes the values for which `is_wanted` holds and the other values of their parts, unless they are computed
    /// already. ONNX Runtime is needed only if there are any.
    ///
    /// # Errors
    /// ONNX Runtime is not found or can't run the nodes.
    pub fn evaluate(
        &self,
        model: &Model,
        graph: &Graph,
        runtime: Option<&Runtime>,
        is_wanted: &dyn Fn(ValueId) -> bool,
    ) -> Result<(), Error> {
        for part in &self.parts {
            if part.tensors.get().is_some() || !part.values.iter().any(|value| is_wanted(*value)) {
                continue;
            }
            let runtime = runtime.ok_or_else(|| missing(model))?;
            let tensors = compute(model, graph, part, runtime)?;
            // Another thread may have been faster. It computed the same values.
            let _ = part.tensors.set(tensors);
        }
        Ok(())
    }
}

fn missing(model: &Model) -> Error {
    let text = "the network computes weights from constants, which needs ONNX Runtime, but no runtime was found";
    Error::runtime_missing(text)
        .in_file(model.path())
        .hint("install it with `pip install onnxruntime`, or set the path of its library with --onnxruntime")
}

fn compute(
    model: &Model,
    graph: &Graph,
    part: &Part,
    runtime: &Runtime,
) -> Result<BTreeMap<ValueId, TensorProto>, Error> {
    let mut needed = vec![false; graph.nodes.len()];
    let mut initializer = Vec::new();
    let mut seen = vec![false; graph.values.len()];
    let mut open: Vec<ValueId> = part.values.iter().copied().collect();
    while let Some(value) = open.pop() {
        if std::mem::replace(&mut seen[value], true) {
            continue;
        }
        match (graph.values[value].producer, graph.values[value].initializer) {
            (_, Some(index)) => initializer.extend(model.graph().initializer.get(index).cloned()),
            (Some((node, _)), None) => {
                needed[node] = true;
                open.extend(graph.nodes[node].inputs.iter().flatten());
            }
            (None, None) => {}
        }
    }
    let name = |value: &ValueId| graph.values[*value].name.clone();
    let output = part.values.iter().map(|value| ValueInfoProto { name: name(value), ..ValueInfoProto::default() });
    let proto = ModelProto {
        ir_version: model.proto().ir_version,
        opset_import: model.proto().opset_import.clone(),
        graph: Some(GraphProto {
            name: "constants".to_owned(),
            node: graph.nodes.iter().filter(|node| needed[node.id]).map(|node| node.proto.clone()).collect(),
            initializer,
            output: output.collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let options = SessionOptions {
        // The nodes run as stored, so that the weights are exactly those that the original network computes.
        optimization: Optimization::None,
        external_data_folder: Some(model.data_folder()),
        ..SessionOptions::default()
    };
    let first = part.values.first().map(name).unwrap_or_default();
    let fail = |cause: String| {
        let text = format!("can't compute the weight {first:?} from constants ahead of time: {cause}");
        Error::unmet(text).in_file(model.path())
    };
    let mut session = runtime
        .session_from_bytes(&model.located(&proto).encode_to_vec(), &options)
        .map_err(|error| fail(error.to_string()))?;
    let outputs = session.run(&[]).map_err(|error| fail(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for value in &part.values {
        let name = name(value);
        let array = outputs.iter().find(|(output, _)| *output == name).map(|(_, array)| array);
        let tensor = array.and_then(|array| tensor_of(&name, array));
        tensors.insert(
            *value,
            tensor.ok_or_else(|| fail("expected a floating-point result, found another type or none".to_owned()))?,
        );
    }
    Ok(tensors)
}

/// Converts an array to a floating-point tensor.
fn tensor_of(name: &str, array: &Array) -> Option<TensorProto> {
    let dtype = match array.element_type() {
        ElementType::F32 => DataType::Float,
        ElementType::F64 => DataType::Double,
        ElementType::F16 => DataType::Float16,
        ElementType::BF16 => DataType::Bfloat16,
        _ => return None,
    };
    let dims: Vec<i64> = array.dims.iter().map(|size| i64::try_from(*size)).collect::<Result<_, _>>().ok()?;
    let mut raw = Vec::new();
    array.data.append_bytes(&mut raw);
    Some(TensorProto::of_raw(name, dtype, &dims, raw))
}
