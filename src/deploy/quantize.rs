//! A float32 network in int8: pairs of QuantizeLinear and DequantizeLinear around its linear layers, as ONNX Runtime's
//! quantiser writes them.
//!
//! Weights have a scale for every output, symmetric about zero (Krishnamoorthi, "Quantizing deep convolutional networks for
//! efficient inference", 2018, section 3). Activations have one scale, from what they were on samples over the timesteps. Which
//! layers stay in float32 is measured: each is switched to int8 alone, and those that move the output furthest are kept
//! until all others together move it no further than asked.

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

/// How the ends of the range of activations are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Calibration {
    /// The least and the largest element.
    #[default]
    MinMax,
    /// What all but one of ten thousand elements are within.
    Percentile,
    /// The range of which the quantised distribution is closest to that of the elements, by the Kullback-Leibler divergence
    /// (Migacz, "8-bit inference with TensorRT", 2017).
    Entropy,
}

/// How a network is quantised.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions<'a> {
    /// The form that the runtime takes.
    pub style: Style,
    /// How ranges are chosen.
    pub calibration: Calibration,
    /// Layers whose node or weight has a name that matches one of these stay in float32.
    pub keep: &'a [Regex],
    /// What the values of the network were on the samples.
    pub ranges: &'a Ranges,
    /// The name of the output by which it is measured what a layer costs.
    pub output: &'a str,
    /// The largest mean squared difference of that output; without one, no layer is kept for what it costs.
    pub most: Option<f64>,
}

/// What a layer costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerCost {
    /// The layer's node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The mean squared difference of the output where this layer alone is in int8.
    pub cost: f64,
}

/// What became of the layers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuantizeReport {
    /// Layers in int8.
    pub quantized: usize,
    /// Layers that stay in float32, and why.
    pub kept: Vec<KeptNode>,
    /// What each layer costs by itself, the dearest first.
    pub costs: Vec<LayerCost>,
    /// The mean squared difference of the output with all layers in int8 that are.
    pub difference: f64,
    /// The same with all layers in int8 that may be.
    pub difference_of_all: f64,
}

/// The network in int8. `steps` counts the layers that were measured.
///
/// # Errors
/// An operator set before version 13, which has no scales by channel; nothing to quantise; a network that can't be run.
pub fn quantize(
    runtime: &Runtime,
    (model, graph, operators, facts): (&Model, &Graph, &Operators, &Facts),
    batches: &[Inputs],
    options: &QuantizeOptions<'_>,
    steps: &mut Steps<'_>,
) -> Result<(Form, QuantizeReport), Error> {
    if graph.opset < 13 {
        let text = format!("expected version 13 or later of the standard operators, found {}", graph.opset);
        return Err(Error::unmet(format!("int8: {text}: earlier ones have no scales by channel"))
            .in_file(model.path())
            .hint("export the network again, or convert its operator set with the onnx package"));
    }
    let known = (model, graph, facts);
    let (found, mut kept) = layers::find((model, graph, operators, facts), options)?;
    if found.is_empty() {
        return Err(Error::unmet("int8: there is no linear layer with a weight to quantise").in_file(model.path()));
    }
    let ranges = calibrate::ranges(runtime, known, &found, batches, options)?;
    let (chosen, report) = switches::choose(runtime, known, (&found, &ranges), batches, options, steps)?;
    kept.extend(report.kept.iter().cloned());
    let form = emit::emit(known, &chosen, &ranges, options)?;
    Ok((form, QuantizeReport { quantized: chosen.len(), kept, ..report }))
}
