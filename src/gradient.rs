//! Gradients: reverse-mode differentiation from ONNX graph to ONNX graph.
//!
//! [`GradientGraph::build`] builds one graph with the forward pass, a loss and the gradients of the wanted weights and
//! values as outputs. The loss is the denoising loss `L = mean((prediction - target)^2)` unless the options name other
//! terms (see [`loss`]). The graph consists of standard ONNX operators of the model's opset, so that every execution
//! provider runs it. Fused nodes are lowered first ([`crate::lower`]). In a graph for the CPU, kernels of this tool
//! then replace some of the nodes. The gradient of every operator is implemented in the operator's file under `ops/`,
//! see [`crate::operator::Operator::gradient`]. The graph is built for fixed sizes, so every shape is known while it is
//! built. Weights of any precision are differentiated in float32, or with factors in half precision if [`Precision`]
//! asks for it.

pub mod accumulate;

mod by_index;

pub mod checkpoint;

mod differentiate;

mod forward;

mod kernels;

pub mod loss;

pub mod pass;

pub mod precision;

mod recompute;

mod seed;

mod size;

pub mod sum;

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::fact::Known;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, Node, NodeId, Reader, ValueId};
use crate::kernels::DOMAIN;
use crate::lower::{Extent, Lowered};
use crate::onnx::builder::{Builder, inputs_of};
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use crate::operator::Operators;
use crate::operator::gradient::{Tape, signed_shape};
use crate::runtime::Device;
use loss::{FoundTerm, LossTerm, TermInput};
use precision::{LOSS_SCALE, LossScale, OVERFLOW};

pub(crate) use forward::{widened_node, widened_tensor, widened_type};

pub use precision::Precision;

/// Name of the graph input for the target of the loss.
pub const TARGET: &str = "__target";

/// Name of the scalar output with the loss, the sum of all terms.
pub const LOSS: &str = "__loss";

/// The settings of a gradient graph.
#[derive(Clone, Debug, Default)]
pub struct GradientOptions {
    /// A size for every symbolic dimension of the graph's inputs.
    pub sizes: Sizes,
    /// The output that is the prediction. `None`: the first output.
    pub prediction: Option<String>,
    /// Number of channels of the prediction that the loss compares: the first channels of axis 1. `None`: all channels.
    /// Networks that also predict a variance have twice as many.
    pub channels: Option<i64>,
    /// The terms of the loss. Empty: the mean squared difference between the prediction's channels and [`TARGET`].
    pub loss: Vec<LossTerm>,
    /// The weights whose gradients are computed: initializers or outputs of Constant nodes.
    pub wanted: Vec<ValueId>,
    /// The values whose gradients are computed, each summed over all its uses: values within the network, or its
    /// inputs.
    pub wanted_values: Vec<ValueId>,
    /// Weights that change between runs. They become float32 inputs of the graph under their own names instead of
    /// constants.
    pub fed: Vec<ValueId>,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// If set, the graph outputs sums of weight times gradient for these uses of weights, instead of the gradients: for
    /// each of the listed axes in turn, a vector of sums over all other axes. This suffices for criteria that are
    /// linear in the gradient. Other uses have no output. `None`: the graph outputs the gradients.
    pub by_index: Option<BTreeMap<Reader, Vec<usize>>>,
    /// Whether the backward pass recomputes activations instead of keeping them. This takes less memory and more time.
    /// The results are the same.
    pub recomputes: bool,
}

/// The gradient with respect to one use of a weight. Exporters share equal weights among nodes; each use has its own
/// gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseGradient {
    /// The weight.
    pub value: ValueId,
    /// The node that takes it as input.
    pub node: NodeId,
    /// The index of the input.
    pub slot: usize,
    /// The output of the gradient graph, float32. It has the shape of the weight, or is a vector of sums if `axes` is
    /// not empty.
    pub output: String,
    /// The axes of the sums: for each index of each axis, a sum of weight times gradient over the other axes
    /// ([`GradientOptions::by_index`]), or another sum that a criterion uses. Empty: the output is the gradient itself.
    pub axes: Vec<usize>,
}

/// The gradient with respect to a value of the network, summed over all uses of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueGradient {
    /// The value.
    pub value: ValueId,
    /// The output of the gradient graph, float32, with the shape of the value.
    pub output: String,
}

/// The network that is differentiated: a graph with its operators, and the facts of its values at fixed sizes. `model`
/// holds the constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network<'a> {
    pub(crate) model: &'a Model,
    pub(crate) graph: &'a Graph,
    pub(crate) operators: &'a Operators,
    pub(crate) facts: &'a Facts,
    /// The network with fused nodes. The other fields describe its lowered form.
    pub(crate) original: &'a Graph,
    /// Maps the nodes of the lowered form to the nodes of the original.
    pub(crate) lowered: &'a Lowered,
}

impl<'a> Network<'a> {
    /// Returns the lowered form of a network whose graph is `original`.
    pub(crate) fn of(lowered: &'a Lowered, original: &'a Graph) -> Self {
        let Lowered { model, graph, operators, facts, .. } = lowered;
        Self { model, graph, operators, facts, original, lowered }
    }

    /// Returns the shape of a value, if all sizes are known.
    pub(crate) fn shape(&self, value: ValueId) -> Option<Vec<i64>> {
        signed_shape(self.facts.values[value].as_ref()?.shape.as_deref()?)
    }
}

/// A graph that computes the loss and its gradients.
#[derive(Debug)]
pub struct GradientGraph {
    /// The model. Inputs: those of the original network and of the loss, such as [`TARGET`]. Outputs: [`LOSS`], the
    /// value of every term if the loss was given as terms, and the gradients.
    pub model: ModelProto,
    /// The gradients with respect to every use of a wanted weight on which the loss depends. For other uses, the
    /// gradient is zero.
    pub gradients: Vec<UseGradient>,
    /// The gradients with respect to the wanted values on which the loss depends. For other values, the gradient is
    /// zero.
    pub value_gradients: Vec<ValueGradient>,
    /// The terms of the loss, in the order of [`GradientOptions::loss`].
    pub terms: Vec<TermInput>,
    /// The shape of the target of the first term.
    pub target_shape: Vec<i64>,
    /// Size in bytes of all values of the forward pass. This is about what a run needs in addition to weights and
    /// gradients, because the backward pass uses most of these values and frees them as it goes. With recomputation:
    /// the estimated maximum size of the activations that are in memory at the same time.
    pub activation_bytes: u64,
    /// Whether the graph contains operators of this tool, which only its own sessions on the CPU can run.
    pub has_kernels: bool,
    /// The precision of convolutions and matrix products.
    pub precision: Precision,
    /// The initial loss scale. `None`: nothing is computed in half precision, so gradients do not underflow.
    loss_scale: Option<LossScale>,
}

impl GradientGraph {
    /// Builds the gradient graph of a network from standard operators, which every execution provider runs.
    ///
    /// # Errors
    /// An operator between a wanted weight and the loss has no gradient, a shape in between is not known, or a constant
    /// can't be read.
    pub fn build(analysis: &Analysis, options: &GradientOptions) -> Result<Self, Error> {
        Self::built(analysis, options, false)
    }

    /// Like [`GradientGraph::build`], for a [`pass::GradientPass`] on a device. On the CPU in float32, norms and
    /// activations run in kernels of this tool, which take less time and memory.
    ///
    /// # Errors
    /// As for [`GradientGraph::build`].
    pub fn build_for(analysis: &Analysis, options: &GradientOptions, device: Device) -> Result<Self, Error> {
        Self::built(analysis, options, device == Device::Cpu && options.precision == Precision::Float32)
    }

    fn built(analysis: &Analysis, options: &GradientOptions, has_kernels: bool) -> Result<Self, Error> {
        let mut facts = analysis.facts_at(&options.sizes)?;
        if !options.fed.is_empty() {
            forget_fed(&analysis.graph, &mut facts, &options.fed);
        }
        let lowered = Lowered::new(&analysis.model, &analysis.graph, &analysis.operators, &facts, Extent::All)?;
        Self::of(&Network::of(&lowered, &analysis.graph), options, has_kernels)
    }

    /// Differentiates `network`. The options refer to values of its lowered form.
    pub(crate) fn of(network: &Network<'_>, options: &GradientOptions, has_kernels: bool) -> Result<Self, Error> {
        let Network { model, graph, facts, .. } = *network;
        let terms = terms(network, options)?;
        let compared: Vec<ValueId> = terms.iter().map(|term| term.value).collect();
        let needed = differentiate::ancestors(graph, &compared);
        refuse_own_names(network)?;
        let builder = Builder::new("__grad", graph.opset, graph.names());
        let mut tape = Tape::new(builder, &options.wanted, &options.wanted_values);
        // A fed weight may be the output of a Constant node.
        let is_fed = |node: &Node| node.outputs.iter().flatten().any(|value| options.fed.contains(value));
        for node in graph.nodes.iter().filter(|node| needed.contains(&node.id) && !is_fed(node)) {
            tape.builder.nodes.push(forward::widened_node(model, &node.proto)?);
        }
        let forward = tape.builder.nodes.len();
        let asks = !(options.wanted.is_empty() && options.wanted_values.is_empty());
        let is_half = options.precision == Precision::Float16 && asks;
        tape.seed(graph, &terms, is_half);
        let seeds = tape.builder.nodes.len() - forward;
        differentiate::differentiate(network, &mut tape, &needed)?;
        tape.join_uses(&network.lowered.origin_uses());
        if let Some(by_index) = &options.by_index {
            tape.sum_by_index(graph, by_index, &|value| network.shape(value).unwrap_or_default());
        }
        let (gradients, value_gradients) = tape.name_gradients(graph, options, is_half);
        let forward = if has_kernels { kernels::choose(network, &mut tape, forward) } else { forward };
        let mut activation_bytes = forward_bytes(graph, facts, &needed);
        if options.recomputes {
            let own = [LOSS, OVERFLOW].map(str::to_owned).into_iter();
            let of_terms = terms.iter().map(|term| term.input.output.clone());
            let by_uses = gradients.iter().map(|gradient| gradient.output.clone());
            let by_values = value_gradients.iter().map(|gradient| gradient.output.clone());
            let outputs: Vec<String> = own.chain(of_terms).chain(by_uses).chain(by_values).collect();
            activation_bytes = recompute::insert(network, &mut tape, (forward, seeds), &outputs);
        }
        if options.precision == Precision::Float16 {
            let is_whole = |node: &NodeProto| {
                let values = node.input.iter().filter_map(|name| graph.value(name));
                values.filter_map(|value| facts.values[value].as_ref()).any(|fact| !fact.is_float())
            };
            let names = fed_names(graph, options);
            let constants = model.graph().initializer.iter().filter(|tensor| !names.contains(tensor.name.as_str()));
            precision::halve_products(model, &mut tape, constants, is_whole)?;
        }
        let size = terms.iter().map(FoundTerm::scale).fold(0.0, f64::max);
        let terms: Vec<TermInput> = terms.into_iter().map(|term| term.input).collect();
        let built = Self {
            model: ModelProto::default(),
            gradients,
            value_gradients,
            target_shape: terms.first().map(|term| term.target_shape.clone()).unwrap_or_default(),
            terms,
            activation_bytes,
            has_kernels: false,
            precision: options.precision,
            loss_scale: is_half.then(|| LossScale::of_size(size)),
        };
        built.assembled(network, tape, &options.fed)
    }

    fn assembled(mut self, network: &Network<'_>, tape: Tape, fed: &[ValueId]) -> Result<Self, Error> {
        let Network { model, graph, facts, .. } = *network;
        let (proto, nodes) = (model.proto(), tape.builder.nodes);
        let mut assembled = GraphProto { name: "gradients".to_owned(), node: nodes, ..GraphProto::default() };
        assembled.output = self.outputs(network);
        // Removes the nodes that a kernel replaces.
        assembled.drop_dead();
        let read: BTreeSet<String> = assembled.node.iter().flat_map(inputs_of).map(str::to_owned).collect();
        let fed: Vec<ValueId> = fed.iter().copied().filter(|value| read.contains(&graph.values[*value].name)).collect();
        let is_fed = |name: &str| fed.iter().any(|value| graph.values[*value].name == name);
        let is_constant = |tensor: &&TensorProto| read.contains(&tensor.name) && !is_fed(&tensor.name);
        for tensor in model.graph().initializer.iter().filter(is_constant) {
            assembled.initializer.push(forward::widened_tensor(model, tensor)?);
        }
        let own = tape.builder.initializers.into_iter();
        assembled.initializer.extend(own.filter(|tensor| read.contains(&tensor.name)));
        for value in &graph.inputs {
            let name = &graph.values[*value].name;
            let (Some(fact), Some(shape), true) =
                (facts.values[*value].as_ref(), network.shape(*value), read.contains(name))
            else {
                continue;
            };
            assembled.input.push(value_info(name, forward::widened_type(fact.dtype), &shape));
        }
        let of_loss = TermInput::inputs(&self.terms);
        assembled.input.extend(of_loss.iter().map(|(name, shape)| value_info(name, DataType::Float, shape)));
        if self.loss_scale.is_some() {
            assembled.input.push(value_info(LOSS_SCALE, DataType::Float, &[]));
        }
        let weight = |value: &ValueId| {
            value_info(&graph.values[*value].name, DataType::Float, &network.shape(*value).unwrap_or_default())
        };
        assembled.input.extend(fed.iter().map(weight));
        let mut opset_import = proto.opset_import.clone();
        self.has_kernels = assembled.node.iter().any(|node| node.domain == DOMAIN);
        if self.has_kernels {
            opset_import.push(OperatorSetIdProto { domain: DOMAIN.to_owned(), version: 1 });
        }
        let ir_version = proto.ir_version.max(4);
        self.model = ModelProto { ir_version, opset_import, graph: Some(assembled), ..ModelProto::default() };
        Ok(self)
    }

    /// Returns the outputs in order: the loss, the overflow flag, the terms, and the gradients.
    fn outputs(&self, network: &Network<'_>) -> Vec<ValueInfoProto> {
        let scalars = std::iter::once(LOSS)
            .chain(self.loss_scale.map(|_| OVERFLOW))
            .chain(self.terms.iter().map(|term| term.output.as_str()).filter(|output| *output != LOSS));
        let shape = |value: ValueId| network.shape(value).unwrap_or_default();
        let uses = self.gradients.iter().map(|gradient| {
            let whole = shape(gradient.value);
            let shape = match gradient.axes.as_slice() {
                [] => whole,
                axes => vec![axes.iter().map(|axis| whole[*axis]).sum()],
            };
            value_info(&gradient.output, DataType::Float, &shape)
        });
        let by_value = self
            .value_gradients
            .iter()
            .map(|gradient| value_info(&gradient.output, DataType::Float, &shape(gradient.value)));
        scalars.map(|name| value_info(name, DataType::Float, &[])).chain(uses).chain(by_value).collect()
    }
}

/// Marks the elements of fed weights and of everything computed from them as unknown, because they change between runs.
fn forget_fed(graph: &Graph, facts: &mut Facts, fed: &[ValueId]) {
    let mut changes = vec![false; graph.values.len()];
    fed.iter().for_each(|value| changes[*value] = true);
    for node in &graph.nodes {
        if node.inputs.iter().flatten().any(|value| changes[*value]) {
            node.outputs.iter().flatten().for_each(|value| changes[*value] = true);
        }
    }
    for (fact, _) in facts.values.iter_mut().zip(changes).filter(|(_, changes)| *changes) {
        if let Some(fact) = fact.as_mut().filter(|fact| matches!(fact.known, Some(Known::Floats(_)))) {
            fact.known = None;
        }
    }
}

/// Returns the names of the fed weights.
fn fed_names<'g>(graph: &'g Graph, options: &GradientOptions) -> BTreeSet<&'g str> {
    options.fed.iter().map(|value| graph.values[*value].name.as_str()).collect()
}

/// Rejects a network with a value whose name is used for an input or output of the loss.
fn refuse_own_names(network: &Network<'_>) -> Result<(), Error> {
    let own = [TARGET, LOSS, LOSS_SCALE, OVERFLOW];
    match own.into_iter().find(|name| network.graph.value(name).is_some()) {
        None => Ok(()),
        Some(name) => {
            Err(Error::unmet(format!("the model has a value named {name:?}; this name is reserved for the loss"))
                .in_file(network.model.path())
                .hint("rename the value in the model, or prune with --criterion magnitude, which needs no gradients"))
        }
    }
}

/// Returns the terms of the loss that the options ask for.
fn terms(network: &Network<'_>, options: &GradientOptions) -> Result<Vec<FoundTerm>, Error> {
    let is_default = options.loss.is_empty();
    let terms = if is_default {
        let name = network.graph.values[prediction(network, options)?].name.clone();
        vec![LossTerm { channels: options.channels, ..LossTerm::squared(name) }]
    } else {
        options.loss.clone()
    };
    let found = loss::find(network, &terms, is_default)?;
    if let Some(term) = found.iter().find(|term| options.wanted.contains(&term.value)) {
        let text = format!(
            "the loss compares the weight {:?} directly, but gradients of weights are computed for their uses only",
            term.term.value
        );
        return Err(Error::usage(text)
            .in_file(network.model.path())
            .hint("list it in `wanted_values` instead of `wanted`"));
    }
    Ok(found)
}

/// Returns the output that the loss compares.
fn prediction(network: &Network<'_>, options: &GradientOptions) -> Result<ValueId, Error> {
    let graph = network.graph;
    match &options.prediction {
        None => graph.outputs.first().copied(),
        Some(name) => graph.outputs.iter().copied().find(|value| graph.values[*value].name == *name),
    }
    .ok_or_else(|| {
        let names: Vec<&str> = graph.outputs.iter().map(|value| graph.values[*value].name.as_str()).collect();
        let wanted = options.prediction.as_deref().unwrap_or("(any)");
        Error::usage(format!("--prediction: expected an output named {wanted}, found {}", names.join(", ")))
            .in_file(network.model.path())
    })
}

/// Returns the size in bytes of all float values that the needed nodes compute.
fn forward_bytes(graph: &Graph, facts: &Facts, needed: &BTreeSet<NodeId>) -> u64 {
    let outputs = needed.iter().flat_map(|node| graph.nodes[*node].outputs.iter().flatten());
    let shapes = outputs.filter_map(|value| signed_shape(facts.values[*value].as_ref()?.shape.as_ref()?));
    shapes.map(|shape| 4 * shape.iter().product::<i64>().max(0) as u64).sum()
}

/// Returns the declaration of a graph input or output.
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
