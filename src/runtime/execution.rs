//! The device and providers that a session really uses, compared with the requested device.

use std::fmt;
use std::path::PathBuf;

use prost::Message;

use super::Runtime;
use super::device::Device;
use super::error::RuntimeError;
use super::placement::{Placement, counted};
use super::provider;
use super::session::{Optimization, SessionOptions};
use crate::array::{Array, ArrayData};
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};

/// The device and providers that a session really uses, compared with the requested device.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The requested device.
    pub requested: Device,
    /// The device that is used. If it is not the requested one, all nodes run on the CPU.
    pub used: Device,
    /// Why another device is used than the requested one. `None`: the requested one is used.
    pub reason: Option<String>,
    /// The providers and the nodes that they run. `None`: they were not recorded.
    pub placement: Option<Placement>,
}

impl fmt::Display for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.used)?;
        if self.used != self.requested {
            write!(f, " instead of {}", self.requested)?;
        }
        if let Some(placement) = &self.placement {
            write!(f, " ({placement})")?;
            let fallen = placement.fallen_back(self.used);
            if !fallen.is_empty() {
                write!(f, ", not on the device: {}", counted(&fallen))?;
            }
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceStatus {
    /// The device.
    pub device: Device,
    /// Why it can't be used. `None`: it can.
    pub refused: Option<String>,
    /// The libraries that were loaded for it.
    pub preloaded: Vec<PathBuf>,
}

/// Returns an error if nodes that compute run elsewhere than on the device, or if that is not known.
pub(super) fn verdict(device: Device, placement: Option<&Placement>) -> Result<(), RuntimeError> {
    let fell_back = |found: String| Err(RuntimeError::FellBack { device, found });
    if device == Device::Cpu {
        return Ok(());
    }
    let Some(placement) = placement else {
        return fell_back("this version of ONNX Runtime does not report where nodes run".to_owned());
    };
    let fallen = placement.fallen_back(device);
    if !fallen.is_empty() {
        return fell_back(format!("the CPU runs {} [{placement}]", counted(&fallen)));
    }
    if !placement.uses(device) {
        return fell_back(format!("it runs no node [{placement}]"));
    }
    Ok(())
}

/// Tests the device on a model of one node.
pub(super) fn status(runtime: &Runtime, device: Device) -> DeviceStatus {
    let tried = || -> Result<Vec<PathBuf>, RuntimeError> {
        let preloaded = provider::prepare(&runtime.library, device)?;
        let options = SessionOptions { device, optimization: Optimization::Basic, ..SessionOptions::default() };
        let mut session = runtime.session_from_bytes(&one_node().encode_to_vec(), &options)?;
        let values = Array { dims: vec![1, 1, 2, 2], data: ArrayData::F32(vec![1.0, 2.0, 3.0, 4.0]) };
        let outputs = session.run(&[("x".to_owned(), values)])?;
        match outputs.first().map(|(_, array)| &array.data) {
            Some(ArrayData::F32(found)) if *found == [2.0, 4.0, 6.0, 8.0] => Ok(preloaded),
            other => {
                let message = format!("the convolution of the test, 1, 2, 3, 4 times 2, returned {other:?}");
                Err(RuntimeError::RunFailed { message })
            }
        }
    };
    let refused = match tried() {
        Ok(preloaded) => return DeviceStatus { device, refused: None, preloaded },
        Err(RuntimeError::DeviceUnavailable { reason, .. }) => reason,
        Err(error) => error.to_string(),
    };
    DeviceStatus { device, refused: Some(refused), preloaded: Vec::new() }
}

/// Returns a model of `y = x * 2` for an image of 2x2, as a convolution: this needs the most libraries (cuDNN).
fn one_node() -> ModelProto {
    let value = |name: &str| {
        let dim = |size| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(size)),
            ..Default::default()
        };
        let shape = Some(TensorShapeProto { dim: [1, 1, 2, 2].map(dim).to_vec() });
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
        let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..Default::default() }
    };
    let node = NodeProto {
        op_type: "Conv".to_owned(),
        input: vec!["x".to_owned(), "w".to_owned()],
        output: vec!["y".to_owned()],
        ..Default::default()
    };
    let weight = TensorProto {
        name: "w".to_owned(),
        data_type: DataType::Float as i32,
        dims: vec![1, 1, 1, 1],
        raw_data: 2.0f32.to_le_bytes().to_vec().into(),
        ..Default::default()
    };
    let graph = GraphProto {
        name: "probe".to_owned(),
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        initializer: vec![weight],
        ..Default::default()
    };
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { version: 13, ..Default::default() }],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::placement::ProviderNodes;
    use super::*;

    fn all_on(provider: &str) -> Placement {
        let on = ProviderNodes { provider: provider.to_owned(), nodes: 3, operators: Default::default() };
        Placement { providers: vec![on] }
    }

    #[test]
    fn nothing_on_the_device_is_an_error() {
        let cuda = Device::Cuda(0);
        assert!(verdict(cuda, Some(&all_on("CUDAExecutionProvider"))).is_ok());
        assert!(verdict(Device::Cpu, None).is_ok());
        for (device, placement) in [
            (cuda, None),
            (cuda, Some(all_on("CPUExecutionProvider"))),
            (Device::TensorRt(0), Some(all_on("CUDAExecutionProvider"))),
        ] {
            let error = verdict(device, placement.as_ref()).unwrap_err();
            assert_eq!(error.kind(), super::super::RuntimeErrorKind::Device);
            assert!(error.hint().unwrap().contains("--allow-fallback"));
        }
    }

    #[test]
    fn a_report_names_the_requested_and_the_used_device() {
        let execution = Execution {
            requested: Device::Cuda(1),
            used: Device::Cpu,
            reason: Some("no driver".to_owned()),
            placement: None,
        };
        assert_eq!(execution.to_string(), "device cpu instead of cuda:1: no driver");
        let whole = Execution {
            requested: Device::Cuda(0),
            used: Device::Cuda(0),
            reason: None,
            placement: Some(all_on("CUDAExecutionProvider")),
        };
        assert_eq!(whole.to_string(), "device cuda (CUDAExecutionProvider: 3 nodes)");
    }
}
