//! Engines of TensorRT, built by its tools if they are installed.
//!
//! `trtexec` (TensorRT) and `tensorrt_rtx` (TensorRT for RTX) are searched on the PATH, then a Python with their bindings.
//! A build for TensorRT measures kernels on the GPU that it is for. A build for RTX needs no GPU and compiles for compute
//! capability 8.0 and later, or for given ones (TensorRT-RTX documentation, "CPU-Only AOT and TensorRT-RTX Engines").

mod find;

mod run;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::profile::Profile;
use super::target::DeployTarget;
use crate::pipeline::bundle::TIMING_CACHE;
pub use find::EngineBuilder;

/// A compute capability, with 8.9 as `89`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability(String);

impl std::str::FromStr for Capability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let is_number = |part: &&str| !part.is_empty() && part.len() <= 2 && part.chars().all(|c| c.is_ascii_digit());
        match parts.as_slice() {
            [major, minor] if parts.iter().all(is_number) => Ok(Self(format!("{major}{minor}"))),
            _ => Err(format!("expected a compute capability such as 8.9, found {text:?}")),
        }
    }
}

impl Capability {
    /// Returns the digits, such as `89`.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

/// The request to build an engine.
#[derive(Clone, Debug)]
pub struct EngineRequest<'a> {
    /// The folder with the network. The engine and the timing cache are written there too.
    pub folder: &'a Path,
    /// The name of the network's file.
    pub model: &'a str,
    /// The BLAKE3 hash of that file and its data.
    pub digest: &'a str,
    /// The sizes of inputs that it is built for.
    pub profile: &'a Profile,
    /// The compute capabilities to build for, with TensorRT for RTX. Empty: it chooses them.
    pub capabilities: &'a [Capability],
}

/// An engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Engine {
    /// Its file, named after the hash of the network, the version of TensorRT and the compute capability.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The program that built it, with its version.
    pub builder: String,
    /// Duration of the build in seconds.
    pub seconds: f64,
}

impl Engine {
    /// Returns the engine with its file at another path.
    #[must_use]
    pub fn in_place(self, placed: impl Fn(&PathBuf) -> PathBuf) -> Self {
        Self { file: placed(&self.file), ..self }
    }
}

/// Returns the command with which the engine can be built by hand.
pub fn command(target: DeployTarget, model: &str, profile: &Profile, capabilities: &[Capability]) -> String {
    let program = if target == DeployTarget::TensorrtRtx { "tensorrt_rtx" } else { "trtexec" };
    let mut arguments = vec![program.to_owned(), format!("--onnx={model}"), "--saveEngine=model.engine".to_owned()];
    if target == DeployTarget::Tensorrt {
        arguments.push("--stronglyTyped".to_owned());
    } else if !capabilities.is_empty() {
        arguments.push(capabilities_option(capabilities));
    }
    arguments.extend(profile.trtexec());
    arguments.join(" ")
}

fn capabilities_option(capabilities: &[Capability]) -> String {
    let digits: Vec<&str> = capabilities.iter().map(Capability::digits).collect();
    format!("--computeCapabilities={}", digits.join(","))
}

/// Returns the file name of an engine.
fn file_name(target: DeployTarget, digest: &str, version: &str, capability: &str) -> String {
    let kind = if target == DeployTarget::TensorrtRtx { "rtx" } else { "trt" };
    let hash: String = digest.chars().take(16).collect();
    format!("{hash}_{kind}{version}_{capability}.engine")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn capabilities_are_parsed() {
        let of = |text: &str| text.parse::<Capability>().ok().map(|found| found.0);
        assert_eq!((of("8.9"), of("12.0")), (Some("89".into()), Some("120".into())));
        for wrong in ["89", "8.", "8.9.1", "x.y", ""] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let both = ["8.9".parse().unwrap(), "12.0".parse().unwrap()];
        let text = command(DeployTarget::TensorrtRtx, "model.onnx", &Profile::default(), &both);
        assert_eq!(text, "tensorrt_rtx --onnx=model.onnx --saveEngine=model.engine --computeCapabilities=89,120");
        let name = file_name(DeployTarget::TensorrtRtx, &"ab".repeat(32), "1.7.1", "sm89");
        assert_eq!(name, "abababababababab_rtx1.7.1_sm89.engine");
    }
}
