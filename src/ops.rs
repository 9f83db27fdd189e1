//! The registry of operators. Each operator has one file, under `standard` or `fused`.

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

/// Returns the registration of an operator; `None` if it is not registered.
pub fn find(domain: &str, op_type: &str) -> Option<&'static Registration> {
    static BY_NAME: OnceLock<HashMap<(&'static str, &'static str), &'static Registration>> = OnceLock::new();
    let by_name = BY_NAME.get_or_init(|| {
        all().flat_map(|rules| rules.op_types().iter().map(move |t| ((t.domain, t.name), rules))).collect()
    });
    let domain = if domain == "ai.onnx" { "" } else { domain };
    by_name.get(&(domain, op_type)).copied()
}

/// Parses a node into its operator.
///
/// # Errors
/// The operator is not registered, the node contradicts its specification, or the node has a form that is not
/// supported.
pub fn parse_node(node: &Node) -> Result<Box<dyn Operator>, RuleError> {
    match find(&node.proto.domain, &node.proto.op_type) {
        Some(registration) => registration.parse(node),
        None => Err(RuleError::unsupported("this version does not know the operator")),
    }
}

/// Parses every node of a graph into its operator, once.
pub fn parse(graph: &Graph) -> Operators {
    Operators::parse(graph, parse_node)
}
