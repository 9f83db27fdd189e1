//! Names that nothing in a graph has yet.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{GraphProto, NodeProto};

/// The names of values and nodes that are taken. The two may share a name, but what is new bears one that is neither.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// These names are taken.
    pub fn of<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        Self { taken: names.into_iter().map(str::to_owned).collect() }
    }

    /// All that a graph and the subgraphs of its nodes name: values, which must not hide those outside, values that are
    /// only declared, whose types would be taken for those of new ones, and nodes.
    pub fn of_graph(graph: &GraphProto) -> Self {
        let mut names = Self::default();
        names.add_graph(graph);
        names
    }

    /// Those of the names that begin with `prefix`.
    pub fn beginning_with(&self, prefix: &str) -> Self {
        Self::of(self.taken.iter().map(String::as_str).filter(|name| name.starts_with(prefix)))
    }

    /// Takes all that a graph names.
    pub fn add_graph(&mut self, graph: &GraphProto) {
        let sparse = graph.sparse_initializer.iter().flat_map(|sparse| sparse.values.iter().chain(&sparse.indices));
        self.taken.extend(graph.initializer.iter().chain(sparse).map(|tensor| tensor.name.clone()));
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        self.taken.extend(values.map(|value| value.name.clone()));
        self.taken.extend(graph.quantization_annotation.iter().map(|annotation| annotation.tensor_name.clone()));
        graph.node.iter().for_each(|node| self.add_node(node));
    }

    /// Takes all that a node and its subgraphs name.
    pub fn add_node(&mut self, node: &NodeProto) {
        self.taken.insert(node.name.clone());
        self.taken.extend(node.input.iter().chain(&node.output).cloned());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|inner| self.add_graph(inner));
        }
    }

    /// Takes a name; `false` if it is taken already.
    pub fn claim(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// Takes `name` if it is free, else the first free of `name_1`, `name_2`, …
    pub fn fresh(&mut self, name: &str) -> String {
        if self.claim(name) { name.to_owned() } else { self.numbered(&format!("{name}_"), 1) }
    }

    /// Takes the first free name of `prefix` and a number, which starts at `first`.
    pub fn numbered(&mut self, prefix: &str, first: usize) -> String {
        let mut number = first;
        loop {
            let name = format!("{prefix}{number}");
            if self.claim(&name) {
                return name;
            }
            number += 1;
        }
    }
}

/// Text as a terminal can show it in one line: what terminals obey (control characters, escapes, line ends, marks that
/// turn the direction of writing) is written out, `\u{1b}`. Names in a file may hold any of it.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_obeyed(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{ValueInfoProto, attr_graph};

    #[test]
    fn names_of_nodes_and_of_declared_values_are_taken() {
        let declared = ValueInfoProto { name: "declared".to_owned(), ..ValueInfoProto::default() };
        let node = NodeProto { name: "node".to_owned(), ..NodeProto::default() };
        let graph = GraphProto { node: vec![node], value_info: vec![declared], ..GraphProto::default() };
        let mut names = Names::of_graph(&graph);
        assert_eq!((names.fresh("declared"), names.fresh("node")), ("declared_1".to_owned(), "node_1".to_owned()));
    }

    #[test]
    fn what_terminals_obey_is_written_out() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\td\u{9b}e\u{202e}f"), r"a\u{1b}[2Jb\nc\td\u{9b}e\u{202e}f");
        assert!(matches!(printable("ein Name \u{fc} 名前"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_name_is_given_once_and_never_one_of_a_subgraph() {
        let inner = GraphProto {
            node: vec![NodeProto { output: vec!["inner".to_owned()], ..NodeProto::default() }],
            ..GraphProto::default()
        };
        let node = NodeProto { attribute: vec![attr_graph("body", inner)], ..NodeProto::default() };
        let mut names = Names::of_graph(&GraphProto { node: vec![node], ..GraphProto::default() });
        assert_eq!(names.fresh("inner"), "inner_1");
        assert_eq!(names.fresh("inner"), "inner_2");
        assert_eq!(names.numbered("w_pruned_", 1), "w_pruned_1");
        assert_eq!(names.numbered("w_pruned_", 1), "w_pruned_2");
    }
}
