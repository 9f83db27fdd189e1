//! A builder for new nodes and constants in a graph.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::names::Names;
use super::order::captured;
use super::{AttributeProto, GraphProto, NodeProto, TensorProto, attr_int};

/// Nodes and constants under construction. Their names differ from all names in the file.
#[derive(Debug, Default)]
pub struct Builder {
    /// Nodes in a topological order.
    pub nodes: Vec<NodeProto>,
    /// Constants that the nodes use.
    pub initializers: Vec<TensorProto>,
    prefix: String,
    opset: i64,
    names: Names,
    /// Names of constants by type, shape and content, so that equal constants are stored once.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    next: usize,
}

impl Builder {
    /// Creates an empty builder. All new names begin with `prefix` and differ from `names`. `opset` is the version of
    /// the standard operators.
    pub fn new(prefix: &str, opset: i64, names: Names) -> Self {
        Self { prefix: prefix.to_owned(), opset, names, ..Self::default() }
    }

    /// Returns the version of the standard operators.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Returns an unused name: the prefix, a number and `hint`.
    pub fn fresh(&mut self, hint: &str) -> String {
        loop {
            self.next += 1;
            let name = format!("{}/{}/{hint}", self.prefix, self.next);
            if self.names.claim(&name) {
                return name;
            }
        }
    }

    /// Adds a node with these outputs. The node gets the name of its first output.
    pub fn push(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        output: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            op_type: op_type.to_owned(),
            domain: domain.to_owned(),
            name: output.first().cloned().unwrap_or_default(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output,
            attribute,
            ..NodeProto::default()
        });
    }

    /// Adds a node of the standard domain with one output. Returns the name of the output.
    pub fn add(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.add_in("", op_type, inputs, attributes)
    }

    /// Like [`Builder::add`], for an operator of another domain.
    pub fn add_in(&mut self, domain: &str, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh(op_type);
        self.push(domain, op_type, inputs, vec![output.clone()], attributes);
        output
    }

    /// Adds a node with `count` outputs. Returns their names.
    pub fn add_outputs(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        count: usize,
    ) -> Vec<String> {
        let outputs: Vec<String> = (0..count).map(|slot| self.fresh(&format!("{op_type}/{slot}"))).collect();
        self.push(domain, op_type, inputs, outputs.clone(), attributes);
        outputs
    }

    /// Adds an Identity node that outputs `value` under the name `name`.
    pub fn rename(&mut self, value: &str, name: &str) {
        self.push("", "Identity", &[value], vec![name.to_owned()], vec![]);
    }

    /// Adds a constant and returns its name. Constants of equal type, shape and elements are stored once.
    pub fn constant(&mut self, tensor: TensorProto) -> String {
        let key = (tensor.data_type, tensor.dims.clone(), tensor.raw_data.to_vec());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh("constant");
        self.initializers.push(TensorProto { name: name.clone(), ..tensor });
        self.constants.insert(key, name.clone());
        name
    }

    /// Adds an int64 constant.
    pub fn ints(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.constant(TensorProto::of_ints("", values, dims))
    }

    /// Adds a vector of int64.
    pub fn int_vector(&mut self, values: &[i64]) -> String {
        self.ints(values, &[values.len() as i64])
    }

    /// Adds a float32 constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.constant(TensorProto::of_floats("", values, dims))
    }

    /// Adds a Cast to an element type.
    pub fn cast(&mut self, value: &str, dtype: super::DataType) -> String {
        self.add("Cast", &[value], vec![attr_int("to", dtype as i64)])
    }
}

/// Finds the needed nodes among nodes in topological order: those from which `outputs` are computed. A node is given as
/// the values that it takes as input, the values that it outputs, and whether it is kept in any case. Values are
/// identified by names or numbers.
///
/// Returns whether each node is needed, and the set of values that are used.
pub fn needed<V: Copy + Eq + Hash>(
    nodes: impl DoubleEndedIterator<Item = (Vec<V>, Vec<V>, bool)>,
    outputs: impl IntoIterator<Item = V>,
) -> (Vec<bool>, HashSet<V>) {
    let mut read: HashSet<V> = outputs.into_iter().collect();
    let mut needed = Vec::new();
    for (inputs, outputs, is_held) in nodes.rev() {
        let is_needed = is_held || outputs.iter().any(|value| read.contains(value));
        if is_needed {
            read.extend(inputs);
        }
        needed.push(is_needed);
    }
    needed.reverse();
    (needed, read)
}

/// Returns all values that a node uses: its inputs, and the outer values that its subgraphs use.
pub fn inputs_of(node: &NodeProto) -> Vec<&str> {
    node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).chain(captured(node)).collect()
}

/// Returns all values that a node outputs.
pub fn outputs_of(node: &NodeProto) -> Vec<&str> {
    node.output.iter().map(String::as_str).filter(|name| !name.is_empty()).collect()
}

impl GraphProto {
    /// Removes nodes and initializers on which no output depends. The nodes must be in topological order.
    pub fn drop_dead(&mut self) {
        let outputs = self.output.iter().map(|output| output.name.as_str());
        let (needed, read) = needed(self.node.iter().map(|node| (inputs_of(node), outputs_of(node), false)), outputs);
        let is_read: Vec<bool> = self.initializer.iter().map(|tensor| read.contains(tensor.name.as_str())).collect();
        let (mut nodes, mut tensors) = (needed.into_iter(), is_read.into_iter());
        self.node.retain(|_| nodes.next().unwrap_or(true));
        self.initializer.retain(|_| tensors.next().unwrap_or(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::ValueInfoProto;

    #[test]
    fn names_never_collide_with_those_of_the_file() {
        let mut builder = Builder::new("__b", 17, Names::of(["__b/1/Add", "x"]));
        assert_eq!(builder.add("Add", &["x", "x"], vec![]), "__b/2/Add");
        assert_eq!(builder.floats(&[1.0], &[]), builder.floats(&[1.0], &[]));
        assert_ne!(builder.floats(&[1.0], &[]), builder.floats(&[1.0], &[1]));
        assert_eq!(builder.initializers.len(), 2);
    }

    #[test]
    fn nodes_that_no_output_needs_are_removed() {
        let mut builder = Builder::new("__b", 17, Names::default());
        let one = builder.floats(&[1.0], &[]);
        let kept = builder.add("Add", &["x", &one], vec![]);
        let two = builder.floats(&[2.0], &[]);
        builder.add("Mul", &[&kept, &two], vec![]);
        let output = vec![ValueInfoProto { name: kept, ..ValueInfoProto::default() }];
        let mut graph =
            GraphProto { node: builder.nodes, initializer: builder.initializers, output, ..GraphProto::default() };
        graph.drop_dead();
        assert_eq!((graph.node.len(), graph.initializer.len()), (1, 1));
    }
}
