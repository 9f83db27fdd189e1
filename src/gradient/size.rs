//! Sizes in bytes of the inputs and outputs of a gradient graph.

use super::GradientGraph;
use crate::macs::memory::float32_bytes;
use crate::onnx::{ValueInfoProto, tensor_shape_proto, type_proto};

impl GradientGraph {
    /// Returns the size of the graph's constants in bytes, in float32.
    pub fn weight_bytes(&self) -> u64 {
        let graph = self.model.graph.as_ref();
        let sizes = graph.into_iter().flat_map(|graph| &graph.initializer).map(|tensor| float32_bytes(&tensor.dims));
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns the size in bytes of the outputs that hold gradients, or sums of them.
    pub fn gradient_bytes(&self) -> u64 {
        let outputs = self.model.graph.as_ref().into_iter().flat_map(|graph| &graph.output);
        outputs.map(|output| float32_bytes(&dims(output))).fold(0, u64::saturating_add)
    }
}

/// Returns the sizes of a value. A gradient graph has no symbolic sizes.
fn dims(of: &ValueInfoProto) -> Vec<i64> {
    use tensor_shape_proto::dimension::Value;
    let kind = of.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = kind else { return Vec::new() };
    let size = |value: &Option<Value>| match value {
        Some(Value::DimValue(size)) => *size,
        _ => 0,
    };
    tensor.shape.iter().flat_map(|shape| &shape.dim).map(|dim| size(&dim.value)).collect()
}
