//! Names, ranks and types of inputs and outputs as programs that load networks expect them.
//!
//! A network keeps what it computes: values are renamed, and a few nodes stand between the inputs of the loader and those that
//! the network had.
//!
//! Sources of the conventions, in July 2026:
//! - optimum: `UNetOnnxConfig` and `SD3TransformerOnnxConfig` in `optimum/exporters/onnx/model_configs.py` of
//!   huggingface/optimum-onnx, and `ORTUnet` in `optimum/onnxruntime/modeling_diffusion.py`, which feeds a scalar `timestep`.
//! - demoDiffusion: `UNetModel` and `UNetXLModel` in `demo/Diffusion/demo_diffusion/model/unet.py` of NVIDIA/TensorRT, of which
//!   `timestep` has one element in the type of the network and no dynamic axis; `path/resolve_path.py` for
//!   `model_optimized.onnx`.
//! - ComfyUI: `tensorrt_convert.py` and `tensorrt_loader.py` of comfyanonymous/ComfyUI_TensorRT. The loader takes the batch from
//!   the first input of the engine, casts to the engine's types and knows no int64.
//! - WebNN: `demos/stable-diffusion-1.5`, `demos/sd-turbo` and `demos/sdxl-turbo` of microsoft/webnn-developer-preview: all sizes are
//!   fixed; a float `timestep` has one element, an int64 one an element for each sample.

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
    /// optimum's pipelines: sample, timestep (a scalar), encoder_hidden_states[, text_embeds, time_ids] -> out_sample.
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
    /// The name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Optimum => "optimum",
            Self::Demodiffusion => "demodiffusion",
            Self::Comfyui => "comfyui",
            Self::Webnn => "webnn",
        }
    }

    /// The name of the network's file, where the loader asks for one.
    pub fn file_name(self) -> Option<&'static str> {
        (self == Self::Demodiffusion).then_some("model_optimized.onnx")
    }

    /// Whether inputs and outputs are in half precision where the network is, if nothing else is asked for.
    pub fn halves_interface(self) -> bool {
        matches!(self, Self::Demodiffusion | Self::Webnn)
    }

    /// Whether all sizes are fixed.
    pub fn fixes_sizes(self) -> bool {
        self == Self::Webnn
    }
}

/// From where an input of the new network gets what the old one took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// From this input of the old network.
    Input(String),
    /// From this value that the old network computed.
    Value(String),
}

/// An input of the new network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub input: String,
    /// What it is fed.
    pub fed: Fed,
    /// Whether it takes the time, of which every sample has the same: how many elements there are may differ.
    pub is_time: bool,
}

impl Bridge {
    /// The value that the old network computed, if it is fed that.
    pub fn value(&self) -> Option<&str> {
        match &self.fed {
            Fed::Value(name) => Some(name),
            Fed::Input(_) => None,
        }
    }
}

/// What a loader asks for beyond names.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The type of float inputs and outputs; as the network has them where `None`.
    pub dtype: Option<DataType>,
    /// Sizes for the symbolic dimensions, where they are fixed.
    pub sizes: Sizes,
}

/// A network as a loader expects it.
#[derive(Debug)]
pub struct Adapted {
    /// The network.
    pub form: Form,
    /// Its inputs, in order.
    pub bridges: Vec<Bridge>,
    /// Outputs before and after, in order.
    pub outputs: Vec<(String, String)>,
    /// Things that the user should know.
    pub notes: Vec<String>,
}

/// Gives a network the inputs and outputs that a loader expects.
///
/// # Errors
/// Inputs that do not fit what the loader feeds: names those that were found and those that are expected.
pub fn adapt(
    network: (&Model, &Graph, &Facts),
    roles: &Roles,
    loader: Loader,
    wanted: &Wanted,
) -> Result<Adapted, Error> {
    let matched = expected::matched(network, roles, loader)?;
    rewrite::rewrite(network, loader, &matched, wanted)
}
