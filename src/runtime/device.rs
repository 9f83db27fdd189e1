//! The device of a session.

use std::fmt;
use std::str::FromStr;

/// The device of a session.
///
/// Written as `cpu`, `cuda`, `cuda:1`, `tensorrt` or `tensorrt:1`; the number is the GPU's, by default 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number, with CUDA and cuDNN.
    Cuda(u32),
    /// The GPU of this number, with TensorRT; CUDA runs what TensorRT does not support.
    TensorRt(u32),
}

/// The name of ONNX Runtime's provider for the CPU.
pub(super) const CPU_PROVIDER: &str = "CPUExecutionProvider";
/// The name of ONNX Runtime's provider for CUDA.
pub(super) const CUDA_PROVIDER: &str = "CUDAExecutionProvider";
/// The name of ONNX Runtime's provider for TensorRT.
pub(super) const TENSORRT_PROVIDER: &str = "TensorrtExecutionProvider";

impl Device {
    /// One device of every kind, for listing them.
    pub const KINDS: [Self; 3] = [Self::Cpu, Self::Cuda(0), Self::TensorRt(0)];

    /// Returns the names of the execution providers that a session on this device registers, the preferred one first. The
    /// provider for the CPU is always available and only listed if it is the only one.
    pub fn providers(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &[CPU_PROVIDER],
            Self::Cuda(_) => &[CUDA_PROVIDER],
            Self::TensorRt(_) => &[TENSORRT_PROVIDER, CUDA_PROVIDER],
        }
    }

    /// Returns the number of the GPU. `None`: the device is the CPU.
    pub fn index(self) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Cuda(index) | Self::TensorRt(index) => Some(index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::TensorRt(0) => f.write_str("tensorrt"),
            Self::TensorRt(index) => write!(f, "tensorrt:{index}"),
        }
    }
}

/// A text that is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected cpu, cuda, cuda:N, tensorrt or tensorrt:N (N is the number of the GPU), found {found:?}")]
pub struct UnknownDevice {
    /// The text.
    pub found: String,
}

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownDevice { found: text.to_owned() };
        let lower = text.trim().to_ascii_lowercase();
        let (kind, index) = match lower.split_once(':') {
            None => (lower.as_str(), None),
            // Only digits: a number with a sign would parse as well. ONNX Runtime takes a signed 32-bit number.
            Some((kind, index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                let index = index.parse::<i32>().map_err(|_| unknown())?;
                (kind, Some(index.unsigned_abs()))
            }
            Some(_) => return Err(unknown()),
        };
        match (kind, index) {
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("tensorrt", index) => Ok(Self::TensorRt(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_parsed_and_formatted() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:1", Device::Cuda(1)),
            ("tensorrt", Device::TensorRt(0)),
            ("tensorrt:3", Device::TensorRt(3)),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("CUDA:0".parse(), Ok(Device::Cuda(0)));
    }

    #[test]
    fn other_texts_are_rejected_with_the_valid_names() {
        for text in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:99999999999", "cuda:1:2"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("cuda:N") && error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
