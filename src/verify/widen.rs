//! Models of half precision, computed in single precision.
//!
//! In half precision, rounding alone causes differences as large as those of one wrong channel. Both compared networks
//! therefore also run *widened*: every weight is cast up where it enters the graph, and every type that the graph names
//! as float16 or bfloat16 becomes float32. Casting up is exact and the same for both, so the compared numbers are still
//! those of the two files.

use crate::array::{Array, ElementType};
use crate::graph::tensor::stored_bytes;
use crate::onnx::floats::Floats;
use crate::onnx::names::Names;
use crate::onnx::type_proto::Value;
use crate::onnx::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, attr_int};

/// Whether an element type has half the size of a float32.
pub(super) fn is_half(element_type: i32) -> bool {
    element_type == DataType::Float16 as i32 || element_type == DataType::Bfloat16 as i32
}

/// Changes a model to compute in float32 what it computes in float16 or bfloat16. Its half precision inputs and outputs
/// become float32 too. Initializers, also in external files, remain unchanged and are cast in the graph.
///
/// Functions local to the model must have been inlined.
pub(super) fn widen(model: &mut ModelProto) {
    if let Some(graph) = model.graph.as_mut() {
        let mut names = Names::of_graph(graph);
        widen_graph(graph, &mut names);
    }
}

/// Converts an input to the type that a widened model takes.
pub(super) fn widen_array(array: &Array) -> Array {
    match array.element_type() {
        ElementType::F16 | ElementType::BF16 => array.cast(ElementType::F32),
        _ => array.clone(),
    }
}

fn widen_graph(graph: &mut GraphProto, names: &mut Names) {
    let mut casts = Vec::new();
    for tensor in graph.initializer.iter_mut().filter(|tensor| is_half(tensor.data_type)) {
        let narrow = names.fresh(&format!("{}/__narrow", tensor.name));
        casts.push(NodeProto {
            op_type: "Cast".to_owned(),
            name: names.fresh(&format!("{}/__widen", tensor.name)),
            input: vec![narrow.clone()],
            output: vec![std::mem::replace(&mut tensor.name, narrow)],
            attribute: vec![attr_int("to", DataType::Float as i64)],
            ..NodeProto::default()
        });
    }
    // Files of old IR versions list initializers among the inputs, as defaults; nothing else is ever fed to them.
    graph.input.retain(|input| !casts.iter().any(|cast| cast.output[0] == input.name));
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(declared) = value.r#type.as_mut() {
            widen_type(declared);
        }
    }
    // The declared types of intermediate values would contradict their new types.
    graph.value_info.clear();
    for node in &mut graph.node {
        node.attribute.iter_mut().for_each(|attribute| widen_attribute(attribute, names));
    }
    graph.node.splice(0..0, casts);
}

fn widen_type(declared: &mut TypeProto) {
    match declared.value.as_mut() {
        Some(Value::TensorType(tensor)) if is_half(tensor.elem_type) => tensor.elem_type = DataType::Float as i32,
        Some(Value::SequenceType(sequence)) => {
            if let Some(element) = sequence.elem_type.as_mut() {
                widen_type(element);
            }
        }
        Some(Value::OptionalType(optional)) => {
            if let Some(element) = optional.elem_type.as_mut() {
                widen_type(element);
            }
        }
        _ => {}
    }
}

/// Attributes with which operators name their output type. They are integers from `TensorProto.DataType`.
pub(super) const TYPE_ATTRIBUTES: [&str; 4] = ["to", "dtype", "output_dtype", "output_datatype"];

fn widen_attribute(attribute: &mut AttributeProto, names: &mut Names) {
    if TYPE_ATTRIBUTES.contains(&attribute.name.as_str())
        && attribute.i.is_some_and(|code| i32::try_from(code).is_ok_and(is_half))
    {
        attribute.i = Some(DataType::Float as i64);
    }
    for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        widen_tensor(tensor);
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        widen_graph(graph, names);
    }
}

/// Converts a constant of a node. One in an external file remains unchanged; ONNX Runtime then rejects the model.
fn widen_tensor(tensor: &mut TensorProto) {
    if !is_half(tensor.data_type) || !tensor.external_data.is_empty() {
        return;
    }
    let Some(wide) = Floats::of(tensor.element_type(), &stored_bytes(tensor)).map(Floats::to_f32) else { return };
    *tensor = TensorProto::of_floats(&tensor.name, &wide, &tensor.dims);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::onnx::attr_tensor;

    fn half_tensor(values: &[f32]) -> TensorProto {
        TensorProto::of_halves("w", values, &[values.len() as i64])
    }

    #[test]
    fn initializers_are_cast_where_they_enter() {
        let graph = GraphProto { initializer: vec![half_tensor(&[1.5])], ..GraphProto::default() };
        let mut model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        widen(&mut model);
        let graph = model.graph.unwrap();
        assert_eq!(graph.initializer[0].name, "w/__narrow");
        assert_eq!((graph.node[0].op_type.as_str(), graph.node[0].output[0].as_str()), ("Cast", "w"));
        assert_eq!(graph.node[0].int("to"), Some(1));
    }

    #[test]
    fn new_names_differ_from_those_of_the_file() {
        let node = NodeProto { output: vec!["w/__narrow".to_owned()], ..NodeProto::default() };
        let graph = GraphProto { node: vec![node], initializer: vec![half_tensor(&[1.5])], ..GraphProto::default() };
        let mut model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        widen(&mut model);
        assert_eq!(model.graph.unwrap().initializer[0].name, "w/__narrow_1");
    }

    #[test]
    fn constants_of_nodes_and_named_types_become_float32() {
        let mut by_integers = half_tensor(&[]);
        by_integers.dims = vec![2];
        by_integers.int32_data = vec![0x3E00, 0xC000];
        let mut attributes = [
            attr_tensor("value", half_tensor(&[1.5, -2.0])),
            attr_tensor("value", by_integers),
            attr_int("to", DataType::Bfloat16 as i64),
            attr_int("axis", DataType::Float16 as i64),
        ];
        attributes.iter_mut().for_each(|attribute| widen_attribute(attribute, &mut Names::default()));
        let expected = TensorProto::of_floats("w", &[1.5, -2.0], &[2]);
        assert_eq!(attributes[0].t.as_ref(), Some(&expected));
        assert_eq!(attributes[1].t.as_ref(), Some(&expected));
        assert_eq!(attributes[2].i, Some(1));
        assert_eq!(attributes[3].i, Some(10), "not a type, only the same number");
    }
}
