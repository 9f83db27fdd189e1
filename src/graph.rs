//! The graph of a model: nodes, values, and who produces and consumes what.
//!
//! Nodes name their values. Values name the node that produces them and the nodes that consume them. Ids are positions
//! in the two lists. Nodes are kept in a topological order even if the file does not store them in one, so most passes
//! are one loop over the nodes. The other searches stop at the node or value that they look for and need no graph
//! library. petgraph serves for union-find and for `inspect --dot`.

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

/// An input of a node, seen as a reader of the value at that input. Exporters share equal constants between nodes, so
/// which indices of a constant are kept is decided per reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader {
    /// The node.
    pub node: NodeId,
    /// The index of the input.
    pub slot: usize,
}

/// A node of the graph. Its attributes are those of the [`NodeProto`].
#[derive(Clone, Debug)]
pub struct Node {
    /// Position in [`Graph::nodes`].
    pub id: NodeId,
    /// Position in the file's list of nodes.
    pub index: usize,
    /// The node as the file stores it.
    pub proto: NodeProto,
    /// The name, or `<op_type> producing <first output>` if the exporter set none.
    pub name: String,
    /// Inputs in order. `None`: the optional input is omitted.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs in order. `None`: the optional output is omitted.
    pub outputs: Vec<Option<ValueId>>,
    /// For every output, whether anything uses it: a node, a subgraph, or the caller of the network (a graph output).
    pub read: Vec<bool>,
    /// Opset version of the node's domain that the model imports.
    pub version: i64,
}

impl Node {
    /// Returns the operator, with its domain unless that is the standard one.
    pub fn op(&self) -> String {
        match self.proto.domain.as_str() {
            "" | "ai.onnx" => self.proto.op_type.clone(),
            domain => format!("{domain}.{}", self.proto.op_type),
        }
    }

    /// Returns an integer attribute, or `default`.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.proto.int(name).unwrap_or(default)
    }

    /// Returns a float attribute, or `default`.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.proto.float(name).unwrap_or(default)
    }

    /// Returns the value at input `slot`. `None`: the node has no such input.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Returns the value at output `slot`. `None`: the node has no such output.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// Returns whether the node has an output at `slot` that anything uses. Exporters also name optional outputs that
    /// nothing uses.
    pub fn uses_output(&self, slot: usize) -> bool {
        self.output(slot).is_some() && self.read.get(slot).copied().unwrap_or(false)
    }
}

/// A value of the graph: a graph input, an initializer, or an output of a node.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// The name, unique in the graph.
    pub name: String,
    /// The node that produces it, and the index of the output.
    pub producer: Option<(NodeId, usize)>,
    /// Index of the initializer with its elements.
    pub initializer: Option<usize>,
    /// Whether it is an input of the graph without a default value from an initializer.
    pub is_input: bool,
    /// Whether it is an output of the graph.
    pub is_output: bool,
    /// The nodes that take it as input, and the index of the input.
    pub consumers: Vec<(NodeId, usize)>,
    /// The nodes that have a subgraph in which it is used.
    pub captured_by: Vec<NodeId>,
}

/// The nodes and values of a model.
#[derive(Debug)]
pub struct Graph {
    /// Nodes in a topological order.
    pub nodes: Vec<Node>,
    /// All values.
    pub values: Vec<Value>,
    /// Graph inputs without an initializer of the same name, in the file's order.
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
    /// The graph has a cycle. [`crate::load::load`] rejects such models already.
    pub fn new(model: &Model) -> Result<Self, Error> {
        Self::with_values_of(model, None)
    }

    /// Like [`Graph::new`], for a model that was derived from the model of `earlier`: values of `earlier` keep their
    /// ids.
    ///
    /// # Errors
    /// As for [`Graph::new`].
    pub fn following(model: &Model, earlier: &Graph) -> Result<Self, Error> {
        Self::with_values_of(model, Some(earlier))
    }

    fn with_values_of(model: &Model, earlier: Option<&Graph>) -> Result<Self, Error> {
        Self::of_proto(model, model.graph(), earlier)
            .map_err(|at| Error::malformed(model.path(), format!("the graph has a cycle through node {at}")))
    }

    /// Builds the graph of the body of a node (If, Loop, Scan). Names from the outer graph become values without a
    /// producer.
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

    /// Returns the value with this name.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// Returns all names in use: of values and of nodes, including those in subgraphs.
    pub fn names(&self) -> Names {
        let mut names = Names::of(self.values.iter().map(|value| value.name.as_str()));
        self.nodes.iter().for_each(|node| names.add_node(&node.proto));
        names
    }

    /// Returns whether a value is a sparse initializer. Only such a value has neither a producer nor an initializer and
    /// is no input.
    pub fn is_sparse(&self, value: ValueId) -> bool {
        let value = &self.values[value];
        value.producer.is_none() && value.initializer.is_none() && !value.is_input
    }

    /// Returns the tensor of a value that is an initializer or the output of a Constant node.
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

/// Returns the name of a node, or a description of a node without a name.
fn display_name(proto: &NodeProto) -> String {
    if proto.name.is_empty() {
        format!("{} producing {}", proto.op_type, proto.output.first().map_or("nothing", String::as_str))
    } else {
        proto.name.clone()
    }
}
