//! The registry of operators. Each stands in one file, under `standard` or `fused`.

mod assigned;
pub mod element_types;
mod fused;
mod indexed;
mod sequences;
mod standard;

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::graph::{Graph, Node};
use crate::operator::{Operator, Operators, Registration, RuleError};

/// All registrations.
pub fn all() -> impl Iterator<Item = &'static Registration> {
    fused::BY_FILE.iter().chain(standard::BY_FILE).flat_map(|rules| rules.iter())
}

/// The registration of an operator, if it has one.
pub fn find(domain: &str, op_type: &str) -> Option<&'static Registration> {
    static BY_NAME: OnceLock<HashMap<(&'static str, &'static str), &'static Registration>> = OnceLock::new();
    let by_name = BY_NAME.get_or_init(|| {
        all().flat_map(|rules| rules.op_types().iter().map(move |t| ((t.domain, t.name), rules))).collect()
    });
    let domain = if domain == "ai.onnx" { "" } else { domain };
    by_name.get(&(domain, op_type)).copied()
}

/// The operator of one node.
///
/// # Errors
/// It is not registered, or the node contradicts its specification or has a form that is not supported.
pub fn parse_node(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
    match find(&node.proto.domain, &node.proto.op_type) {
        Some(registration) => registration.parse(node),
        None => Err(RuleError::unsupported("the operator is not known to this version")),
    }
}

/// The operators of all nodes of a graph, each parsed once.
pub fn parse(graph: &Graph) -> Operators {
    Operators::parse(graph, parse_node)
}
