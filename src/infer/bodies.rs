//! Bodies: the graphs in the attributes of control flow operators (If, Loop, Scan).

use std::collections::BTreeMap;

use super::{of_tensor, of_type, types_of};
use crate::graph::Graph;
use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::onnx::GraphProto;
use crate::operator::RuleError;
use crate::ops;

/// Maximum number of nodes of bodies that are inferred for one outer node. A loop infers its body more than once, so
/// that nested loops would grow without bound.
pub(super) const MOST_NODES: usize = 10_000;

/// Returns the fact of an outer value by its name.
type Outer<'a> = dyn Fn(&str) -> Option<Fact> + 'a;

/// The scope of a node: its graph, and the values of the enclosing graphs.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) model: &'a Model,
    pub(super) graph: &'a Graph,
    /// Returns the facts of the outer values that a body of the node can use.
    pub(super) outer: Option<&'a Outer<'a>>,
}

impl<'a> Scope<'a> {
    /// Returns the scope of the model's main graph.
    pub(super) fn outermost(model: &'a Model, graph: &'a Graph) -> Self {
        Self { model, graph, outer: None }
    }

    /// Infers the facts of the outputs of a body.
    ///
    /// # Errors
    /// As for [`crate::operator::InferCx::body`].
    pub(super) fn infer_body(
        &self,
        body: &GraphProto,
        inputs: Vec<Option<Fact>>,
        fresh: &mut usize,
        budget: &mut usize,
    ) -> Result<Vec<Option<Fact>>, RuleError> {
        *budget = budget
            .checked_sub(body.node.len().max(1))
            .ok_or_else(|| RuleError::unsupported(format!("its bodies have more than {MOST_NODES} nodes")))?;
        let graph = Graph::of_body(self.model, body)
            .map_err(|at| RuleError::invalid(format!("a body has a cycle through the node at position {at}")))?;
        let operators = ops::parse(&graph);
        let mut facts = Facts { fresh: *fresh, ..Facts::unknown(graph.values.len()) };
        for tensor in &body.initializer {
            if let Some(value) = graph.value(&tensor.name) {
                facts.put(value, of_tensor(self.model, tensor).ok());
            }
        }
        let mut given = inputs.into_iter();
        for input in &body.input {
            let Some(value) = graph.value(&input.name) else { continue };
            let declared = input.r#type.as_ref().and_then(|t| of_type(t, &mut facts.fresh));
            let fact = given.next().flatten().or(declared);
            facts.put(value, fact);
        }
        let outside = graph
            .values
            .iter()
            .enumerate()
            .filter(|(_, value)| value.producer.is_none() && value.initializer.is_none() && !value.is_input);
        for (value, name) in outside.map(|(value, outside)| (value, &outside.name)) {
            facts.put(value, self.outer.and_then(|outer| outer(name)));
        }
        let declared = types_of(body, &graph);
        for node in &graph.nodes {
            let outer = self.outer;
            let scope = Scope { model: self.model, graph: &graph, outer };
            facts
                .infer_within(&scope, node, operators.of(node.id), &BTreeMap::new(), budget)
                .map_err(|text| RuleError::invalid(format!("node {:?} of a body: {text}", node.name)))?;
            facts.complete(&declared, node);
        }
        *fresh = facts.fresh;
        let fact = |output: &crate::onnx::ValueInfoProto| facts.values[graph.value(&output.name)?].clone();
        Ok(body.output.iter().map(fact).collect())
    }
}
