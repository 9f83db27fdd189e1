//! Allocation of unused names in a graph.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{GraphProto, NodeProto};

/// The names of values and nodes that are in use. A value and a node of a file may have the same name; a new name
/// differs from all.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Creates a set with these names in use.
    pub fn of<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        Self { taken: names.into_iter().map(str::to_owned).collect() }
    }

    /// Collects all names in a graph and in the subgraphs of its nodes: of values, so that new ones do not shadow them;
    /// of values that are only declared in `value_info`, whose types would apply to new values; and of nodes.
    pub fn of_graph(graph: &GraphProto) -> Self {
        let mut names = Self::default();
        names.add_graph(graph);
        names
    }

    /// Returns the names that begin with `prefix`.
    pub fn beginning_with(&self, prefix: &str) -> Self {
        Self::of(self.taken.iter().map(String::as_str).filter(|name| name.starts_with(prefix)))
    }

    /// Adds all names of a graph.
    pub fn add_graph(&mut self, graph: &GraphProto) {
        let sparse = graph.sparse_initializer.iter().flat_map(|sparse| sparse.values.iter().chain(&sparse.indices));
        self.taken.extend(graph.initializer.iter().chain(sparse).map(|tensor| tensor.name.clone()));
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        self.taken.extend(values.map(|value| value.name.clone()));
        self.taken.extend(graph.quantization_annotation.iter().map(|annotation| annotation.tensor_name.clone()));
        graph.node.iter().for_each(|node| self.add_node(node));
    }

    /// Adds all names of a node and of its subgraphs.
    pub fn add_node(&mut self, node: &NodeProto) {
        self.taken.insert(node.name.clone());
        self.taken.extend(node.input.iter().chain(&node.output).cloned());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|inner| self.add_graph(inner));
        }
    }

    /// Adds a name. Returns `false` if it is in use already.
    pub fn claim(&mut self, name: &str) -> bool {
        self.taken.insert(name.to_owned())
    }

    /// Returns `name` if it is not in use, else the first unused name of `name_1`, `name_2`, …, and adds it.
    pub fn fresh(&mut self, name: &str) -> String {
        if self.claim(name) { name.to_owned() } else { self.numbered(&format!("{name}_"), 1) }
    }

    /// Returns the first unused name that consists of `prefix` and a number from `first` on, and adds it.
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

/// Returns text that a terminal can print in one line. Characters that control a terminal (control characters, escapes,
/// line ends, marks of writing direction) are escaped, such as `\u{1b}`. Names in a file may contain any of them.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_control(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
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
    fn characters_that_control_terminals_are_escaped() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\td\u{9b}e\u{202e}f"), r"a\u{1b}[2Jb\nc\td\u{9b}e\u{202e}f");
        assert!(matches!(printable("ein Name \u{fc} 名前"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_fresh_name_is_returned_once_and_differs_from_names_in_subgraphs() {
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
