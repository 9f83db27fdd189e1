//! The runtimes that a network is made ready for, and the precisions that it is brought to.

use serde::Serialize;

use super::quantize::Style;
use crate::error::Error;
use crate::onnx::DataType;

/// What runs the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DeployTarget {
    /// NVIDIA TensorRT: an engine that is built on the machine with the GPU, or ONNX Runtime's TensorRT provider.
    Tensorrt,
    /// TensorRT for RTX: an engine that is built on any machine.
    TensorrtRtx,
    /// ONNX Runtime's CUDA provider.
    OrtCuda,
    /// ONNX Runtime's DirectML provider on Windows.
    Directml,
    /// OpenVINO.
    Openvino,
    /// ONNX Runtime Web, with WebGPU or WebNN.
    Web,
    /// ONNX Runtime on the CPU.
    Cpu,
}

impl DeployTarget {
    /// The name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensorrt => "tensorrt",
            Self::TensorrtRtx => "tensorrt-rtx",
            Self::OrtCuda => "ort-cuda",
            Self::Directml => "directml",
            Self::Openvino => "openvino",
            Self::Web => "web",
            Self::Cpu => "cpu",
        }
    }

    /// The precision where none is asked for: half precision on GPUs; on processors, ONNX Runtime computes float16 in float32,
    /// and OpenVINO chooses by itself.
    pub fn default_precision(self) -> DeployPrecision {
        match self {
            Self::Openvino | Self::Cpu => DeployPrecision::Float32,
            _ => DeployPrecision::Float16,
        }
    }

    /// The form of quantised layers that it takes. ONNX Runtime joins a layer with the pairs around it only where its output
    /// and its bias are integers too; TensorRT and OpenVINO ask for less, and TensorRT for activations about zero.
    pub fn quantized_style(self) -> Style {
        match self {
            Self::Tensorrt | Self::TensorrtRtx | Self::OrtCuda => {
                Style { is_symmetric: true, quantizes_outputs: false, quantizes_biases: false }
            }
            Self::Openvino => Style { is_symmetric: false, quantizes_outputs: false, quantizes_biases: false },
            Self::Directml | Self::Web | Self::Cpu => {
                Style { is_symmetric: false, quantizes_outputs: true, quantizes_biases: true }
            }
        }
    }

    /// Refuses a precision that the target computes nowhere: WebGPU's shading language has no bfloat16 (WGSL, section 6.2, has f32
    /// and f16), nor has WebNN's `MLOperandDataType`, and DirectML's `DML_TENSOR_DATA_TYPE` has none either.
    ///
    /// # Errors
    /// See above.
    pub fn check_precision(self, precision: DeployPrecision) -> Result<(), Error> {
        match (self, precision) {
            (Self::Web | Self::Directml, DeployPrecision::Bfloat16) => {
                Err(Error::usage(format!("--precision bfloat16: {} does not compute in it", self.name()))
                    .hint("take float16"))
            }
            _ => Ok(()),
        }
    }

    /// Whether an engine is built, which needs a profile.
    pub fn builds_engine(self) -> bool {
        matches!(self, Self::Tensorrt | Self::TensorrtRtx)
    }
}

/// The precision of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DeployPrecision {
    /// As the file has it.
    #[cfg_attr(feature = "cli", value(alias = "fp32"))]
    Float32,
    /// Weights and activations in float16, but for what it does not hold.
    #[cfg_attr(feature = "cli", value(alias = "fp16"))]
    Float16,
    /// The same in bfloat16.
    #[cfg_attr(feature = "cli", value(alias = "bf16"))]
    Bfloat16,
    /// Linear layers in int8, but for those that it costs too much; everything else as the file has it.
    Int8,
}

impl DeployPrecision {
    /// The name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// The type of half precision, if it is one.
    pub fn half_type(self) -> Option<DataType> {
        match self {
            Self::Float16 => Some(DataType::Float16),
            Self::Bfloat16 => Some(DataType::Bfloat16),
            Self::Float32 | Self::Int8 => None,
        }
    }
}
