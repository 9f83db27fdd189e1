//! Names, ranks and types of inputs and outputs as programs that load networks expect them.
//!
//! The computation of the network does not change. Values are renamed, and a few nodes convert the inputs of the loader to
//! those of the network.
//!
//! Sources of the conventions, as of July 2026:
//! - optimum: `UNetOnnxConfig` and `SD3TransformerOnnxConfig` in `optimum/exporters/onnx/model_configs.py` of
//!   huggingface/optimum-onnx, and `ORTUnet` in `optimum/onnxruntime/modeling_diffusion.py`, which feeds a scalar
//!   `timestep`.
//! - demoDiffusion: `UNetModel` and `UNetXLModel` in `demo/Diffusion/demo_diffusion/model/unet.py` of NVIDIA/TensorRT.
//!   There, `timestep` has one element, the type of the network and no dynamic axis. `path/resolve_path.py` for
//!   `model_optimized.onnx`.
//! - ComfyUI: `tensorrt_convert.py` and `tensorrt_loader.py` of comfyanonymous/ComfyUI_TensorRT. The loader takes the batch
//!   size from the first input of the engine, casts to the engine's types and does not support int64.
//! - WebNN: `demos/stable-diffusion-1.5`, `demos/sd-turbo` and `demos/sdxl-turbo` of microsoft/webnn-developer-preview. All
//!   sizes are fixed. A float `timestep` has one element, an int64 one has one element per sample.

mod cut;

mod expected;

mod rename;

mod rewrite;

use serde::Serialize;

use super::form::Form;
use crate::diffusion::Roles;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::onnx::DataType;

/// A program, or a family of them, that loads a network by the names of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Loader {
    /// The pipelines of optimum: sample, timestep (a scalar), encoder_hidden_states[, text_embeds, time_ids] -> out_sample.
    Optimum,
    /// TensorRT's demo/Diffusion: `sample, timestep[1], encoder_hidden_states[, text_embeds, time_ids]` -> `latent`, in
    /// model_optimized.onnx.
    Demodiffusion,
    /// ComfyUI's node for TensorRT: x, timesteps, context[, y] -> h.
    Comfyui,
    /// Web demos with WebNN: as optimum's, with fixed sizes and `timestep[1]`.
    Webnn,
}

impl Loader {
    /// Returns the name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Optimum => "optimum",
            Self::Demodiffusion => "demodiffusion",
            Self::Comfyui => "comfyui",
            Self::Webnn => "webnn",
        }
    }

    /// Returns the name of the network's file. `None`: the loader accepts any name.
    pub fn file_name(self) -> Option<&'static str> {
        (self == Self::Demodiffusion).then_some("model_optimized.onnx")
    }

    /// Whether inputs and outputs are in half precision by default if the network is.
    pub fn halves_interface(self) -> bool {
        matches!(self, Self::Demodiffusion | Self::Webnn)
    }

    /// Whether all sizes are fixed.
    pub fn fixes_sizes(self) -> bool {
        self == Self::Webnn
    }
}

/// The source of the elements of an input of the new network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// This input of the old network.
    Input(String),
    /// This value that the old network computed.
    Value(String),
}

/// An input of the new network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub input: String,
    /// The source of its elements.
    pub fed: Fed,
    /// Whether it is the timestep. All samples have the same one, so the number of elements may differ.
    pub is_time: bool,
}

impl Bridge {
    /// Returns the value that the old network computed, if that is its source.
    pub fn value(&self) -> Option<&str> {
        match &self.fed {
            Fed::Value(name) => Some(name),
            Fed::Input(_) => None,
        }
    }
}

/// The requirements of a loader besides names.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The type of float inputs and outputs. `None`: as in the network.
    pub dtype: Option<DataType>,
    /// Sizes of the symbolic dimensions, for loaders that need fixed ones.
    pub sizes: Sizes,
}

/// A network with the interface that a loader expects.
#[derive(Debug)]
pub struct Adapted {
    /// The network.
    pub form: Form,
    /// Its inputs, in order.
    pub bridges: Vec<Bridge>,
    /// The names of the outputs before and after, in order.
    pub outputs: Vec<(String, String)>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Changes the inputs and outputs of a network to those that a loader expects.
///
/// # Errors
/// The inputs do not match those that the loader feeds; the error lists the inputs found and expected.
pub fn adapt(
    network: (&Model, &Graph, &Facts),
    roles: &Roles,
    loader: Loader,
    wanted: &Wanted,
) -> Result<Adapted, Error> {
    let matched = expected::matched(network, roles, loader)?;
    rewrite::rewrite(network, loader, &matched, wanted)
}
