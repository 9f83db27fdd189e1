//! The runtimes for which networks are prepared, and the precisions to which they are converted.

use serde::Serialize;

use super::quantize::Style;
use crate::error::Error;
use crate::onnx::DataType;

/// The runtime of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DeployTarget {
    /// NVIDIA TensorRT: an engine built on the machine with the GPU, or ONNX Runtime's TensorRT provider.
    Tensorrt,
    /// TensorRT for RTX: an engine built on any machine.
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
    /// Returns the name used on the command line.
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

    /// Returns the default precision: half precision on GPUs. On CPUs, ONNX Runtime computes float16 in float32, and
    /// OpenVINO chooses by itself.
    pub fn default_precision(self) -> DeployPrecision {
        match self {
            Self::Openvino | Self::Cpu => DeployPrecision::Float32,
            _ => DeployPrecision::Float16,
        }
    }

    /// Returns the form of quantised layers that it takes. ONNX Runtime only fuses a layer with the pairs around it if the
    /// output and the bias of the layer are integers too. TensorRT and OpenVINO do not need that, and TensorRT needs
    /// activations symmetric about zero.
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

    /// Checks that the target supports a precision. WebGPU's shading language has no bfloat16 (WGSL, section 6.2, has f32
    /// and f16), nor have WebNN's `MLOperandDataType` and DirectML's `DML_TENSOR_DATA_TYPE`.
    ///
    /// # Errors
    /// The target does not support it.
    pub fn check_precision(self, precision: DeployPrecision) -> Result<(), Error> {
        match (self, precision) {
            (Self::Web | Self::Directml, DeployPrecision::Bfloat16) => {
                Err(Error::usage(format!("--precision bfloat16: {} does not support it", self.name()))
                    .hint("use --precision float16"))
            }
            _ => Ok(()),
        }
    }

    /// Whether it needs an engine, which is built for a profile.
    pub fn builds_engine(self) -> bool {
        matches!(self, Self::Tensorrt | Self::TensorrtRtx)
    }
}

/// The precision of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DeployPrecision {
    /// The types of the file.
    #[cfg_attr(feature = "cli", value(alias = "fp32"))]
    Float32,
    /// Weights and activations in float16, except for what float16 can't represent.
    #[cfg_attr(feature = "cli", value(alias = "fp16"))]
    Float16,
    /// Weights and activations in bfloat16, except for what bfloat16 can't represent.
    #[cfg_attr(feature = "cli", value(alias = "bf16"))]
    Bfloat16,
    /// Linear layers in int8, except for those whose error is too large; everything else as in the file.
    Int8,
}

impl DeployPrecision {
    /// Returns the name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// Returns the type of half precision. `None`: the precision is another one.
    pub fn half_type(self) -> Option<DataType> {
        match self {
            Self::Float16 => Some(DataType::Float16),
            Self::Bfloat16 => Some(DataType::Bfloat16),
            Self::Float32 | Self::Int8 => None,
        }
    }
}
