//! The graph of a model: nodes, values, and who produces and consumes what.
//!
//! Nodes name their values, and values the node that produces them and those that read them; ids are positions in the
//! two lists. Nodes are kept in a topological order even where the file's own order is not one, so that most passes
//! are one loop over them. The searches that go elsewhere stop at what they look for and need no graph library;
//! petgraph serves for united sets and for `inspect --dot`.

pub mod digest;

pub mod dim;

mod external;

pub mod fact;

pub mod facts;

pub(crate) mod located;

pub mod model;

pub mod sizes;

pub mod tensor;

use std::collections::HashMap;

use crate::error::Error;
use crate::onnx::names::Names;
use crate::onnx::order::{captured, topological_order};
use crate::onnx::{GraphProto, NodeProto, TensorProto};
use model::Model;

/// Index of a node in [`Graph::nodes`].
pub type NodeId = usize;
/// Index of a value in [`Graph::values`].
pub type ValueId = usize;

/// An input of a node, as the reader of the value that it takes. Exporters share equal constants, so that what is kept
/// of one is a matter of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader {
    /// The node.
    pub node: NodeId,
    /// At which input.
    pub slot: usize,
}

/// A node of the graph; its attributes are those of the [`NodeProto`].
#[derive(Clone, Debug)]
pub struct Node {
    /// Position in [`Graph::nodes`].
    pub id: NodeId,
    /// Position in the file's own list of nodes.
    pub index: usize,
    /// The node as the file has it.
    pub proto: NodeProto,
    /// The name, or `<op_type> producing <first output>` where the exporter gave none.
    pub name: String,
    /// Inputs in order; an omitted optional input is `None`.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs in order; an omitted optional output is `None`.
    pub outputs: Vec<Option<ValueId>>,
    /// For every output, whether anything reads it: a node, a subgraph, or the user of the network.
    pub read: Vec<bool>,
    /// Opset version of the node's domain in this model.
    pub version: i64,
}

impl Node {
    /// The operator, with its domain where that is not the standard one.
    pub fn op(&self) -> String {
        match self.proto.domain.as_str() {
            "" | "ai.onnx" => self.proto.op_type.clone(),
            domain => format!("{domain}.{}", self.proto.op_type),
        }
    }

    /// An integer attribute, or `default`.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.proto.int(name).unwrap_or(default)
    }

    /// A float attribute, or `default`.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.proto.float(name).unwrap_or(default)
    }

    /// The value at input `slot`, if the node has one there.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The value at output `slot`, if the node has one there.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// Whether the node has an output at `slot` and anything reads it. Exporters name optional outputs that nothing does.
    pub fn gives(&self, slot: usize) -> bool {
        self.output(slot).is_some() && self.read.get(slot).copied().unwrap_or(false)
    }
}

/// A value of the graph: a graph input, an initializer, or an output of a node.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// The name, unique in the graph.
    pub name: String,
    /// The node that produces it and at which output.
    pub producer: Option<(NodeId, usize)>,
    /// Index of the initializer that holds it.
    pub initializer: Option<usize>,
    /// Whether the graph takes it as an input (and no initializer gives a default).
    pub is_input: bool,
    /// Whether it is an output of the graph.
    pub is_output: bool,
    /// The nodes that read it, and at which input.
    pub consumers: Vec<(NodeId, usize)>,
    /// The nodes with a subgraph that reads it.
    pub captured_by: Vec<NodeId>,
}

/// Nodes and values of a model.
#[derive(Debug)]
pub struct Graph {
    /// Nodes in a topological order.
    pub nodes: Vec<Node>,
    /// All values.
    pub values: Vec<Value>,
    /// Graph inputs that no initializer backs, in the file's order.
    pub inputs: Vec<ValueId>,
    /// Graph outputs in the file's order.
    pub outputs: Vec<ValueId>,
    /// Version of the standard operator set that the model imports.
    pub opset: i64,
    by_name: HashMap<String, ValueId>,
}

impl Graph {
    /// Builds the graph of a loaded model.
    ///
    /// # Errors
    /// A cycle, which [`crate::load::load`] refuses already.
    pub fn new(model: &Model) -> Result<Self, Error> {
        Self::with_values_of(model, None)
    }

    /// As [`Graph::new`], of a model that another was made into: values of `earlier` keep their ids.
    ///
    /// # Errors
    /// As [`Graph::new`].
    pub fn following(model: &Model, earlier: &Graph) -> Result<Self, Error> {
        Self::with_values_of(model, Some(earlier))
    }

    fn with_values_of(model: &Model, earlier: Option<&Graph>) -> Result<Self, Error> {
        Self::of_proto(model, model.graph(), earlier)
            .map_err(|at| Error::invalid(model.path(), format!("the graph has a cycle through node {at}")))
    }

    /// The graph of a body that a node of the model holds; names from outside are values that nothing produces.
    ///
    /// # Errors
    /// The position of a node on a cycle.
    pub(crate) fn of_body(model: &Model, body: &GraphProto) -> Result<Self, usize> {
        Self::of_proto(model, body, None)
    }

    fn of_proto(model: &Model, proto: &GraphProto, earlier: Option<&Graph>) -> Result<Self, usize> {
        let order = topological_order(proto)?;
        let mut graph = Graph {
            nodes: Vec::with_capacity(proto.node.len()),
            values: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            opset: model.opset("").unwrap_or(1),
            by_name: HashMap::new(),
        };
        for value in earlier.into_iter().flat_map(|earlier| &earlier.values) {
            graph.value_id(&value.name);
        }
        for (i, tensor) in proto.initializer.iter().enumerate() {
            let id = graph.value_id(&tensor.name);
            graph.values[id].initializer = Some(i);
        }
        for input in &proto.input {
            let id = graph.value_id(&input.name);
            if graph.values[id].initializer.is_none() {
                graph.values[id].is_input = true;
                graph.inputs.push(id);
            }
        }
        for index in order {
            graph.add_node(model, index, &proto.node[index]);
        }
        for output in &proto.output {
            let id = graph.value_id(&output.name);
            graph.values[id].is_output = true;
            graph.outputs.push(id);
        }
        let is_read = |value: &Option<ValueId>| {
            value.is_some_and(|value| {
                let value = &graph.values[value];
                value.is_output || !value.consumers.is_empty() || !value.captured_by.is_empty()
            })
        };
        for node in &mut graph.nodes {
            node.read = node.outputs.iter().map(is_read).collect();
        }
        Ok(graph)
    }

    fn value_id(&mut self, name: &str) -> ValueId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let id = self.values.len();
        self.values.push(Value { name: name.to_owned(), ..Value::default() });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    fn add_node(&mut self, model: &Model, index: usize, proto: &NodeProto) {
        let id = self.nodes.len();
        let mut ids = |names: &[String]| -> Vec<Option<ValueId>> {
            names.iter().map(|name| (!name.is_empty()).then(|| self.value_id(name))).collect()
        };
        let inputs = ids(&proto.input);
        let outputs = ids(&proto.output);
        let name = display_name(proto);
        let version = model.opset(&proto.domain).unwrap_or(1);
        let node = Node { id, index, proto: proto.clone(), name, inputs, outputs, read: Vec::new(), version };
        for (slot, value) in node.inputs.iter().enumerate() {
            if let Some(value) = value {
                self.values[*value].consumers.push((id, slot));
            }
        }
        for (slot, value) in node.outputs.iter().enumerate() {
            if let Some(value) = value {
                self.values[*value].producer = Some((id, slot));
            }
        }
        for name in captured(proto) {
            let value = self.value_id(name);
            self.values[value].captured_by.push(id);
        }
        self.nodes.push(node);
    }

    /// The value of this name.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// All names that are taken: of values and nodes, those in subgraphs too.
    pub fn names(&self) -> Names {
        let mut names = Names::of(self.values.iter().map(|value| value.name.as_str()));
        self.nodes.iter().for_each(|node| names.add_node(&node.proto));
        names
    }

    /// Whether a value is a sparse initializer: nothing else has neither a producer nor a tensor of its own.
    pub fn is_sparse(&self, value: ValueId) -> bool {
        let value = &self.values[value];
        value.producer.is_none() && value.initializer.is_none() && !value.is_input
    }

    /// The tensor of a value that is an initializer or the output of a Constant node.
    pub fn tensor<'m>(&'m self, model: &'m Model, value: ValueId) -> Option<&'m TensorProto> {
        let value = &self.values[value];
        if let Some(index) = value.initializer {
            return model.graph().initializer.get(index);
        }
        let (node, _) = value.producer?;
        let node = &self.nodes[node];
        (node.proto.op_type == "Constant").then(|| node.proto.tensor("value")).flatten()
    }
}

/// The name, or what identifies a node that has none.
fn display_name(proto: &NodeProto) -> String {
    if proto.name.is_empty() {
        format!("{} producing {}", proto.op_type, proto.output.first().map_or("nothing", String::as_str))
    } else {
        proto.name.clone()
    }
}
