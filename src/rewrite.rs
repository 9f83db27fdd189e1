//! Rewriting: from kept indices to a smaller model.
//!
//! Nothing is sliced here. The result tells the writer which indices of which initializers to keep, which nodes to
//! patch and which shapes to change. Weights are sliced while they are written.

pub(crate) mod unread;

mod weights;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::operator::patch::PatchCx;
use crate::operator::{KernelCx, LowerCx, Operator, RuleError};
use unread::NewNodes;
pub use weights::WeightSlices;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, Node};
use crate::onnx::builder::Builder;
use crate::onnx::names::Names;
use crate::onnx::{NodeProto, TensorProto};
use crate::operator::couple::Coupling;
use crate::operator::couple::kept::Kept;
use crate::ops;
use crate::write::{DimOut, Edits, InitializerOut, NodeOut};

/// A rewritten model, ready to be written.
#[derive(Debug)]
pub struct Rewritten {
    /// The changes for the writer.
    pub edits: Edits,
    /// The facts of every value after the cut.
    pub facts: Facts,
    /// The kept indices of every index space.
    pub kept: Kept,
    /// The slice of every use of a constant.
    pub slices: WeightSlices,
    /// Values computed from sizes that were frozen at their old values, such as an attention scale.
    pub frozen: Vec<String>,
    /// Fused nodes that are written in standard operators, because ONNX Runtime's kernel does not support their new
    /// sizes.
    pub unfused: Vec<Unfused>,
}

impl Rewritten {
    /// Returns warnings for the user.
    pub fn warnings(&self) -> Vec<String> {
        let mut by_operator: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for Unfused { node, operator } in &self.unfused {
            by_operator.entry(operator).or_default().push(node);
        }
        let text = |(operator, nodes): (&str, Vec<&str>)| {
            let (first, others) = (nodes[0], nodes.len() - 1);
            let others = if others == 0 { String::new() } else { format!(" and {others} more") };
            format!(
                "{operator}: wrote node {first:?}{others} in standard operators, because ONNX Runtime's kernel does \
                 not support the sizes after the cut"
            )
        };
        by_operator.into_iter().map(text).collect()
    }
}

/// A fused node that is written in standard operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unfused {
    /// The name of the node in messages.
    pub node: String,
    /// Its operator with the domain.
    pub operator: String,
}

/// Rewrites a model so that only the kept indices remain. Nothing is written to disk.
///
/// # Errors
/// A node can't express the cut, or its output has another shape than the cut requires.
pub fn rewrite(analysis: &Analysis, kept: &Kept) -> Result<Rewritten, Error> {
    let Analysis { model, graph, operators, facts, fold, coupling, zero_tables: _ } = analysis;
    let mut names = Names::of_graph(model.graph());
    let slices = WeightSlices::new(model, graph, fold, coupling, kept, &mut names);
    let mut after = Facts::of_sources(model, graph, &facts.fixed)?;
    let mut edits = Edits { initializers: slices.initializers(model, graph, fold)?, ..Edits::default() };
    let (mut frozen, mut unfused) = (Vec::new(), Vec::new());
    let mut nodes = NewNodes::default();
    for proto in slices.constant_nodes(model, graph, fold)? {
        nodes.push(NodeOut::New(proto.clone()), &proto, graph, None);
    }
    for node in &graph.nodes {
        if slices.replaced().is_removed(node.id) {
            for value in node.outputs.iter().flatten() {
                after.values[*value].clone_from(&facts.values[*value]);
            }
            continue;
        }
        let mut proto = node.proto.clone();
        let mut overrides: BTreeMap<usize, Fact> = BTreeMap::new();
        let mut changed = false;
        for slot in 0..node.inputs.len() {
            if let Some((name, dims)) = slices.of(node.id, slot) {
                if proto.input[slot] != *name {
                    proto.input[slot].clone_from(name);
                    changed = true;
                }
                if let Some(fact) = node.input(slot).and_then(|value| facts.values[value].as_ref()) {
                    let shape = dims.iter().map(|size| Dim::from(*size as i64)).collect();
                    overrides.insert(slot, Fact::new(fact.dtype, shape));
                }
            }
        }
        let mut tensors = Vec::new();
        let mut inserted = Vec::new();
        // A fault of the node counts only if the node is kept. It may compute sizes or indices that are no longer used.
        let mut fault = None;
        // Inputs and outputs of a barrier do not shrink, so nothing has to be patched.
        let is_barrier = coupling.barriers.iter().any(|barrier| barrier.node == node.id);
        let op = operators.get(node.id).filter(|_| !is_barrier);
        if let Some(op) = op {
            let mut cx = PatchCx {
                node,
                graph,
                before: facts,
                after: &mut after,
                coupling,
                kept,
                proto: &mut proto,
                tensors: &mut tensors,
                inserted: &mut inserted,
                names: &mut names,
                overrides: &mut overrides,
                changed: false,
            };
            if let Err(cause) = op.patch(&mut cx) {
                let text = format!("the cut can't be written: {cause}");
                fault = Some(Error::unsupported(text).in_file(model.path()).at_node(&node.name, node.op()));
            }
            changed |= cx.changed;
        }
        edits.initializers.extend(tensors.into_iter().map(InitializerOut::New));
        let mut patched = Node { proto: proto.clone(), ..node.clone() };
        patched.inputs.resize(proto.input.len(), None);
        let parsed;
        let operator = if changed {
            parsed = ops::parse_node(&patched);
            parsed.as_ref().map(Box::as_ref).map_err(Clone::clone)
        } else {
            operators.of(node.id)
        };
        if let Err(error) = after.infer_patched(model, graph, &patched, operator.clone(), &overrides) {
            fault.get_or_insert(error);
        }
        if let Some(tensor) = frozen_scalar(graph, facts, &after, node) {
            frozen.push(tensor.name.clone());
            for value in node.outputs.iter().flatten() {
                after.values[*value].clone_from(&facts.values[*value]);
            }
            edits.initializers.push(InitializerOut::New(tensor));
            continue;
        }
        let fault = fault.or_else(|| check_shapes(model, facts, &after, coupling, kept, node).err());
        for proto in inserted {
            nodes.push(NodeOut::New(proto.clone()), &proto, graph, None);
        }
        if let (Some(before), Ok(operator), None) = (op, operator, &fault)
            && before.kernel_takes(&KernelCx { inputs: inputs(facts, node) })
            && !operator.kernel_takes(&KernelCx { inputs: inputs(&after, node) })
        {
            let parts = in_standard_operators(&patched, operator, &mut after, &overrides, (graph.opset, &mut names));
            let mut parts = parts.map_err(|cause| {
                let text = format!(
                    "no kernel supports its sizes after the cut, and it can't be written in standard operators: {cause}"
                );
                Error::unsupported(text).in_file(model.path()).at_node(&node.name, node.op())
            })?;
            edits.initializers.extend(parts.initializers.drain(..).map(InitializerOut::New));
            parts.nodes.into_iter().for_each(|proto| nodes.push(NodeOut::New(proto.clone()), &proto, graph, None));
            unfused.push(Unfused { node: node.name.clone(), operator: node.op() });
            continue;
        }
        let new = match (changed, model.is_inlined()) {
            (false, false) => NodeOut::Original(node.index),
            (_, true) => NodeOut::New(proto.clone()),
            (true, false) if proto.op_type != node.proto.op_type => NodeOut::New(proto.clone()),
            (true, false) => patched_node(node, &proto),
        };
        nodes.push(new, &proto, graph, Some(node));
        if let Some(fault) = fault {
            nodes.faulty(fault);
        }
    }
    if let Some(fault) = nodes.settle(model, graph, &mut edits) {
        return Err(fault);
    }
    edits.shapes = new_shapes(model, graph, coupling, kept, &slices);
    Ok(Rewritten { edits, facts: after, kept: kept.clone(), slices, frozen, unfused })
}

/// Returns the facts of the inputs of a node.
fn inputs<'f>(facts: &'f Facts, node: &Node) -> Vec<Option<&'f Fact>> {
    node.inputs.iter().map(|value| facts.values[(*value)?].as_ref()).collect()
}

/// Expresses a node in standard operators, at the sizes after the cut. `overrides` are the facts of inputs that the
/// node uses in a sliced form.
fn in_standard_operators(
    node: &Node,
    operator: &dyn Operator,
    after: &mut Facts,
    overrides: &BTreeMap<usize, Fact>,
    (opset, names): (i64, &mut Names),
) -> Result<Builder, RuleError> {
    let prefix = names.fresh(&format!("{}/standard", node.proto.first_output()));
    let mut builder = Builder::new(&prefix, opset, names.beginning_with(&prefix));
    let mut known = Vec::new();
    for (slot, fact) in overrides {
        if let Some(value) = node.input(*slot) {
            known.push((value, after.values[value].replace(fact.clone())));
        }
    }
    let lowered = operator.lower(&mut LowerCx::new(node, after, &mut builder));
    known.into_iter().rev().for_each(|(value, fact)| after.values[value] = fact);
    match lowered? {
        true => Ok(builder),
        false => Err(RuleError::unsupported("the operator has no form in standard operators")),
    }
}

fn patched_node(node: &Node, proto: &NodeProto) -> NodeOut {
    let removed_attributes = node.proto.attribute.iter().map(|attribute| attribute.name.clone());
    NodeOut::Patched {
        index: node.index,
        inputs: proto.input.clone(),
        removed_attributes: removed_attributes.filter(|name| proto.attr(name).is_none()).collect(),
        attributes: proto.attribute.iter().filter(|new| node.proto.attr(&new.name) != Some(new)).cloned().collect(),
    }
}

/// Returns the constant that replaces a float computed from sizes, if the cut would change its value. Pruning must not
/// change the results for kept channels.
fn frozen_scalar(graph: &Graph, before: &Facts, after: &Facts, node: &Node) -> Option<TensorProto> {
    let (output, None) = (node.output(0)?, node.output(1)) else {
        return None;
    };
    let (old, new) = (before.values[output].as_ref()?, after.values[output].as_ref()?);
    let (Some(Known::Floats(old_values)), Some(Known::Floats(new_values))) = (&old.known, &new.known) else {
        return None;
    };
    if old_values.len() != new_values.len() || old_values == new_values || graph.values[output].is_output {
        return None;
    }
    let dims: Vec<i64> = old.shape.as_ref()?.iter().filter_map(Dim::as_const).collect();
    TensorProto::of_numbers(&graph.values[output].name, old.dtype, old_values, &dims)
}

/// Checks that the rewritten node infers the shapes that the cut requires.
fn check_shapes(
    model: &Model,
    before: &Facts,
    after: &Facts,
    coupling: &Coupling,
    kept: &Kept,
    node: &Node,
) -> Result<(), Error> {
    for value in node.outputs.iter().flatten() {
        let (Some(layout), Some(found)) =
            (&coupling.layouts[*value], after.values[*value].as_ref().and_then(|fact| fact.shape.as_ref()))
        else {
            continue;
        };
        if !kept.is_even(layout) {
            let text = "the cut can't be written: it removes different numbers of channels from the blocks of one axis";
            return Err(Error::unmet(text)
                .in_file(model.path())
                .at_node(&node.name, node.op())
                .hint("exclude the layer with --keep and its name, and please report the model"));
        }
        let expected = kept.shape(layout);
        let differs = expected.len() != found.len()
            || expected.iter().zip(found).any(
                |(expected, found)| matches!((expected.as_const(), found.as_const()), (Some(a), Some(b)) if a != b),
            );
        if differs {
            let show = |shape: &[Dim]| shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
            let old = before.values[*value].as_ref().map_or("unknown".to_owned(), Fact::describe);
            let text = format!(
                "the cut can't be written: expected the output shape [{}], found [{}] after the rewrite (before: {old})",
                show(&expected),
                show(found)
            );
            return Err(Error::unmet(text)
                .in_file(model.path())
                .at_node(&node.name, node.op())
                .hint("exclude the layer with --keep and its name, and please report the model"));
        }
    }
    Ok(())
}

/// Returns the new shapes of declared values that shrink.
fn new_shapes(
    model: &Model,
    graph: &Graph,
    coupling: &Coupling,
    kept: &Kept,
    slices: &WeightSlices,
) -> BTreeMap<String, Vec<DimOut>> {
    let mut shapes = BTreeMap::new();
    for info in &model.graph().value_info {
        let Some(value) = graph.value(&info.name) else {
            continue;
        };
        let Some(layout) = &coupling.layouts[value] else {
            continue;
        };
        if layout.axes.iter().any(|axis| kept.shrinks(axis)) {
            let dims = layout.axes.iter().map(|axis| match (kept.shrinks(axis), kept.axis_size(axis).as_const()) {
                (false, _) => DimOut::Same,
                (true, Some(size)) => DimOut::Value(size),
                (true, None) => DimOut::Unknown,
            });
            shapes.insert(info.name.clone(), dims.collect());
        }
    }
    // Includes sliced initializers that are also graph inputs, as in old files, or that value_info lists again.
    for (name, dims) in slices.renamed_in_place(graph) {
        shapes.insert(name, dims.into_iter().map(|size| DimOut::Value(size as i64)).collect());
    }
    shapes
}
