//! The graph of a training step: forward pass, loss and gradients, with the trained weights as inputs.

use std::collections::BTreeMap;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::gradient::{GradientGraph, GradientOptions, UseGradient, value_info};
use crate::graph::ValueId;
use crate::onnx::DataType;
use crate::onnx::builder::Builder;
use crate::operator::gradient::signed_shape;
use crate::runtime::Device;

/// A trained weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedWeight {
    /// The constant.
    pub value: ValueId,
    /// Its name in the model, and that of the graph's input.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// The output of the graph that holds the gradient with respect to it: float32, of the same shape.
    pub gradient: String,
}

impl TrainedWeight {
    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// The graph of a step.
#[derive(Debug)]
pub struct TrainingGraph {
    /// The graph. The weights are its last inputs, and each has one gradient.
    pub graph: GradientGraph,
    /// The weights, in the order of the model's values.
    pub weights: Vec<TrainedWeight>,
}

impl TrainingGraph {
    /// Differentiates a network with respect to the weights `options.wanted`, which become inputs. Weights that the
    /// loss does not depend on are left out.
    ///
    /// # Errors
    /// As [`GradientGraph::build`], or the loss depends on none of the weights.
    pub fn build(analysis: &Analysis, options: &GradientOptions, device: Device) -> Result<Self, Error> {
        let fed = |weights: &[ValueId]| GradientOptions {
            wanted: weights.to_vec(),
            fed: weights.to_vec(),
            ..options.clone()
        };
        let mut graph = GradientGraph::build_for(analysis, &fed(&options.wanted), device)?;
        let mut values: Vec<ValueId> = graph.gradients.iter().map(|gradient| gradient.value).collect();
        values.sort_unstable();
        values.dedup();
        if values.is_empty() {
            let text = "the loss depends on none of the weights to train";
            return Err(Error::unmet(text)
                .in_file(analysis.model.path())
                .hint("choose other weights with --train REGEX"));
        }
        if values.len() < options.wanted.len() {
            graph = GradientGraph::build_for(analysis, &fed(&values), device)?;
        }
        let weights = join_uses(analysis, &mut graph);
        Ok(Self { graph, weights })
    }

    /// Returns the number of trained elements.
    pub fn elements(&self) -> usize {
        self.weights.iter().map(TrainedWeight::elements).sum()
    }
}

/// Sums the gradients of a weight over its uses, so that every weight has one output.
fn join_uses(analysis: &Analysis, of: &mut GradientGraph) -> Vec<TrainedWeight> {
    let mut uses: BTreeMap<ValueId, Vec<UseGradient>> = BTreeMap::new();
    for gradient in std::mem::take(&mut of.gradients) {
        uses.entry(gradient.value).or_default().push(gradient);
    }
    let graph = of.model.graph.get_or_insert_default();
    let mut builder = Builder::default();
    let mut weights = Vec::with_capacity(uses.len());
    for (value, uses) in uses {
        let name = analysis.graph.values[value].name.clone();
        let outputs: Vec<&str> = uses.iter().map(|gradient| gradient.output.as_str()).collect();
        let shape = analysis.facts.values[value].as_ref().and_then(|fact| fact.shape.as_deref());
        let dims = shape.and_then(signed_shape).unwrap_or_default();
        let mut joined = uses[0].clone();
        if outputs.len() > 1 {
            joined.output = format!("{}/sum", outputs[0]);
            builder.push("", "Sum", &outputs, vec![joined.output.clone()], vec![]);
            graph.output.retain(|output| !outputs.contains(&output.name.as_str()));
            graph.output.push(value_info(&joined.output, DataType::Float, &dims));
        }
        let dims = dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        weights.push(TrainedWeight { value, name, dims, gradient: joined.output.clone() });
        of.gradients.push(joined);
    }
    graph.node.append(&mut builder.nodes);
    weights
}
