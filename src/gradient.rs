//! Gradients: reverse-mode differentiation from ONNX graph to ONNX graph.
//!
//! [`GradientGraph::build`] makes one graph of the forward pass, the denoising loss
//! `L = mean((prediction - target)^2)` and the gradients of the wanted weights as outputs, in standard ONNX operators of
//! the model's own opset, so that any execution provider runs it; what ONNX Runtime has no CPU kernel for is written in
//! standard operators in the forward pass as well. Every operator's gradient stands in its own file
//! under `ops/`; see [`crate::operator::Operator::gradient`]. The graph is made for fixed sizes: every shape is known
//! while it is built. Weights of any precision are differentiated in float32, or with factors in half precision where
//! [`Precision`] says so.

pub mod accumulate;

pub mod checkpoint;

mod forward;

pub mod pass;

pub mod precision;

pub mod sum;

use std::collections::BTreeSet;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, NodeId, ValueId};
use crate::kernels::DOMAIN;
use crate::onnx::order::captured;
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use crate::operator::Operator;
use crate::runtime::Device;
mod seed;

use crate::operator::gradient::{GradientCx, Tape, signed_shape};
use precision::{LOSS_SCALE, LossScale, OVERFLOW};

pub(crate) use forward::widened_tensor;

pub use precision::Precision;

/// Name of the graph input that takes the target of the loss.
pub const TARGET: &str = "__target";

/// Name of the scalar output that holds the loss.
pub const LOSS: &str = "__loss";

/// What is differentiated.
#[derive(Clone, Debug, Default)]
pub struct GradientOptions {
    /// A size for every symbolic dimension of the graph's inputs.
    pub sizes: Sizes,
    /// The output that predicts; the first where `None`.
    pub prediction: Option<String>,
    /// Channels of the prediction that the loss compares: the first of axis 1; all where `None`. Networks that also
    /// predict a variance have twice as many.
    pub channels: Option<i64>,
    /// The weights whose gradients are wanted: initializers or outputs of Constant nodes.
    pub wanted: Vec<ValueId>,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
}

/// The gradient by one use of a weight. Exporters share equal weights among nodes; each use has a gradient of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseGradient {
    /// The weight.
    pub value: ValueId,
    /// The node that reads it.
    pub node: NodeId,
    /// At which input.
    pub slot: usize,
    /// The output of the gradient graph: the weight's own shape, float32.
    pub output: String,
}

/// A graph that computes the loss and its gradients.
#[derive(Debug)]
pub struct GradientGraph {
    /// The model: inputs of the original network and [`TARGET`]; outputs [`LOSS`] and the gradients.
    pub model: ModelProto,
    /// The gradients by every use of a wanted weight that the loss depends on. The gradient by any other use is zero.
    pub gradients: Vec<UseGradient>,
    /// The shape of the target.
    pub target_shape: Vec<i64>,
    /// Bytes of all values of the forward pass: about what a run needs beside weights and gradients, since the backward
    /// pass reads most of them and frees them as it goes.
    pub activation_bytes: u64,
    /// Whether operators of ours are among the nodes, which only this tool's own sessions on the processor can run.
    pub has_kernels: bool,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// What the loss is multiplied by at first, where gradients could vanish in half precision.
    loss_scale: Option<LossScale>,
}

impl GradientGraph {
    /// Differentiates a network, in standard operators that any execution provider runs.
    ///
    /// # Errors
    /// An operator between a wanted weight and the loss has no gradient, a shape on the way is not known, or a constant
    /// can't be read.
    pub fn build(analysis: &Analysis, options: &GradientOptions) -> Result<Self, Error> {
        Self::built(analysis, options, false)
    }

    /// As [`GradientGraph::build`], for [`pass::GradientPass`] on a device. On the processor, norms and activations run in
    /// kernels of ours, which take less time and memory; in float32 alone.
    ///
    /// # Errors
    /// As [`GradientGraph::build`].
    pub fn build_for(analysis: &Analysis, options: &GradientOptions, device: Device) -> Result<Self, Error> {
        Self::built(analysis, options, device == Device::Cpu && options.precision == Precision::Float32)
    }

    fn built(analysis: &Analysis, options: &GradientOptions, has_kernels: bool) -> Result<Self, Error> {
        let (model, graph) = (&analysis.model, &analysis.graph);
        let facts = analysis.facts_at(&options.sizes)?;
        let prediction = prediction(analysis, options)?;
        let needed = ancestors(graph, prediction);
        let depends = depends(analysis, &facts, &options.wanted);
        let shape = facts.values[prediction].as_ref().and_then(|fact| fact.shape.as_deref()).and_then(signed_shape);
        let shape = shape.ok_or_else(|| {
            let name = &graph.values[prediction].name;
            Error::unmet(format!("the shape of output {name:?} is not known"))
                .in_file(model.path())
                .hint("give the sizes of the network's inputs with --size NAME=N")
        })?;
        let mut tape = Tape::new(graph.opset, &options.wanted, has_kernels);
        let forward = forward::standard_nodes(analysis, &facts, &needed);
        for node in &forward.nodes {
            tape.nodes.push(forward::widened_node(model, node)?);
        }
        tape.initializers.extend(forward.initializers);
        let is_half = options.precision == Precision::Float16 && !options.wanted.is_empty();
        let target_shape = tape.seed(graph, prediction, &shape, options.channels, is_half);
        for node in graph.nodes.iter().rev().filter(|node| needed.contains(&node.id)) {
            differentiate(analysis, &facts, &depends, &mut tape, node.id)?;
        }
        let backward = tape.nodes.split_off(forward.nodes.len());
        for node in std::mem::take(&mut tape.nodes) {
            match node.output.first().and_then(|output| tape.replaced.remove(output)) {
                Some(others) => tape.nodes.extend(others),
                None => tape.nodes.push(node),
            }
        }
        tape.nodes.extend(backward);
        let gradients = tape.name_uses(graph, is_half);
        if options.precision == Precision::Float16 {
            let is_whole = |node: &NodeProto| {
                let values = node.input.iter().filter_map(|name| graph.value(name));
                values.filter_map(|value| facts.values[value].as_ref()).any(|fact| !fact.is_float())
            };
            precision::halve_products(model, &mut tape, &model.graph().initializer, is_whole)?;
        }
        let activation_bytes = forward_bytes(graph, &facts, &needed);
        let loss_scale = is_half.then(|| LossScale::of_mean(target_shape.iter().product()));
        let built = Self {
            model: ModelProto::default(),
            gradients,
            target_shape,
            activation_bytes,
            has_kernels: false,
            precision: options.precision,
            loss_scale,
        };
        built.assembled(analysis, &facts, tape)
    }

    fn assembled(mut self, analysis: &Analysis, facts: &Facts, mut tape: Tape) -> Result<Self, Error> {
        let (proto, graph) = (analysis.model.proto(), analysis.model.graph());
        self.drop_unread(&mut tape.nodes);
        self.has_kernels = tape.nodes.iter().any(|node| node.domain == DOMAIN);
        // Bodies of If, Loop and Scan read initializers as well.
        let read: BTreeSet<&str> =
            tape.nodes.iter().flat_map(|node| node.input.iter().map(String::as_str).chain(captured(node))).collect();
        let mut initializer = Vec::new();
        for tensor in graph.initializer.iter().filter(|tensor| read.contains(tensor.name.as_str())) {
            initializer.push(forward::widened_tensor(&analysis.model, tensor)?);
        }
        initializer.extend(tape.initializers);
        let mut input = Vec::new();
        for value in &analysis.graph.inputs {
            let name = &analysis.graph.values[*value].name;
            let fact = facts.values[*value].as_ref();
            let shape = fact.and_then(|fact| fact.shape.as_deref()).and_then(signed_shape);
            let (Some(fact), Some(shape), true) = (fact, shape, read.contains(name.as_str())) else { continue };
            input.push(value_info(name, forward::widened_type(fact.dtype), &shape));
        }
        input.push(value_info(TARGET, DataType::Float, &self.target_shape));
        let mut output = vec![value_info(LOSS, DataType::Float, &[])];
        if self.loss_scale.is_some() {
            input.push(value_info(LOSS_SCALE, DataType::Float, &[]));
            output.push(value_info(OVERFLOW, DataType::Float, &[]));
        }
        for gradient in &self.gradients {
            let shape =
                facts.values[gradient.value].as_ref().and_then(|fact| fact.shape.as_deref()).and_then(signed_shape);
            output.push(value_info(&gradient.output, DataType::Float, &shape.unwrap_or_default()));
        }
        let mut opset_import = proto.opset_import.clone();
        if self.has_kernels {
            opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
        }
        self.model = ModelProto {
            ir_version: proto.ir_version.max(4),
            opset_import,
            graph: Some(GraphProto {
                name: "gradients".to_owned(),
                node: tape.nodes,
                initializer,
                input,
                output,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        Ok(self)
    }
}

impl GradientGraph {
    /// Takes out the nodes that no output needs: those for which a kernel stands in.
    fn drop_unread(&self, nodes: &mut Vec<NodeProto>) {
        let mut read: BTreeSet<String> = self.gradients.iter().map(|gradient| gradient.output.clone()).collect();
        read.extend([LOSS.to_owned(), OVERFLOW.to_owned()]);
        let mut kept = Vec::with_capacity(nodes.len());
        // Consumers stand after producers.
        for node in std::mem::take(nodes).into_iter().rev() {
            if node.output.iter().any(|output| read.contains(output)) {
                read.extend(node.input.iter().cloned());
                read.extend(captured(&node).into_iter().map(str::to_owned));
                kept.push(node);
            }
        }
        kept.reverse();
        *nodes = kept;
    }
}

/// The output that the loss compares.
fn prediction(analysis: &Analysis, options: &GradientOptions) -> Result<ValueId, Error> {
    let graph = &analysis.graph;
    match &options.prediction {
        None => graph.outputs.first().copied(),
        Some(name) => graph.outputs.iter().copied().find(|value| graph.values[*value].name == *name),
    }
    .ok_or_else(|| {
        let names: Vec<&str> = graph.outputs.iter().map(|value| graph.values[*value].name.as_str()).collect();
        let wanted = options.prediction.as_deref().unwrap_or("(any)");
        Error::usage(format!("expected an output named {wanted}, found {}", names.join(", ")))
            .in_file(analysis.model.path())
    })
}

/// Nodes that a value is computed from.
fn ancestors(graph: &Graph, value: ValueId) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if let Some((node, _)) = graph.values[value].producer
            && nodes.insert(node)
        {
            open.extend(graph.nodes[node].inputs.iter().flatten());
            // What a subgraph reads from outside is an input of its node as well.
            open.extend((0..graph.values.len()).filter(|value| graph.values[*value].captured_by.contains(&node)));
        }
    }
    nodes
}

/// Whether a value changes, as a floating point number or what stands for one, with a wanted weight.
fn depends(analysis: &Analysis, facts: &Facts, wanted: &[ValueId]) -> Vec<bool> {
    let graph = &analysis.graph;
    let mut depends = vec![false; graph.values.len()];
    for value in wanted {
        depends[*value] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().flatten().any(|value| depends[*value]) {
            let quantizes = analysis.operators.get(node.id).is_some_and(Operator::quantizes);
            for value in node.outputs.iter().flatten() {
                depends[*value] |= quantizes;
                depends[*value] |= facts.values[*value].as_ref().is_none_or(crate::graph::fact::Fact::is_float);
            }
        }
    }
    depends
}

fn differentiate(
    analysis: &Analysis,
    facts: &Facts,
    depends: &[bool],
    tape: &mut Tape,
    node: NodeId,
) -> Result<(), Error> {
    let node = &analysis.graph.nodes[node];
    let upstream: Vec<Option<String>> =
        node.outputs.iter().map(|value| value.and_then(|value| tape.gradient(value))).collect();
    let is_wanted = node.inputs.iter().flatten().any(|value| depends[*value]);
    if !is_wanted || upstream.iter().all(Option::is_none) {
        return Ok(());
    }
    let mut cx = GradientCx { graph: &analysis.graph, node, facts, depends, tape, upstream };
    let result = analysis.operators.of(node.id).and_then(|op| op.gradient(&mut cx));
    result.map_err(|cause| {
        let shapes: Vec<String> = node
            .inputs
            .iter()
            .map(|value| value.and_then(|v| facts.values[v].as_ref()).map_or("-".to_owned(), |fact| fact.describe()))
            .collect();
        Error::unsupported(format!("no gradient passes this node: {cause}; inputs: {}", shapes.join(", ")))
            .in_file(analysis.model.path())
            .at_node(&node.name, node.op())
            .hint("score with --criterion magnitude, or exclude what lies before the node with --keep")
    })
}

/// Bytes of all float values that the needed nodes compute.
fn forward_bytes(graph: &Graph, facts: &Facts, needed: &BTreeSet<NodeId>) -> u64 {
    let outputs = needed.iter().flat_map(|node| graph.nodes[*node].outputs.iter().flatten());
    let shapes = outputs.filter_map(|value| signed_shape(facts.values[*value].as_ref()?.shape.as_ref()?));
    shapes.map(|shape| 4 * shape.iter().product::<i64>().max(0) as u64).sum()
}

/// The declaration of a graph input or output.
pub(crate) fn value_info(name: &str, dtype: DataType, shape: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = shape.iter().map(|size| Dimension { value: Some(Value::DimValue(*size)), ..Dimension::default() });
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(TensorShapeProto { dim: dim.collect() }) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}
