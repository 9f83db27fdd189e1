//! Lowering: fused nodes expressed in standard operators.
//!
//! The meaning of an operator is defined once, in its [`crate::operator::Operator::lower`]. The reference, gradients,
//! and sessions on a CPU without a kernel for the operator all use the network in this form. Values of the original
//! keep their names, ids and facts. Only values inside a fused node are new.

mod foreign;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, Node, NodeId, Reader};
use crate::infer::infer;
use crate::onnx::builder::{Builder, inputs_of};
use crate::onnx::names::Names;
use crate::onnx::{DataType, GraphProto, ModelProto, TypeProto, ValueInfoProto, type_proto};
use crate::operator::{LowerCx, Operator, Operators, RuleError};
use crate::ops;
use crate::runtime::{Device, Runtime, RuntimeError, Session, SessionOptions};
pub use foreign::foreign;

/// Prefix of the names of new values and constants.
const PREFIX: &str = "__lower";

/// Which nodes are lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All fused nodes.
    All,
    /// Those for which ONNX Runtime has no kernel on the CPU.
    WithoutCpuKernel,
}

/// A network whose fused nodes are expressed in standard operators.
#[derive(Debug)]
pub struct Lowered {
    /// The model. Its weights are not copied.
    pub model: Model,
    /// Its graph. Values of the original have the original's ids.
    pub graph: Graph,
    /// Its operators.
    pub operators: Operators,
    /// The facts of its values. Values of the original keep their facts.
    pub facts: Facts,
    /// The original node of each node.
    pub origins: Vec<NodeId>,
    /// The fused nodes of the original that could not be lowered, with the reason.
    pub refused: BTreeMap<NodeId, RuleError>,
    /// The inputs that now use each input of an original node. Empty for inputs of which only the shape matters.
    uses: BTreeMap<Reader, Vec<Reader>>,
}

/// The nodes that replace one original node.
struct Part {
    origin: NodeId,
    is_lowered: bool,
    /// The range of its nodes in the list of all nodes.
    start: usize,
    end: usize,
    /// Inputs that pass through an Identity: the slot, and the position of the Identity in the list of all nodes.
    read_through: Vec<(usize, usize)>,
}

impl Lowered {
    /// Lowers a network whose `facts` are known, at symbolic or fixed sizes.
    ///
    /// # Errors
    /// A lowered node violates its operator's specification.
    pub fn new(
        model: &Model,
        graph: &Graph,
        operators: &Operators,
        facts: &Facts,
        extent: Extent,
    ) -> Result<Self, Error> {
        let mut builder = Builder::new(PREFIX, graph.opset, Names::of_graph(model.graph()));
        let mut parts = Vec::with_capacity(graph.nodes.len());
        let mut refused = BTreeMap::new();
        for node in &graph.nodes {
            let start = builder.nodes.len();
            let operator = operators.get(node.id).filter(|op| extent == Extent::All || op.lacks_cpu_kernel());
            let read_through = match operator.map_or(Ok(None), |op| lower_node(node, op, facts, &mut builder)) {
                Ok(read_through) => read_through,
                // The node can still run where a kernel exists. Gradients that need it fail with this cause.
                Err(cause) => {
                    refused.insert(node.id, cause);
                    None
                }
            };
            if read_through.is_none() {
                builder.nodes.push(node.proto.clone());
            }
            let is_lowered = read_through.is_some();
            let (end, read_through) = (builder.nodes.len(), read_through.unwrap_or_default());
            parts.push(Part { origin: node.id, is_lowered, start, end, read_through });
        }
        let mut proto = GraphProto { node: builder.nodes, ..model.graph().clone() };
        proto.initializer.extend(builder.initializers);
        let model = model.with_graph(proto);
        let lowered = Graph::following(&model, graph)?;
        let operators = ops::parse(&lowered);
        let facts = infer_new(&model, &lowered, &operators, facts, graph.values.len())?;
        let mut by_index: Vec<NodeId> = vec![0; lowered.nodes.len()];
        lowered.nodes.iter().for_each(|node| by_index[node.index] = node.id);
        let mut origins = vec![0; lowered.nodes.len()];
        for part in &parts {
            by_index[part.start..part.end].iter().for_each(|node| origins[*node] = part.origin);
        }
        let uses = uses(graph, &lowered, &parts, &by_index);
        Ok(Self { model, graph: lowered, operators, facts, origins, refused, uses })
    }

    /// Returns the inputs that now use input `slot` of an original node.
    pub fn uses_of(&self, of: Reader) -> &[Reader] {
        self.uses.get(&of).map_or(&[], Vec::as_slice)
    }

    /// Returns the input of an original node for each input of a node. Inputs with values inside a fused node are
    /// omitted.
    pub fn origin_uses(&self) -> BTreeMap<Reader, Reader> {
        self.uses.iter().flat_map(|(origin, uses)| uses.iter().map(|of| (*of, *origin))).collect()
    }

    /// Converts data per use of the original network to data per use of the lowered network.
    pub fn by_lowered_use<T: Clone>(&self, of_original: impl IntoIterator<Item = (Reader, T)>) -> Vec<(Reader, T)> {
        let of = of_original.into_iter();
        of.flat_map(|(origin, what)| self.uses_of(origin).iter().map(move |of| (*of, what.clone()))).collect()
    }

    /// Returns the network as a file that ONNX Runtime can load from the folder of the original.
    pub fn to_proto(&self) -> ModelProto {
        let graph = self.model.graph().clone();
        ModelProto { graph: Some(graph), functions: Vec::new(), ..self.model.proto().clone() }
    }
}

/// Adds a node in standard operators. Returns the inputs that pass through an Identity, or `None` if the node is a
/// standard one already.
fn lower_node(
    node: &Node,
    operator: &dyn Operator,
    facts: &Facts,
    builder: &mut Builder,
) -> Result<Option<Vec<(usize, usize)>>, RuleError> {
    let start = builder.nodes.len();
    let mut cx = LowerCx::new(node, facts, builder);
    let result = operator.lower(&mut cx);
    let read_through = cx.read_through();
    if result == Ok(true) {
        let is_given = |output: &String| builder.nodes[start..].iter().any(|node| node.output.contains(output));
        let outputs = || node.proto.output.iter().enumerate().filter(|(_, output)| !output.is_empty());
        match outputs().find(|(_, output)| !is_given(output)) {
            None => return Ok(Some(read_through)),
            Some((slot, _)) => {
                builder.nodes.truncate(start);
                return Err(RuleError::unsupported(format!("output {slot} can't be lowered")));
            }
        }
    }
    builder.nodes.truncate(start);
    result.map(|_| None)
}

/// Returns the facts of the original for its values, which come first, and inferred facts for the new values.
fn infer_new(model: &Model, graph: &Graph, operators: &Operators, known: &Facts, count: usize) -> Result<Facts, Error> {
    let mut facts = Facts::of_sources(model, graph, &known.fixed)?;
    facts.ties.clone_from(&known.ties);
    facts.fresh = facts.fresh.max(known.fresh);
    facts.values[..count].clone_from_slice(&known.values[..count]);
    for node in &graph.nodes {
        if node.outputs.iter().flatten().any(|value| *value >= count || facts.values[*value].is_none()) {
            facts.infer_node(model, graph, node, operators)?;
            for value in node.outputs.iter().flatten().filter(|value| **value < count) {
                if let Some(fact) = &known.values[*value] {
                    facts.values[*value] = Some(fact.clone());
                }
            }
        }
    }
    Ok(facts)
}

/// Returns the inputs that now use each input of the original nodes.
fn uses(graph: &Graph, lowered: &Graph, parts: &[Part], by_index: &[NodeId]) -> BTreeMap<Reader, Vec<Reader>> {
    let mut uses: BTreeMap<Reader, Vec<Reader>> = BTreeMap::new();
    for part in parts {
        let origin = &graph.nodes[part.origin];
        for (index, node) in (part.start..part.end).map(|index| (index, by_index[index])) {
            if let Some((slot, _)) = part.read_through.iter().find(|(_, at)| *at == index) {
                let read = Reader { node: part.origin, slot: *slot };
                uses.entry(read).or_default().push(Reader { node, slot: 0 });
                continue;
            }
            for (slot, value) in lowered.nodes[node].inputs.iter().enumerate() {
                let read_at = || origin.inputs.iter().position(|own| own == value);
                let at = if part.is_lowered { read_at() } else { Some(slot) };
                if let (Some(at), Some(_)) = (at, value) {
                    let read = Reader { node: part.origin, slot: at };
                    uses.entry(read).or_default().push(Reader { node, slot });
                }
            }
        }
    }
    uses
}

/// Returns a network with every fused node in standard operators, as a file that ONNX Runtime can load from the folder
/// of the original.
///
/// # Errors
/// The model is inconsistent.
pub fn lowered_model(model: &Model) -> Result<ModelProto, Error> {
    lowered_to(model, Extent::All).map(|lowered| lowered.to_proto())
}

/// Returns a network in the form in which ONNX Runtime runs it on the CPU, or `None` if that is the file itself.
///
/// # Errors
/// The model is inconsistent.
pub fn runnable_on_cpu(model: &Model) -> Result<Option<ModelProto>, Error> {
    Ok(lowered_for_cpu(model)?.map(|(lowered, _)| lowered.to_proto()))
}

/// Returns the nodes that [`runnable_on_cpu`] replaces with standard operators, as name and operator.
///
/// # Errors
/// The model is inconsistent.
pub fn stand_ins(model: &Model) -> Result<Vec<(String, String)>, Error> {
    let graph = Graph::new(model)?;
    let operators = ops::parse(&graph);
    let lacking: Vec<NodeId> = (0..graph.nodes.len())
        .filter(|node| operators.get(*node).is_some_and(<dyn Operator>::lacks_cpu_kernel))
        .collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let refused = lowered_to(model, Extent::WithoutCpuKernel)?.refused;
    let nodes = lacking.iter().filter(|node| !refused.contains_key(node)).map(|node| &graph.nodes[*node]);
    Ok(nodes.map(|node| (node.name.clone(), node.op())).collect())
}

/// Like [`runnable_on_cpu`]. Also returns, for each node, the first output of its original node in the file.
///
/// # Errors
/// The model is inconsistent.
pub(crate) fn lowered_for_cpu(model: &Model) -> Result<Option<(Lowered, Vec<String>)>, Error> {
    let graph = Graph::new(model)?;
    let operators = ops::parse(&graph);
    if !graph.nodes.iter().any(|node| operators.get(node.id).is_some_and(<dyn Operator>::lacks_cpu_kernel)) {
        return Ok(None);
    }
    let lowered = lowered_to(model, Extent::WithoutCpuKernel)?;
    let owners = lowered.origins.iter().map(|node| graph.nodes[*node].proto.first_output().to_owned()).collect();
    Ok(Some((lowered, owners)))
}

/// Creates a session of a network. On the CPU, nodes for which ONNX Runtime has no kernel run in standard operators, so
/// that every supported network runs.
///
/// # Errors
/// The model is inconsistent, or ONNX Runtime can't load it.
pub fn session(runtime: &Runtime, model: &Model, options: &SessionOptions) -> Result<Session, Error> {
    let lowered = if options.device == Device::Cpu { runnable_on_cpu(model)? } else { None };
    let session = match lowered {
        None => session_as_stored(runtime, model, options),
        Some(proto) => session_from_memory(runtime, model, &proto, options),
    };
    session.map_err(|error| refused(model, error))
}

/// Creates a session that outputs the given values of a network, which may be outputs or inner values, instead of its
/// outputs. Inputs that these values do not need are removed.
///
/// # Errors
/// As for [`session`], or the network has no such value.
pub fn session_with_outputs(
    runtime: &Runtime,
    model: &Model,
    values: &[&str],
    options: &SessionOptions,
) -> Result<Session, Error> {
    let graph = Graph::new(model)?;
    let facts = infer(model, &graph, &ops::parse(&graph))?;
    let mut output = Vec::with_capacity(values.len());
    for value in values {
        let place = graph.values.iter().position(|found| found.name == *value && found.producer.is_some());
        let missing = || {
            Error::usage(format!("no node outputs a value named {value:?}; use the name of a node's output"))
                .in_file(model.path())
        };
        let elem_type =
            facts.values[place.ok_or_else(missing)?].as_ref().map_or(DataType::Float, |fact| fact.dtype) as i32;
        let tensor = type_proto::Tensor { elem_type, shape: None };
        let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        output.push(ValueInfoProto { name: (*value).to_owned(), r#type: Some(r#type), ..ValueInfoProto::default() });
    }
    let mut part = GraphProto { output, ..model.graph().clone() };
    part.drop_dead();
    let read: BTreeSet<String> = part.node.iter().flat_map(inputs_of).map(str::to_owned).collect();
    part.input.retain(|input| read.contains(&input.name));
    let part = model.with_graph(part);
    let lowered = if options.device == Device::Cpu { runnable_on_cpu(&part)? } else { None };
    let whole = || ModelProto { graph: Some(part.graph().clone()), functions: Vec::new(), ..part.proto().clone() };
    let proto = lowered.unwrap_or_else(whole);
    session_from_memory(runtime, &part, &proto, options).map_err(|error| refused(model, error))
}

/// Returns the error for a network that ONNX Runtime can't load.
fn refused(model: &Model, error: RuntimeError) -> Error {
    match foreign(model, &error, "the network can't be run") {
        Some(unknown) => unknown.hint(
            "run the network in the runtime that provides the operator; \
             here, use --criterion magnitude with --no-verify, which does not run it",
        ),
        None => Error::invalid(model.path(), error.to_string()).caused_by(error),
    }
}

/// Creates a session of a network as stored in its file.
///
/// # Errors
/// ONNX Runtime can't load it.
pub(crate) fn session_as_stored(
    runtime: &Runtime,
    model: &Model,
    options: &SessionOptions,
) -> Result<Session, RuntimeError> {
    let stored = runtime.session_from_file(model.path(), options);
    if stored.is_ok() || !model.has_linked_data() {
        return stored;
    }
    // ONNX Runtime 1.24.1 rejects external data behind a link that leads out of the folder.
    let proto = ModelProto { graph: Some(model.graph().clone()), functions: Vec::new(), ..model.proto().clone() };
    session_from_memory(runtime, model, &proto, options).or(stored)
}

/// Creates a session of a form of a network, with the external data of its file.
fn session_from_memory(
    runtime: &Runtime,
    model: &Model,
    proto: &ModelProto,
    options: &SessionOptions,
) -> Result<Session, RuntimeError> {
    let options = SessionOptions { external_data_folder: Some(model.data_folder()), ..options.clone() };
    runtime.session_from_bytes(&model.located(proto).encode_to_vec(), &options)
}

fn lowered_to(model: &Model, extent: Extent) -> Result<Lowered, Error> {
    let graph = Graph::new(model)?;
    let operators = ops::parse(&graph);
    let facts = infer(model, &graph, &operators)?;
    Lowered::new(model, &graph, &operators, &facts, extent)
}
