//! Copies of tensors to, from and within the memory of a device.

use prost::Message;

use super::Runtime;
use super::bound::{BoundSession, DeviceTensor};
use super::device::Device;
use super::error::RuntimeError;
use super::session::{Optimization, SessionOptions};
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto, type_proto,
};

/// Copies float32 tensors of any shape. Tensors that can be read in place are copied as memory. For a device, a graph of
/// one Identity (ONNX, opset 13) copies them; its input and output may be bound in either memory.
#[derive(Debug)]
pub struct Transfer {
    graph: Option<BoundSession>,
}

impl Transfer {
    /// Prepares copies for the tensors of a device. On the CPU no graph is needed.
    ///
    /// # Errors
    /// The device can't be used.
    pub fn new(runtime: &Runtime, device: Device) -> Result<Self, RuntimeError> {
        match device {
            Device::Cpu => Ok(Self { graph: None }),
            _ => Self::by_graph(runtime, device),
        }
    }

    /// As [`Transfer::new`], but uses the graph on the CPU too.
    ///
    /// # Errors
    /// As [`Transfer::new`].
    pub fn by_graph(runtime: &Runtime, device: Device) -> Result<Self, RuntimeError> {
        // Without optimisation the node is not removed: it copies.
        let options = SessionOptions { optimization: Optimization::None, device, ..SessionOptions::default() };
        let session = runtime.session_from_bytes(&identity().encode_to_vec(), &options)?;
        Ok(Self { graph: Some(BoundSession::new(session)?) })
    }

    /// Copies elements from the CPU's memory.
    ///
    /// # Errors
    /// The tensor has another number of elements, or the copy fails.
    pub fn write(&mut self, values: &[f32], to: &mut DeviceTensor) -> Result<(), RuntimeError> {
        check(values.len(), to)?;
        let Some(graph) = &mut self.graph else {
            to.values_mut()?.copy_from_slice(values);
            return Ok(());
        };
        let mut from = graph.host_tensor(to.dims())?;
        from.values_mut()?.copy_from_slice(values);
        run(graph, &from, to)
    }

    /// Returns the elements of a tensor.
    ///
    /// # Errors
    /// The copy fails.
    pub fn read(&mut self, from: &DeviceTensor) -> Result<Vec<f32>, RuntimeError> {
        let Some(graph) = &mut self.graph else { return Ok(from.values()?.to_vec()) };
        let mut to = graph.host_tensor(from.dims())?;
        run(graph, from, &mut to)?;
        Ok(to.values()?.to_vec())
    }

    /// Copies a tensor within the memory of the device.
    ///
    /// # Errors
    /// The tensors have different numbers of elements, or the copy fails.
    pub fn copy(&mut self, from: &DeviceTensor, to: &mut DeviceTensor) -> Result<(), RuntimeError> {
        check(from.dims().iter().product(), to)?;
        match &mut self.graph {
            Some(graph) => run(graph, from, to),
            None => {
                to.values_mut()?.copy_from_slice(from.values()?);
                Ok(())
            }
        }
    }
}

fn check(expected: usize, to: &DeviceTensor) -> Result<(), RuntimeError> {
    let found: usize = to.dims().iter().product();
    if expected == found {
        return Ok(());
    }
    let message = format!("expected a tensor of {expected} elements to copy to, found one of {found}");
    Err(RuntimeError::RunFailed { message })
}

fn run(graph: &mut BoundSession, from: &DeviceTensor, to: &mut DeviceTensor) -> Result<(), RuntimeError> {
    graph.bind_input("from", from)?;
    graph.bind_output("to", to)?;
    let result = graph.run();
    // Bound tensors would not be freed.
    graph.unbind();
    result
}

/// Returns the graph `to = Identity(from)` for any shape.
fn identity() -> ModelProto {
    let info = |name: &str| {
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: None };
        let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..ValueInfoProto::default() }
    };
    let node = NodeProto {
        name: "copy".to_owned(),
        op_type: "Identity".to_owned(),
        input: vec!["from".to_owned()],
        output: vec!["to".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "copy".to_owned(),
        node: vec![node],
        input: vec![info("from")],
        output: vec![info("to")],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() }],
        ..ModelProto::default()
    }
}
