//! Artifacts for training sessions of ONNX Runtime: training model, eval model, optimizer model and checkpoint.
//!
//! The layout is that of `onnxruntime.training.artifacts.generate_artifacts` in ONNX Runtime 1.19. Weights are graph
//! inputs whose values are in the checkpoint. Every trained weight `w` has an input `w_grad.accumulation.buffer`. A
//! com.microsoft `InPlaceAccumulatorV2` node adds the gradient of a step to it, or overwrites it where the input
//! `lazy_reset_grad` is true. The gradients come from [`crate::gradient::GradientGraph`], so ONNX Runtime needs no
//! gradient rules.

mod checkpoint;
mod models;
#[cfg(feature = "ort-training")]
mod pass;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use regex::Regex;

use crate::analysis::Analysis;
use crate::couple::options::{AttentionOption, NormGroups};
use crate::error::Error;
use crate::files::{NewFolder, Outputs, RunFiles, unwritable};
use crate::gradient::{GradientGraph, GradientOptions, UseGradient, widened_tensor};
use crate::graph::ValueId;
use crate::graph::sizes::Sizes;
use crate::onnx::ModelProto;

#[cfg(feature = "ort-training")]
pub use pass::TrainingPass;

/// The file names that training sessions look for in a folder.
pub const FILES: [&str; 4] = ["training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"];

/// The newest standard opset that ONNX Runtime 1.19 supports, the last release with a training API.
pub const NEWEST_OPSET: i64 = 21;

/// The settings of training artifacts: the trained weights and the loss.
#[derive(Clone, Debug)]
pub struct TrainingOptions {
    /// A size for every symbolic dimension of the graph's inputs.
    pub sizes: Sizes,
    /// The output that is the prediction. `None`: the first output.
    pub prediction: Option<String>,
    /// The number of channels of the prediction that the loss compares; see [`GradientOptions::channels`].
    pub channels: Option<i64>,
    /// The constants to train. Those that the loss does not depend on remain unchanged.
    pub trained: Vec<ValueId>,
    /// Whether the training model also has an output for the gradient with respect to every use of a weight. The C API
    /// can't read gradients in any other way. Python reads them from the checkpoint state.
    pub outputs_gradients: bool,
}

/// A trained weight.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in the model.
    pub name: String,
    /// Its shape.
    pub dims: Vec<i64>,
    /// Its elements, float32 in little-endian order.
    pub values: Bytes,
}

/// The artifacts that a training session loads.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// Forward pass, loss, gradients and their accumulation.
    pub training_model: ModelProto,
    /// Forward pass and loss.
    pub eval_model: ModelProto,
    /// One AdamW step on all trained weights.
    pub optimizer_model: ModelProto,
    /// The values of the trained weights, a flatbuffer.
    pub checkpoint: Vec<u8>,
    /// The trained weights.
    pub parameters: Vec<Parameter>,
    /// The inputs of every step, in this order: the inputs of the network that the loss depends on, then the target.
    pub inputs: Vec<String>,
    /// The shape of the target.
    pub target_shape: Vec<i64>,
    /// The gradients among the outputs of the training model; see [`TrainingOptions::outputs_gradients`].
    pub gradients: Vec<UseGradient>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Returns the constants to train. Without patterns, these are all initializers that a channel group passes through,
/// whether it may shrink or not, and the other initializers of the nodes that read those (such as biases of the last
/// layer). Outputs of Constant nodes are excluded: the exporter did not treat them as weights, for example the scale of
/// a norm that has no learned scale. With patterns, these are all floating point constants whose names match one.
///
/// # Errors
/// A pattern matches no such constant.
pub fn trained_weights(analysis: &Analysis, patterns: &[Regex]) -> Result<Vec<ValueId>, Error> {
    let graph = &analysis.graph;
    let is_trainable = |value: ValueId| {
        let fact = analysis.facts.values[value].as_ref();
        let is_float = fact.is_some_and(|fact| fact.is_float() && fact.shape.as_ref().is_some_and(|s| !s.is_empty()));
        is_float && analysis.constant(value).is_some()
    };
    if patterns.is_empty() {
        let groupings = analysis.groupings(AttentionOption::Both, NormGroups::Keep);
        let members = groupings.iter().flat_map(|grouping| &grouping.groups).flat_map(|group| &group.members);
        let nodes: BTreeSet<_> = members.map(|member| analysis.coupling.uses[member.weight].node).collect();
        let read = nodes.iter().flat_map(|node| graph.nodes[*node].inputs.iter().flatten().copied());
        let is_stored = |value: &ValueId| is_trainable(*value) && graph.values[*value].initializer.is_some();
        return Ok(read.filter(is_stored).collect::<BTreeSet<_>>().into_iter().collect());
    }
    let mut trained = BTreeSet::new();
    for pattern in patterns {
        let is_match = |value: &ValueId| is_trainable(*value) && pattern.is_match(&graph.values[*value].name);
        let found: Vec<ValueId> = (0..graph.values.len()).filter(is_match).collect();
        if found.is_empty() {
            let text =
                format!("--train: {:?} matches no floating point constant with at least one axis", pattern.as_str());
            return Err(Error::usage(text).in_file(analysis.model.path()));
        }
        trained.extend(found);
    }
    Ok(trained.into_iter().collect())
}

impl Artifacts {
    /// Builds the artifacts.
    ///
    /// # Errors
    /// As [`GradientGraph::build`]. Also where the loss depends on none of the weights, a weight can't be read, the
    /// model uses a name that training sessions reserve, or an artifact would be larger than its format allows.
    pub fn build(analysis: &Analysis, options: &TrainingOptions) -> Result<Self, Error> {
        let graph_of = |wanted: Vec<ValueId>| {
            let (sizes, prediction) = (options.sizes.clone(), options.prediction.clone());
            let (channels, fed) = (options.channels, options.trained.clone());
            let options = GradientOptions { sizes, prediction, channels, wanted, fed, ..GradientOptions::default() };
            GradientGraph::build(analysis, &options)
        };
        let backward = graph_of(options.trained.clone())?;
        let forward = graph_of(Vec::new())?;
        let parameters = parameters(analysis, &backward.gradients)?;
        let training_model = models::training_model(analysis, &backward, &parameters, options.outputs_gradients)?;
        let eval_model = models::eval_model(analysis, &forward)?;
        let optimizer_model = models::optimizer_model(analysis.graph.opset);
        for (name, model) in FILES.iter().zip([&training_model, &eval_model]) {
            let bytes = model.encoded_len();
            if bytes > i32::MAX as usize {
                let text = format!("{name}: expected less than 2 GiB without the trained weights, found {bytes} bytes");
                return Err(Error::unmet(text)
                    .in_file(analysis.model.path())
                    .hint("train more of the weights with --train REGEX: the checkpoint stores trained weights"));
            }
        }
        let checkpoint = checkpoint::encode(&parameters).map_err(|error| error.in_file(analysis.model.path()))?;
        let weights: BTreeSet<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        let inputs = models::user_inputs(&training_model, &weights);
        let mut warnings = Vec::new();
        if analysis.graph.opset > NEWEST_OPSET {
            let found = analysis.graph.opset;
            let text =
                format!("the model has opset {found}, but ONNX Runtime 1.19 supports opsets up to {NEWEST_OPSET}");
            warnings.push(format!("{text}: export it with a lower opset"));
        }
        let gradients = if options.outputs_gradients { backward.gradients } else { Vec::new() };
        let target_shape = backward.target_shape;
        Ok(Self {
            training_model,
            eval_model,
            optimizer_model,
            checkpoint,
            parameters,
            inputs,
            target_shape,
            gradients,
            warnings,
        })
    }

    /// Returns the number of trained elements.
    pub fn trained_elements(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.values.len() as u64 / 4).sum()
    }

    /// Writes the four files into `folder`, which is created if there is none. No file is moved into place before all
    /// of them are complete. Returns their paths.
    ///
    /// # Errors
    /// The folder or a file in it can't be written, or a file would replace the input. Existing files are unchanged
    /// then.
    pub fn write(&self, analysis: &Analysis, folder: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut files = RunFiles::new();
        files.add_inputs("the input", analysis.model.files()).add_outputs_in("an artifact", folder, &FILES);
        files.check()?;
        let _made = NewFolder::at(folder).map_err(|error| unwritable(folder, error))?;
        let models = [&self.training_model, &self.eval_model, &self.optimizer_model].map(Message::encode_to_vec);
        let mut outputs = Outputs::default();
        let paths: Vec<PathBuf> = FILES.iter().map(|name| folder.join(name)).collect();
        for (path, content) in paths.iter().zip(models.iter().chain([&self.checkpoint])) {
            outputs.write(path, |file| file.write_all(content)).map_err(|error| unwritable(path, error))?;
        }
        outputs.publish(&[])?;
        Ok(paths)
    }
}

/// Returns the weights that have a gradient, with their values, in the order of the graph's values.
fn parameters(analysis: &Analysis, gradients: &[UseGradient]) -> Result<Vec<Parameter>, Error> {
    let (model, graph) = (&analysis.model, &analysis.graph);
    let values: BTreeSet<ValueId> = gradients.iter().map(|gradient| gradient.value).collect();
    if values.is_empty() {
        let text = "the loss depends on none of the weights to train";
        return Err(Error::unmet(text).in_file(model.path()).hint("choose other weights with --train REGEX"));
    }
    let mut parameters = Vec::new();
    for value in values {
        let Some(tensor) = analysis.constant(value) else { continue };
        let widened = widened_tensor(model, tensor)?;
        let values = model.tensor_view(&widened)?;
        parameters.push(Parameter { name: graph.values[value].name.clone(), dims: widened.dims, values });
    }
    Ok(parameters)
}
