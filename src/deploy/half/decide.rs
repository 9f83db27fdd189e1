//! The choice of the nodes that compute in half precision.

use std::collections::{BTreeMap, BTreeSet};

use super::{HalfOptions, KeptNode};
use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::onnx::floats::Floats;
use crate::onnx::order::captured;
use crate::onnx::{DataType, NodeProto};
use crate::operator::{Operator, Operators, Registration};
use crate::ops;
use crate::ops::element_types::{ElementTypes, element_types};

/// Maximum magnitude in float16. It is half of the type's range, since samples do not show the largest elements.
const LARGEST: f64 = 65_504.0 / 2.0;

/// The smallest normal number of float16.
const LEAST: f64 = 6.104e-5;

/// Maximum rounding error of an angle in radians, and of a number before it becomes an integer. Beyond it, float32 is kept.
const ANGLE_ERROR: f64 = 0.01;
const INTEGER_ERROR: f64 = 0.25;

/// Attributes with which operators name their output type.
const TYPE_ATTRIBUTES: [&str; 2] = ["to", "dtype"];

/// The nodes that compute in half precision.
pub(super) struct Decision<'a> {
    dtype: DataType,
    /// By node, the element types that its schema allows for its inputs and outputs.
    types: Vec<Option<&'static ElementTypes>>,
    /// Why nodes are kept in float32. The text is empty if the only reason is that their neighbours are.
    kept: BTreeMap<NodeId, String>,
    /// Whether a node has any float32 input or output.
    has_floats: Vec<bool>,
    /// Whether a node reads only sizes.
    reads_sizes: Vec<bool>,
    facts: &'a Facts,
}

impl<'a> Decision<'a> {
    pub(super) fn new(
        (model, graph, operators, facts): (&Model, &'a Graph, &Operators, &'a Facts),
        options: &HalfOptions<'_>,
    ) -> Result<Self, Error> {
        let types = graph
            .nodes
            .iter()
            .map(|node| element_types(&node.proto.domain, &node.proto.op_type, node.version))
            .collect();
        let has_floats = graph
            .nodes
            .iter()
            .map(|node| node.inputs.iter().chain(&node.outputs).flatten().any(|value| is_float(facts, *value)))
            .collect();
        let reads_sizes = |node: &Node| operators.get(node.id).is_some_and(<dyn Operator>::reads_sizes_alone);
        let reads_sizes = graph.nodes.iter().map(reads_sizes).collect();
        let mut decision = Self { dtype: options.dtype, types, kept: BTreeMap::new(), has_floats, reads_sizes, facts };
        for node in &graph.nodes {
            if !decision.has_floats[node.id] || decision.reads_sizes[node.id] {
                continue;
            }
            if let Some(reason) = decision.reason((model, graph), node, options)? {
                decision.kept.insert(node.id, reason);
            }
        }
        decision.keep_exact((model, graph), operators, options);
        decision.keep_between(model, graph);
        Ok(decision)
    }

    /// Returns why a node by itself is kept in float32.
    fn reason(
        &self,
        (model, graph): (&Model, &Graph),
        node: &Node,
        options: &HalfOptions<'_>,
    ) -> Result<Option<String>, Error> {
        let said = |text: &str| Ok(Some(text.to_owned()));
        if options.keep.iter().any(|pattern| pattern.is_match(&node.name)) {
            return said("requested by --keep");
        }
        if !captured(&node.proto).is_empty() || has_body(&node.proto) {
            return said("contains a subgraph");
        }
        if !self.has_half_form(node) {
            return Ok(Some(format!(
                "does not support {} in this version of its operator set",
                self.dtype.spec_name()
            )));
        }
        if self.dtype != DataType::Float16 {
            return Ok(None);
        }
        for value in node.inputs.iter().chain(&node.outputs).flatten().filter(|value| is_float(self.facts, **value)) {
            if let Some(tensor) = graph.tensor(model, *value) {
                let bytes = model.tensor_bytes(tensor)?;
                let Some(elements) = Floats::of(tensor.element_type(), &bytes) else { continue };
                // The constant of a Constant node is checked at its readers.
                if node.inputs.iter().flatten().any(|input| input == value)
                    && let Some(wrong) = unheld(&elements.to_f32())
                {
                    return Ok(Some(format!("reads the constant {wrong:e}, which float16 can't represent")));
                }
                continue;
            }
            let Some(range) = options.ranges.get(&graph.values[*value].name) else { continue };
            let magnitude = range.magnitude();
            let is_read = node.inputs.iter().flatten().any(|input| input == value);
            let verb = if is_read { "reads" } else { "produces" };
            if magnitude > LARGEST {
                return Ok(Some(format!("{verb} elements up to {magnitude:.3e}")));
            }
            if magnitude > 0.0 && magnitude < LEAST {
                return Ok(Some(format!("{verb} only elements of at most {magnitude:.3e}")));
            }
        }
        Ok(None)
    }

    /// Whether the schema allows half precision for an input or output of the node, and attributes can name it.
    fn has_half_form(&self, node: &Node) -> bool {
        let Some(types) = self.types[node.id] else { return false };
        let float = |value: &Option<ValueId>| value.is_some_and(|value| is_float(self.facts, value));
        let inputs: Vec<usize> = (0..node.inputs.len()).filter(|slot| float(&node.inputs[*slot])).collect();
        let outputs: Vec<usize> = (0..node.outputs.len()).filter(|slot| float(&node.outputs[*slot])).collect();
        let takes = |slot: &usize| types.input(*slot).is_some_and(|formal| formal.takes(self.dtype));
        let gives = |slot: &usize| types.output(*slot).is_some_and(|formal| formal.takes(self.dtype));
        if !inputs.iter().any(takes) && !outputs.iter().any(gives) {
            return false;
        }
        // The type of an output follows from that of an input, or an attribute names it.
        outputs.iter().filter(|slot| gives(slot)).all(|slot| {
            let Some(own) = types.output(*slot) else { return false };
            let is_tied = inputs.iter().any(|slot| types.input(*slot).is_some_and(|formal| formal.is_tied_to(&own)));
            is_tied || named_type(&node.proto)
        })
    }

    /// Keeps float32 for nodes with large angles, or with large numbers that become integers. Also keeps it for the nodes
    /// that compute these, up to the next matrix product.
    fn keep_exact(&mut self, (model, graph): (&Model, &Graph), operators: &Operators, options: &HalfOptions<'_>) {
        // Half the distance between adjacent numbers, relative to a number.
        let rounding = if self.dtype == DataType::Float16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
        for node in &graph.nodes {
            let Some(value) = node.input(0).filter(|value| is_float(self.facts, *value)) else { continue };
            let operator = operators.get(node.id);
            let is_angle = operator.is_some_and(<dyn Operator>::takes_angle);
            let gives_integer = node.output(0).and_then(|value| self.facts.values[value].as_ref());
            let gives_integer = gives_integer.is_some_and(|fact| !fact.is_float() && fact.dtype != DataType::Bool);
            let allowed = match (is_angle, gives_integer) {
                (true, _) => ANGLE_ERROR,
                (_, true) if !self.reads_sizes[node.id] => INTEGER_ERROR,
                _ => continue,
            };
            let magnitude =
                options.ranges.get(&graph.values[value].name).map_or(f64::INFINITY, |range| range.magnitude());
            let error = magnitude * rounding;
            if graph.tensor(model, value).is_some() || error <= allowed {
                continue;
            }
            let what = if is_angle { "angles" } else { "integers" };
            let reason = format!("computes {what} as large as {magnitude:.3e}, which half precision rounds too much");
            self.kept.entry(node.id).or_insert_with(|| reason.clone());
            let (mut open, mut seen) = (vec![value], BTreeSet::new());
            while let Some(value) = open.pop() {
                let Some((producer, _)) = graph.values[value].producer else { continue };
                let producer = &graph.nodes[producer];
                if !self.has_floats[producer.id] || !seen.insert(producer.id) {
                    continue;
                }
                self.kept.entry(producer.id).or_insert_with(|| reason.clone());
                if !sums_products(&producer.proto) {
                    open.extend(producer.inputs.iter().flatten().filter(|value| is_float(self.facts, **value)));
                }
            }
        }
    }

    /// Keeps float32 for nodes between nodes that are kept in it, so that no value is cast back and forth.
    fn keep_between(&mut self, model: &Model, graph: &Graph) {
        loop {
            let mut found = Vec::new();
            for node in graph.nodes.iter().filter(|node| self.is_half(node.id) && !sums_products(&node.proto)) {
                let floats = |values: &[Option<ValueId>]| -> Vec<ValueId> {
                    values.iter().flatten().copied().filter(|value| is_float(self.facts, *value)).collect()
                };
                let mut inputs = floats(&node.inputs);
                inputs.retain(|value| graph.tensor(model, *value).is_none());
                let outputs = floats(&node.outputs);
                let is_kept = |node: &NodeId| self.kept.contains_key(node);
                let from_kept = |value: &ValueId| graph.values[*value].producer.is_some_and(|(node, _)| is_kept(&node));
                let to_kept = |value: &ValueId| {
                    let value = &graph.values[*value];
                    !value.is_output
                        && !value.consumers.is_empty()
                        && value.consumers.iter().all(|(node, _)| is_kept(node))
                };
                if !inputs.is_empty()
                    && !outputs.is_empty()
                    && inputs.iter().all(from_kept)
                    && outputs.iter().all(to_kept)
                {
                    found.push(node.id);
                }
            }
            if found.is_empty() {
                return;
            }
            self.kept.extend(found.into_iter().map(|node| (node, String::new())));
        }
    }

    /// Whether a node computes in half precision.
    pub(super) fn is_half(&self, node: NodeId) -> bool {
        self.has_floats[node] && !self.kept.contains_key(&node)
    }

    /// Whether the precision of the inputs matters to a node without float32 outputs. It does not if it only reads sizes.
    pub(super) fn depends_on_precision(&self, node: &Node) -> bool {
        !self.reads_sizes[node.id]
    }

    /// Whether a node reads input `slot` in half precision.
    pub(super) fn reads_half(&self, node: &Node, slot: usize) -> bool {
        let formal = self.types[node.id].and_then(|types| types.input(slot));
        self.is_half(node.id) && formal.is_some_and(|formal| formal.takes(self.dtype))
    }

    /// Whether a node computes output `slot` in half precision.
    pub(super) fn gives_half(&self, node: &Node, slot: usize) -> bool {
        let formal = self.types[node.id].and_then(|types| types.output(slot));
        self.is_half(node.id) && formal.is_some_and(|formal| formal.takes(self.dtype))
    }

    pub(super) fn half_count(&self) -> usize {
        (0..self.has_floats.len()).filter(|node| self.is_half(*node)).count()
    }

    /// Returns the nodes that are kept in float32, without those whose only reason is their neighbours.
    pub(super) fn kept(&self, graph: &Graph) -> Vec<KeptNode> {
        let named = self.kept.iter().filter(|(_, reason)| !reason.is_empty());
        let of = |(node, reason): (&NodeId, &String)| {
            let node = &graph.nodes[*node];
            KeptNode { node: node.name.clone(), op: node.op(), reason: reason.clone() }
        };
        named.map(of).collect()
    }
}

/// Whether a value is float32.
pub(super) fn is_float(facts: &Facts, value: ValueId) -> bool {
    facts.values[value].as_ref().is_some_and(|fact| fact.dtype == DataType::Float)
}

fn sums_products(node: &NodeProto) -> bool {
    ops::find(&node.domain, &node.op_type).is_some_and(Registration::sums_products)
}

fn has_body(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}

/// Whether an attribute names float32 as the output type of the node.
pub(super) fn names_float(attribute: &crate::onnx::AttributeProto) -> bool {
    let is_named = TYPE_ATTRIBUTES.contains(&attribute.name.as_str()) && attribute.i == Some(DataType::Float as i64);
    is_named || attribute.t.as_ref().is_some_and(|tensor| tensor.element_type() == DataType::Float)
}

fn named_type(node: &NodeProto) -> bool {
    node.attribute.iter().any(names_float)
}

/// Returns an element of a constant that float16 can't represent: one that is too large, or the largest if all are so
/// small that float16 rounds them to zero or to few digits, such as the epsilon of a norm. Infinity can be represented.
fn unheld(elements: &[f32]) -> Option<f32> {
    let magnitude = |element: &f32| f64::from(element.abs());
    let largest = elements.iter().filter(|element| element.is_finite()).max_by(|a, b| a.abs().total_cmp(&b.abs()))?;
    let is_held = magnitude(largest) == 0.0 || (LEAST..=65_504.0).contains(&magnitude(largest));
    (!is_held).then_some(*largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_that_float16_cannot_represent_are_found() {
        assert_eq!(unheld(&[1.0, -65_504.0, f32::NEG_INFINITY, 0.0]), None);
        assert_eq!(unheld(&[1.0, -3.4e38]), Some(-3.4e38));
        assert_eq!(unheld(&[1e-5]), Some(1e-5));
        assert_eq!(unheld(&[1e-6, 0.5]), None);
        assert_eq!(unheld(&[]), None);
    }
}
