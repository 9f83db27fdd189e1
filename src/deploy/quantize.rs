//! Quantisation of a float32 network to int8: pairs of QuantizeLinear and DequantizeLinear around its linear layers, as
//! ONNX Runtime's quantiser writes them.
//!
//! Weights have one scale per output channel, symmetric about zero (Krishnamoorthi, "Quantizing deep convolutional networks
//! for efficient inference", 2018, section 3). Activations have one scale, from their ranges on samples over the timesteps.
//! The choice of layers that are kept in float32 is measured: each layer is quantised alone, and those that change the
//! output most are kept until the others together change it no more than allowed.

mod calibrate;

mod emit;

mod layers;

mod numbers;

mod switches;

use regex::Regex;
use serde::Serialize;

use super::form::Form;
use super::half::KeptNode;
use super::ranges::{Inputs, Ranges, Steps};
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::operator::Operators;
use crate::runtime::Runtime;
pub use numbers::Style;

/// The method that chooses the range of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Calibration {
    /// The minimum and the maximum element.
    #[default]
    MinMax,
    /// The range that contains all but one of ten thousand elements.
    Percentile,
    /// The range whose quantised distribution is closest to that of the elements, by the Kullback-Leibler divergence
    /// (Migacz, "8-bit inference with TensorRT", 2017).
    Entropy,
}

/// The settings of a quantisation.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions<'a> {
    /// The form of quantised layers that the runtime takes.
    pub style: Style,
    /// The method that chooses ranges.
    pub calibration: Calibration,
    /// Layers are kept in float32 if the name of their node or weight matches one of these.
    pub keep: &'a [Regex],
    /// The ranges of the network's values on the samples.
    pub ranges: &'a Ranges,
    /// The name of the output at which the error of a layer is measured.
    pub output: &'a str,
    /// Maximum mean squared difference of that output. `None`: no layer is kept because of its error.
    pub most: Option<f64>,
}

/// The error that the quantisation of one layer causes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerCost {
    /// The layer's node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The mean squared difference of the output if only this layer is in int8.
    pub cost: f64,
}

/// The result of a quantisation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuantizeReport {
    /// Number of layers in int8.
    pub quantized: usize,
    /// Layers that are kept in float32, and why.
    pub kept: Vec<KeptNode>,
    /// The error that each layer causes alone, the largest first.
    pub costs: Vec<LayerCost>,
    /// The mean squared difference of the output with the chosen layers in int8.
    pub difference: f64,
    /// The same with all layers in int8 that can be.
    pub difference_of_all: f64,
}

/// Quantises the network to int8. `steps` is called with the number of measured layers.
///
/// # Errors
/// The opset is below 13, which has no scales per channel; there is nothing to quantise; or the network does not run.
pub fn quantize(
    runtime: &Runtime,
    (model, graph, operators, facts): (&Model, &Graph, &Operators, &Facts),
    batches: &[Inputs],
    options: &QuantizeOptions<'_>,
    steps: &mut Steps<'_>,
) -> Result<(Form, QuantizeReport), Error> {
    if graph.opset < 13 {
        let text = format!("expected opset 13 or later, found {}", graph.opset);
        return Err(Error::unmet(format!("int8: {text}: earlier ones have no scales per channel"))
            .in_file(model.path())
            .hint("export the network again, or convert its opset with the onnx package"));
    }
    let known = (model, graph, facts);
    let (found, mut kept) = layers::find((model, graph, operators, facts), options)?;
    if found.is_empty() {
        return Err(Error::unmet("int8: found no linear layer with a constant weight").in_file(model.path()));
    }
    let ranges = calibrate::ranges(runtime, known, &found, batches, options)?;
    let (chosen, report) = switches::choose(runtime, known, (&found, &ranges), batches, options, steps)?;
    kept.extend(report.kept.iter().cloned());
    let form = emit::emit(known, &chosen, &ranges, options)?;
    Ok((form, QuantizeReport { quantized: chosen.len(), kept, ..report }))
}
