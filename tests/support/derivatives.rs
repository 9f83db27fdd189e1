//! Checks gradients against the loss: the directional derivative by the gradients against the centred difference of the
//! loss along the same direction.

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::array::{Array, ArrayData, ElementType};
use onnx_diffprune::gradient::pass::{GradientPass, Gradients};
use onnx_diffprune::gradient::{GradientGraph, GradientOptions, TARGET};
use onnx_diffprune::graph::sizes::Sizes;
use onnx_diffprune::onnx::tensor_shape_proto::Dimension;
use onnx_diffprune::onnx::tensor_shape_proto::dimension::Value;
use onnx_diffprune::onnx::{ModelProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use onnx_diffprune::runtime::{Device, Optimization, Runtime, Session, SessionOptions};
use prost::Message;

use super::fixtures::THREADS;

/// Returns a pseudo-random sequence of signs.
pub(crate) fn signs(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        // Numerical Recipes' 64-bit linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

/// A weight and its gradient, summed over its uses.
pub(crate) struct Weight {
    /// Its name in the graph.
    pub(crate) name: String,
    /// Whether the gradient graph has an output for it.
    pub(crate) is_used: bool,
    dims: Vec<usize>,
    values: Vec<f32>,
    gradient: Vec<f64>,
}

/// Compares loss and gradients of the graph in standard operators with those of the graph with kernels.
fn compare(standard: &Gradients, kernels: &Gradients) -> Result<(), String> {
    if (standard.loss - kernels.loss).abs() > 1e-4 * standard.loss.abs() {
        return Err(format!("the loss is {}, with kernels {}", standard.loss, kernels.loss));
    }
    let largest_of = |values: &[f32]| values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let largest = standard.uses.iter().map(|values| largest_of(values)).fold(0.0, f32::max);
    for (at, (values, others)) in standard.uses.iter().zip(&kernels.uses).enumerate() {
        let scale = largest_of(values).max(1e-3 * largest);
        let differences = values.iter().zip(others).map(|(a, b)| a - b).collect::<Vec<f32>>();
        let worst = largest_of(&differences);
        if values.len() != others.len() || worst.is_nan() || worst > 3e-3 * scale {
            return Err(format!("gradient {at} differs by {worst} of {scale} with kernels"));
        }
    }
    Ok(())
}

/// Steps of some weights, each along a direction of the weight's shape.
pub(crate) type Move = Vec<(usize, Vec<f64>)>;

/// A network with its gradients at one point, and its loss around that point.
pub(crate) struct Derivatives {
    /// The gradient graph.
    pub(crate) graph: GradientGraph,
    /// The loss at the point.
    pub(crate) loss: f64,
    /// The weights whose elements are stored in the file.
    pub(crate) weights: Vec<Weight>,
    /// Computes the prediction. The weights are inputs.
    session: Session,
    target: Vec<f64>,
    inputs: Vec<(String, Array)>,
}

impl Derivatives {
    /// Differentiates a network with respect to the values `wanted`, at random inputs and targets. Uses the first of
    /// several sets of sizes for which a gradient graph can be built.
    pub(crate) fn new(analysis: &Analysis, wanted: &[usize], variants: &[Sizes]) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut built = Err("no sizes given".to_owned());
        let mut sizes = Sizes::new();
        for variant in variants {
            sizes.clone_from(variant);
            let wanted = wanted.to_vec();
            let options = GradientOptions { sizes: variant.clone(), wanted, ..GradientOptions::default() };
            built = GradientGraph::build(analysis, &options).map_err(|e| text(&e));
            if built.is_ok() {
                break;
            }
        }
        let graph = built?;
        let runtime = Runtime::open(None).map_err(|e| text(&e))?;
        let mut pass = GradientPass::new(runtime, &graph, &analysis.model, THREADS).map_err(|e| text(&e))?;
        let mut inputs = onnx_diffprune::inputs::random_inputs(analysis, &sizes, 1).map_err(|e| text(&e))?;
        let dims: Vec<usize> = graph.target_shape.iter().map(|size| *size as usize).collect();
        let mut sign = signs(7);
        let target: Vec<f64> = (0..dims.iter().product()).map(|_| sign()).collect();
        let array = Array::from_f64(ElementType::F32, dims, &target).map_err(|e| text(&e))?;
        inputs.push((TARGET.to_owned(), array));
        let mut inputs = pass.needed(inputs);
        for (_, array) in &mut inputs {
            if array.element_type().is_float() {
                *array = array.cast(ElementType::F32);
            }
        }
        let found = pass.run(&analysis.model, &inputs).map_err(|e| text(&e))?;
        for (gradient, values) in graph.gradients.iter().zip(&found.uses) {
            if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
                return Err(format!(
                    "the gradient with respect to {} contains {bad}",
                    analysis.graph.values[gradient.value].name
                ));
            }
        }
        let options = GradientOptions { sizes, wanted: wanted.to_vec(), ..GradientOptions::default() };
        let with_kernels = GradientGraph::build_for(analysis, &options, Device::Cpu).map_err(|e| text(&e))?;
        let mut pass = GradientPass::new(runtime, &with_kernels, &analysis.model, THREADS).map_err(|e| text(&e))?;
        let uses =
            |graph: &GradientGraph| graph.gradients.iter().map(|of| (of.value, of.node, of.slot)).collect::<Vec<_>>();
        assert_eq!(uses(&graph), uses(&with_kernels), "both graphs should have gradients for the same uses");
        compare(&found, &pass.run(&analysis.model, &inputs).map_err(|e| text(&e))?)?;
        let mut model = graph.model.clone();
        let mut weights = Vec::new();
        for value in wanted {
            let name = &analysis.graph.values[*value].name;
            let Some((dims, values)) = take(&mut model, name) else { continue };
            let mut gradient = vec![0.0; values.len()];
            let mut is_used = false;
            for (_, of_use) in graph.gradients.iter().zip(&found.uses).filter(|(use_, _)| use_.value == *value) {
                is_used = true;
                assert_eq!(of_use.len(), gradient.len(), "elements of the gradient with respect to {name}");
                gradient.iter_mut().zip(of_use).for_each(|(sum, element)| *sum += f64::from(*element));
            }
            weights.push(Weight { name: name.clone(), is_used, dims, values, gradient });
        }
        let prediction = &analysis.graph.values[analysis.graph.outputs[0]].name;
        let session = forward_session(runtime, model, analysis, prediction).map_err(|e| text(&e))?;
        inputs.retain(|(name, _)| name != TARGET && session.inputs().iter().any(|input| input.name == *name));
        let mut derivatives = Self { graph, loss: found.loss, weights, session, target, inputs };
        let own = derivatives.loss_after(&Move::new(), 0.0)?;
        if (own - found.loss).abs() > 1e-4 * own.abs() {
            return Err(format!("the loss is {own}, that of the gradient graph is {}", found.loss));
        }
        Ok(derivatives)
    }

    /// Returns a direction of about the size of a weight along which every element of the gradient is positive, so that
    /// no part of the gradient cancels another.
    pub(crate) fn uphill(&self, at: usize, seed: u64) -> Vec<f64> {
        let (weight, mut sign) = (&self.weights[at], signs(seed));
        let size = weight.size();
        let of = |gradient: &f64| {
            let (length, other) = (size * (1.0 + 0.5 * sign()), sign());
            length * if *gradient == 0.0 { other } else { gradient.signum() }
        };
        weight.gradient.iter().map(of).collect()
    }

    /// Returns a direction of the size of a weight with random signs.
    pub(crate) fn random(&self, at: usize, seed: u64) -> Vec<f64> {
        let (weight, mut sign) = (&self.weights[at], signs(seed));
        let size = weight.size();
        weight.gradient.iter().map(|_| size * sign()).collect()
    }

    /// Returns the directional derivative along a move, by the gradients.
    pub(crate) fn along(&self, along: &Move) -> f64 {
        self.parts(along).sum()
    }

    /// Returns the typical directional derivative along a move of random signs: the root of the sum of the squares of
    /// its parts.
    pub(crate) fn scale(&self, along: &Move) -> f64 {
        self.parts(along).map(|part| part * part).sum::<f64>().sqrt()
    }

    fn parts(&self, along: &Move) -> impl Iterator<Item = f64> {
        along.iter().flat_map(|(at, direction)| {
            let gradient = &self.weights[*at].gradient;
            gradient.iter().zip(direction).map(|(gradient, length)| gradient * length)
        })
    }

    /// Returns the centred difference of the loss along a move.
    pub(crate) fn difference(&mut self, along: &Move, step: f64) -> Result<f64, String> {
        Ok((self.loss_after(along, step)? - self.loss_after(along, -step)?) / (2.0 * step))
    }

    fn loss_after(&mut self, along: &Move, step: f64) -> Result<f64, String> {
        let mut inputs = self.inputs.clone();
        for (at, weight) in self.weights.iter().enumerate() {
            let mut data = weight.values.clone();
            for (_, direction) in along.iter().filter(|(moved, _)| *moved == at) {
                data.iter_mut().zip(direction).for_each(|(value, length)| *value += (step * length) as f32);
            }
            inputs.push((weight.name.clone(), Array { dims: weight.dims.clone(), data: ArrayData::F32(data) }));
        }
        let outputs = self.session.run(&inputs).map_err(|error| error.to_string())?;
        let prediction = outputs.first().ok_or("no prediction")?.1.to_f64();
        // In float64, so that only the prediction has rounding errors.
        let squares = prediction.iter().zip(&self.target).map(|(found, target)| (found - target).powi(2));
        Ok(squares.sum::<f64>() / self.target.len().max(1) as f64)
    }
}

impl Weight {
    /// Returns the root mean square of its elements, with a lower bound.
    fn size(&self) -> f64 {
        let square: f64 = self.values.iter().map(|value| f64::from(*value).powi(2)).sum();
        (square / self.values.len().max(1) as f64).sqrt().max(1e-3)
    }
}

/// Turns an initializer into an input. Returns its sizes and elements if the tensor contains them.
fn take(model: &mut ModelProto, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let graph = model.graph.as_mut()?;
    let at = graph.initializer.iter().position(|tensor| tensor.name == name)?;
    let values = elements(&graph.initializer[at])?;
    let tensor = graph.initializer.remove(at);
    let dim = tensor.dims.iter().map(|size| Dimension { value: Some(Value::DimValue(*size)), ..Dimension::default() });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let r#type = type_proto::Tensor { elem_type: tensor.data_type, shape };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(r#type)), ..TypeProto::default() };
    graph.input.push(ValueInfoProto { name: tensor.name, r#type: Some(r#type), ..ValueInfoProto::default() });
    Some((tensor.dims.iter().map(|size| *size as usize).collect(), values))
}

/// Returns the elements of a float32 tensor without external data.
fn elements(tensor: &TensorProto) -> Option<Vec<f32>> {
    let count: i64 = tensor.dims.iter().product();
    let values: Vec<f32> = if tensor.raw_data.is_empty() {
        tensor.float_data.clone()
    } else {
        tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    (values.len() as i64 == count).then_some(values)
}

/// Opens a session of the forward pass.
fn forward_session(
    runtime: &Runtime,
    mut model: ModelProto,
    analysis: &Analysis,
    prediction: &str,
) -> Result<Session, onnx_diffprune::runtime::RuntimeError> {
    if let Some(graph) = &mut model.graph {
        // The nodes of the loss and the backward pass follow the prediction.
        let end = graph.node.iter().position(|node| node.output.iter().any(|name| name == prediction));
        graph.node.truncate(end.map_or(graph.node.len(), |end| end + 1));
        graph.output = vec![ValueInfoProto { name: prediction.to_owned(), ..ValueInfoProto::default() }];
        graph.input.retain(|input| input.name != TARGET);
    }
    let options = SessionOptions {
        threads: THREADS,
        optimization: Optimization::Basic,
        external_data_folder: Some(analysis.model.folder().to_owned()),
        ..SessionOptions::default()
    };
    runtime.session_from_bytes(&model.encode_to_vec(), &options)
}
