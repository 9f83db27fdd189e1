//! Emitting nodes and constants beside those of a file.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::names::Names;
use super::order::captured;
use super::{AttributeProto, GraphProto, NodeProto, TensorProto, attr_int};

/// Nodes and constants under construction, with names that no value of the file has.
#[derive(Debug, Default)]
pub struct Builder {
    /// Nodes in a topological order.
    pub nodes: Vec<NodeProto>,
    /// Constants that the nodes read.
    pub initializers: Vec<TensorProto>,
    prefix: String,
    opset: i64,
    names: Names,
    /// Constants by their contents, so that equal ones are stored once.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    next: usize,
}

impl Builder {
    /// Nothing yet. All names begin with `prefix`, and differ from all in `names`; `opset` is the version of the standard
    /// operators.
    pub fn new(prefix: &str, opset: i64, names: Names) -> Self {
        Self { prefix: prefix.to_owned(), opset, names, ..Self::default() }
    }

    /// The version of the standard operators.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// A name that nothing has, made of the prefix, a number and `hint`.
    pub fn fresh(&mut self, hint: &str) -> String {
        loop {
            self.next += 1;
            let name = format!("{}/{}/{hint}", self.prefix, self.next);
            if self.names.claim(&name) {
                return name;
            }
        }
    }

    /// Adds a node with these outputs; its name is that of the first.
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

    /// Adds a node of the standard domain with one output, whose name it returns.
    pub fn add(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.add_in("", op_type, inputs, attributes)
    }

    /// As [`Builder::add`], of another domain.
    pub fn add_in(&mut self, domain: &str, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh(op_type);
        self.push(domain, op_type, inputs, vec![output.clone()], attributes);
        output
    }

    /// Adds a node with `count` outputs, whose names it returns.
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

    /// Adds an Identity that gives `value` the name `name`.
    pub fn rename(&mut self, value: &str, name: &str) {
        self.push("", "Identity", &[value], vec![name.to_owned()], vec![]);
    }

    /// Adds a constant; one of the same type, shape and elements is stored once.
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

    /// An int64 constant.
    pub fn ints(&mut self, values: &[i64], dims: &[i64]) -> String {
        self.constant(TensorProto::of_ints("", values, dims))
    }

    /// A vector of int64.
    pub fn int_vector(&mut self, values: &[i64]) -> String {
        self.ints(values, &[values.len() as i64])
    }

    /// A float32 constant.
    pub fn floats(&mut self, values: &[f32], dims: &[i64]) -> String {
        self.constant(TensorProto::of_floats("", values, dims))
    }

    /// A cast to an element type.
    pub fn cast(&mut self, value: &str, dtype: super::DataType) -> String {
        self.add("Cast", &[value], vec![attr_int("to", dtype as i64)])
    }
}

/// Which of some nodes, in a topological order, something needs: `outputs` is what is wanted in the end. A node is given
/// by the values that it reads and those that it gives; where `is_held` it stays, whatever reads it. Values are known by
/// names or numbers.
///
/// Returns with the nodes the values that are read.
pub fn needed<V: Copy + Eq + Hash>(
    nodes: impl DoubleEndedIterator<Item = (Vec<V>, Vec<V>, bool)>,
    outputs: impl IntoIterator<Item = V>,
) -> (Vec<bool>, HashSet<V>) {
    let mut read: HashSet<V> = outputs.into_iter().collect();
    let mut needed = Vec::new();
    for (reads, gives, is_held) in nodes.rev() {
        let is_needed = is_held || gives.iter().any(|value| read.contains(value));
        if is_needed {
            read.extend(reads);
        }
        needed.push(is_needed);
    }
    needed.reverse();
    (needed, read)
}

/// All that a node reads: its inputs, and what its subgraphs read from outside.
pub fn reads(node: &NodeProto) -> Vec<&str> {
    node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).chain(captured(node)).collect()
}

/// All that a node gives.
pub fn gives(node: &NodeProto) -> Vec<&str> {
    node.output.iter().map(String::as_str).filter(|name| !name.is_empty()).collect()
}

impl GraphProto {
    /// Removes the nodes and initializers from which no output is computed. Nodes stand in a topological order.
    pub fn drop_dead(&mut self) {
        let outputs = self.output.iter().map(|output| output.name.as_str());
        let (needed, read) = needed(self.node.iter().map(|node| (reads(node), gives(node), false)), outputs);
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
    fn what_no_output_needs_is_dropped() {
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
