//! One copy of a function's body: names made unique, formal names and attributes replaced by those of the call.

use std::collections::{HashMap, HashSet};

use crate::onnx::{AttributeProto, FunctionProto, GraphProto, NodeProto};

/// From names inside the function to names in the graph.
type Names = HashMap<String, String>;

/// A call that becomes nodes.
pub(super) struct Body<'a> {
    call: &'a NodeProto,
    function: &'a FunctionProto,
    taken_values: &'a mut HashSet<String>,
    taken_nodes: &'a mut HashSet<String>,
    prefix: String,
}

/// A name that is not taken yet; takes it.
fn fresh(taken: &mut HashSet<String>, wanted: String) -> String {
    if taken.insert(wanted.clone()) {
        return wanted;
    }
    let mut number = 1_u64;
    loop {
        let name = format!("{wanted}_{number}");
        if taken.insert(name.clone()) {
            return name;
        }
        number += 1;
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(
        call: &'a NodeProto,
        function: &'a FunctionProto,
        taken_values: &'a mut HashSet<String>,
        taken_nodes: &'a mut HashSet<String>,
    ) -> Self {
        // A call without a name is told apart by what it produces.
        let unnamed = || call.output.iter().find(|name| !name.is_empty()).unwrap_or(&call.op_type).clone();
        let prefix = if call.name.is_empty() { unnamed() } else { call.name.clone() };
        Self { call, function, taken_values, taken_nodes, prefix }
    }

    /// The nodes of the call.
    pub(super) fn instantiate(mut self) -> Result<Vec<NodeProto>, String> {
        let function = self.function;
        let mut names = Names::new();
        for (i, formal) in function.input.iter().enumerate() {
            let actual = self.call.input.get(i).cloned().unwrap_or_default();
            if names.insert(formal.clone(), actual).is_some() {
                return Err(format!("function {:?} has two inputs named {formal:?}", function.name));
            }
        }
        let mut passed_on = Vec::new();
        for (formal, actual) in function.output.iter().zip(&self.call.output) {
            if actual.is_empty() {
                continue;
            }
            match names.get(formal) {
                // An input, or another output, under a second name.
                Some(source) if source.is_empty() => {
                    return Err(format!("output {formal:?} of function {:?} is an input left out", function.name));
                }
                Some(source) => passed_on.push((source.clone(), actual.clone())),
                None => {
                    names.insert(formal.clone(), actual.clone());
                }
            }
        }
        let mut nodes = self.copies(&function.node, &mut names);
        for (source, output) in passed_on {
            let name = fresh(self.taken_nodes, format!("{}/Identity", self.prefix));
            let op_type = "Identity".to_owned();
            nodes.push(NodeProto { name, op_type, input: vec![source], output: vec![output], ..NodeProto::default() });
        }
        Ok(nodes)
    }

    /// Copies nodes, first giving all their outputs names, since nodes need not be in order.
    fn copies(&mut self, nodes: &[NodeProto], names: &mut Names) -> Vec<NodeProto> {
        for output in nodes.iter().flat_map(|node| &node.output) {
            self.define(output, names);
        }
        nodes.iter().map(|node| self.copy(node, names)).collect()
    }

    /// Gives an inner value a name of its own, unless the call named it.
    fn define(&mut self, inner: &str, names: &mut Names) {
        if !inner.is_empty() && !names.contains_key(inner) {
            let name = fresh(self.taken_values, format!("{}/{inner}", self.prefix));
            names.insert(inner.to_owned(), name);
        }
    }

    fn copy(&mut self, node: &NodeProto, names: &Names) -> NodeProto {
        let mut copy = node.clone();
        let inner = if node.name.is_empty() { &node.op_type } else { &node.name };
        copy.name = fresh(self.taken_nodes, format!("{}/{inner}", self.prefix));
        for name in copy.input.iter_mut().chain(&mut copy.output).filter(|name| !name.is_empty()) {
            // A body can't read values of its caller; a name that it does not define must not become one of theirs.
            *name = names.get(name.as_str()).cloned().unwrap_or_else(|| format!("{}/{name}", self.prefix));
        }
        copy.attribute = node.attribute.iter().filter_map(|attribute| self.resolve(attribute)).collect();
        for attribute in &mut copy.attribute {
            // What the call passed is written in the caller's names and stays.
            let is_passed = node.attr(&attribute.name).is_some_and(|inner| !inner.ref_attr_name.is_empty());
            if !is_passed {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.rename_graph(graph, names.clone());
                }
            }
        }
        copy
    }

    /// The attribute with a reference replaced by what the call gives or the function has as default; none if neither.
    fn resolve(&self, attribute: &AttributeProto) -> Option<AttributeProto> {
        if attribute.ref_attr_name.is_empty() {
            return Some(attribute.clone());
        }
        let defaults = &self.function.attribute_proto;
        let default = || defaults.iter().find(|default| default.name == attribute.ref_attr_name);
        let given = self.call.attr(&attribute.ref_attr_name).or_else(default)?;
        Some(AttributeProto { name: attribute.name.clone(), ..given.clone() })
    }

    /// Renames a subgraph of the body: what it defines gets names of its own, what it captures is renamed as outside.
    fn rename_graph(&mut self, graph: &mut GraphProto, mut names: Names) {
        let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
        let defined = graph.input.iter().map(|value| &value.name);
        let defined: Vec<String> = defined
            .chain(graph.initializer.iter().chain(sparse).map(|tensor| &tensor.name))
            .chain(graph.node.iter().flat_map(|node| &node.output))
            .cloned()
            .collect();
        for inner in &defined {
            // Not the outer value of this name, if there is one: the subgraph hides it.
            names.remove(inner);
        }
        for inner in &defined {
            self.define(inner, &mut names);
        }
        let values = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        values.for_each(|value| rename(&mut value.name, &names));
        graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name, &names));
        let sparse = graph.sparse_initializer.iter_mut().filter_map(|sparse| sparse.values.as_mut());
        sparse.for_each(|tensor| rename(&mut tensor.name, &names));
        for annotation in &mut graph.quantization_annotation {
            rename(&mut annotation.tensor_name, &names);
            annotation.quant_parameter_tensor_names.iter_mut().for_each(|entry| rename(&mut entry.value, &names));
        }
        graph.node = graph.node.iter().map(|node| self.copy(node, &names)).collect();
    }
}

fn rename(name: &mut String, names: &Names) {
    if let Some(new) = names.get(name.as_str()) {
        name.clone_from(new);
    }
}
