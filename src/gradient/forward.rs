//! The forward pass in float32: weights, constants and casts of half or double precision become float32.
//!
//! Sums of products of half precision gradients lose most of their digits, and not every execution provider has half
//! precision kernels. Gradients are therefore computed in float32 unless [`super::Precision`] asks for other factors.

use crate::error::Error;
use crate::graph::fact::is_float;
use crate::graph::model::Model;
use crate::onnx::floats::Floats;
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto, type_proto};

/// Returns the element type in which values of type `dtype` are computed.
pub(crate) fn widened_type(dtype: DataType) -> DataType {
    if is_float(dtype) { DataType::Float } else { dtype }
}

/// Returns the node with every tensor and element type in its attributes converted to float32, including its bodies.
pub(crate) fn widened_node(model: &Model, node: &NodeProto) -> Result<NodeProto, Error> {
    let mut node = node.clone();
    for attribute in &mut node.attribute {
        // In every standard operator that has them, `to` and `dtype` hold element types.
        if let (true, Some(code)) = (["to", "dtype"].contains(&attribute.name.as_str()), attribute.i) {
            let dtype = i32::try_from(code).ok().and_then(|code| DataType::try_from(code).ok());
            attribute.i = Some(dtype.map_or(code, |dtype| widened_type(dtype) as i64));
        }
        if let Some(tensor) = &attribute.t {
            attribute.t = Some(widened_tensor(model, tensor)?);
        }
        for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            widen_body(model, body)?;
        }
    }
    Ok(node)
}

/// Converts everything in the body of an If, Loop or Scan to float32.
fn widen_body(model: &Model, body: &mut GraphProto) -> Result<(), Error> {
    for node in &mut body.node {
        *node = widened_node(model, node)?;
    }
    for tensor in &mut body.initializer {
        *tensor = widened_tensor(model, tensor)?;
    }
    for value in body.input.iter_mut().chain(&mut body.output).chain(&mut body.value_info) {
        let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
        if let Some(type_proto::Value::TensorType(tensor)) = kind
            && let Ok(dtype) = DataType::try_from(tensor.elem_type)
        {
            tensor.elem_type = widened_type(dtype) as i32;
        }
    }
    Ok(())
}

/// Converts a tensor to float32 if it has another floating-point type. External data that is float32 already is not
/// copied.
pub(crate) fn widened_tensor(model: &Model, tensor: &TensorProto) -> Result<TensorProto, Error> {
    let dtype = tensor.element_type();
    if widened_type(dtype) == dtype {
        return Ok(tensor.clone());
    }
    Ok(floats(model, tensor)?
        .map_or_else(|| tensor.clone(), |values| TensorProto::of_floats(&tensor.name, &values, &tensor.dims)))
}

/// Returns the elements of a floating-point tensor. `None`: the tensor has another type.
pub(super) fn floats(model: &Model, tensor: &TensorProto) -> Result<Option<Vec<f32>>, Error> {
    let bytes = model.tensor_bytes(tensor)?;
    Ok(Floats::of(tensor.element_type(), &bytes).map(Floats::to_f32))
}
