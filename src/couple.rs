//! Coupling: which indices of which axes must be removed together or not at all.
//!
//! Operators state their rules through [`CoupleCx`] on the pieces of axes ([`crate::operator::couple::layout`]). The
//! rules unite or freeze indices of [`crate::operator::couple::space`]s. Then [`resolve`] decides what every divided
//! axis may lose (heads or head dimensions, norm groups or their members), and [`group`] collects the channel groups
//! from the united indices.

pub mod resolve;

pub mod group;

pub mod options;

pub mod text;

mod frequencies;

use std::collections::BTreeSet;

use crate::fold::Fold;
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, ValueId};
use crate::onnx::DataType;
use crate::operator::couple::grid::{GridCx, Grids};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::{MOST_INDICES, Reason, Spaces, new_axis_size};
use crate::operator::couple::{Barrier, CoupleCx, Coupling};
use crate::operator::{Operators, RuleError};
pub use frequencies::frequencies;

/// Applies every operator's coupling rule. The inputs of the network never shrink.
pub fn couple(
    graph: &Graph,
    operators: &Operators,
    facts: &Facts,
    fold: &Fold,
    is_constant: &dyn Fn(ValueId) -> bool,
) -> Coupling {
    couple_from(graph, operators, facts, fold, is_constant, &|_, _, shape| Layout::fixed(shape))
}

/// Like [`couple`], but every axis of every input of the network may shrink, as if a layer had computed it. This shows
/// what the rules state about all axes instead of only channels. Integer inputs do not shrink, because they are indices
/// and sizes. No network can be pruned this way; it serves to display the rules ([`text`]).
pub fn couple_freely(
    graph: &Graph,
    operators: &Operators,
    facts: &Facts,
    fold: &Fold,
    is_constant: &dyn Fn(ValueId) -> bool,
) -> Coupling {
    couple_from(graph, operators, facts, fold, is_constant, &|spaces, dtype, shape| {
        if matches!(dtype, DataType::Int64 | DataType::Int32) {
            return Layout::fixed(shape);
        }
        let axis = |size: &Dim| match new_axis_size(size) {
            Some(len) => {
                let space = spaces.add(len);
                spaces.whole(space)
            }
            None => fixed_axis(size),
        };
        Layout { axes: shape.iter().map(axis).collect() }
    })
}

fn couple_from(
    graph: &Graph,
    operators: &Operators,
    facts: &Facts,
    fold: &Fold,
    is_constant: &dyn Fn(ValueId) -> bool,
    input_layout: &dyn Fn(&mut Spaces, DataType, &[Dim]) -> Layout,
) -> Coupling {
    let mut coupling = Coupling {
        spaces: Spaces::default(),
        layouts: vec![None; graph.values.len()],
        uses: Vec::new(),
        origins: vec![None; graph.values.len()],
        grids: grids(graph, operators, facts),
        barriers: Vec::new(),
    };
    for (id, value) in graph.values.iter().enumerate() {
        if value.producer.is_none() {
            let fact = facts.values[id].as_ref().and_then(|fact| Some((fact.dtype, fact.shape.as_ref()?)));
            coupling.layouts[id] = fact.map(|(dtype, shape)| match value.is_input {
                true => input_layout(&mut coupling.spaces, dtype, shape),
                false => Layout::fixed(shape),
            });
        }
    }
    for value in &graph.inputs {
        coupling.origins[*value] = Some(*value);
    }
    for node in &graph.nodes {
        if is_constant_node(node, fold) {
            fix_outputs(&mut coupling, facts, node);
            continue;
        }
        apply_rule(
            CoupleCx { node, graph, facts, is_constant, coupling: &mut coupling, asked: BTreeSet::new() },
            operators,
        );
        let is_barrier = coupling.barriers.last().is_some_and(|barrier| barrier.node == node.id);
        if let Some(origin) = origin(&coupling, node, is_constant).filter(|_| !is_barrier) {
            node.outputs.iter().flatten().for_each(|value| coupling.origins[*value] = Some(origin));
        }
    }
    coupling.uses.sort_by_key(|weight| (weight.node, weight.slot));
    for value in &graph.outputs {
        let name = &graph.values[*value].name;
        let text = format!("the channels belong to {name}, an output of the network");
        keep_value(&mut coupling, *value, &text, maker(graph, *value));
        for counted in sizes_behind(graph, operators, is_constant, *value) {
            let text = format!("the number of these channels is {name}, an output of the network, or part of it");
            keep_value(&mut coupling, counted, &text, maker(graph, counted));
        }
    }
    for (id, value) in graph.values.iter().enumerate() {
        if let Some(node) = value.captured_by.first() {
            let name = &graph.nodes[*node].name;
            keep_value(&mut coupling, id, "a subgraph takes the channels as input", name);
            for counted in sizes_behind(graph, operators, is_constant, id) {
                keep_value(&mut coupling, counted, "a subgraph takes the number of these channels as input", name);
            }
        }
    }
    coupling
}

/// Returns the values whose sizes a value is computed from, if it is computed only from sizes and constants. Returns an
/// empty set if it is computed from anything else.
fn sizes_behind(
    graph: &Graph,
    operators: &Operators,
    is_constant: &dyn Fn(ValueId) -> bool,
    value: ValueId,
) -> BTreeSet<ValueId> {
    let mut counted = BTreeSet::new();
    let mut open = vec![value];
    let mut seen = BTreeSet::new();
    while let Some(value) = open.pop() {
        if is_constant(value) || !seen.insert(value) {
            continue;
        }
        let Some((node, _)) = graph.values[value].producer else { return BTreeSet::new() };
        let inputs = graph.nodes[node].inputs.iter().flatten();
        match operators.of(node) {
            Ok(operator) if operator.reads_sizes_alone() => counted.extend(inputs),
            _ => open.extend(inputs),
        }
    }
    counted
}

/// Returns the grids of indices among the values of a graph.
fn grids(graph: &Graph, operators: &Operators, facts: &Facts) -> Grids {
    let mut grids: Grids = vec![None; graph.values.len()];
    for node in &graph.nodes {
        let (Some(output), Ok(operator)) = (node.output(0), operators.of(node.id)) else { continue };
        grids[output] = operator.grid(&GridCx { node, facts, grids: &grids });
    }
    grids
}

/// Returns whether a node has no coupling rule applied because its outputs are constants: a Constant node, or a node
/// that is computed ahead of time.
fn is_constant_node(node: &Node, fold: &Fold) -> bool {
    node.proto.op_type == "Constant" || fold.is_interior(node.id)
}

/// Applies the rule of one node. The node becomes a barrier if it has none.
fn apply_rule(mut cx: CoupleCx<'_>, operators: &Operators) {
    let node = cx.node;
    let has_room = cx.coupling.spaces.element_count() <= MOST_INDICES;
    let sparse = node.inputs.iter().flatten().copied().find(|value| cx.graph.is_sparse(*value));
    let result = match sparse {
        _ if !has_room => {
            Err(RuleError::unsupported(format!("the nodes before it have more than {MOST_INDICES} indices")))
        }
        None => operators.of(node.id).and_then(|operator| {
            operator.couple(&mut cx)?;
            if !operator.reads_sizes_alone() {
                cx.keep_unasked();
            }
            Ok(())
        }),
        Some(value) => {
            let name = &cx.graph.values[value].name;
            Err(RuleError::unsupported(format!(
                "the input {name} is a sparse initializer; store it as a dense one to prune its channels"
            )))
        }
    };
    if let Err(cause) = result {
        // Constants that only this node uses have no indices yet, and need none.
        if has_room {
            cx.keep_inputs(&cause.to_string());
        } else {
            cx.keep_known_inputs(&cause.to_string());
        }
        fix_outputs(cx.coupling, cx.facts, node);
        if let Some(value) = sparse {
            node.outputs.iter().flatten().for_each(|output| cx.coupling.origins[*output] = Some(value));
        }
        cx.coupling.barriers.push(Barrier { node: node.id, cause: cause.to_string() });
    }
}

/// Returns the input of the network from which the outputs of a node are computed, if it is a single input and no axis
/// of the outputs can shrink.
fn origin(coupling: &Coupling, node: &Node, is_constant: &dyn Fn(ValueId) -> bool) -> Option<ValueId> {
    let mut read = node.inputs.iter().flatten().filter(|value| !is_constant(**value));
    let origin = coupling.origins[*read.next()?]?;
    let is_only = read.all(|value| coupling.origins[*value] == Some(origin));
    let mut layouts = node.outputs.iter().flatten().map(|value| coupling.layouts[*value].as_ref());
    let is_fixed = |layout: Option<&Layout>| layout.is_some_and(Layout::is_fixed);
    (is_only && layouts.all(is_fixed)).then_some(origin)
}

/// Returns the name of the node that computes a value, or that of the value if it is an input.
fn maker(graph: &Graph, value: ValueId) -> &str {
    graph.values[value].producer.map_or(&graph.values[value].name, |(node, _)| &graph.nodes[node].name)
}

fn keep_value(coupling: &mut Coupling, value: ValueId, text: &str, node: &str) {
    let reason = Reason { text: text.to_owned(), node: node.to_owned() };
    if let Some(layout) = &coupling.layouts[value] {
        for axis in &layout.axes {
            coupling.spaces.freeze_axis(axis, &reason);
        }
    }
}

fn fix_outputs(coupling: &mut Coupling, facts: &Facts, node: &Node) {
    for value in node.outputs.iter().flatten() {
        let shape = facts.values[*value].as_ref().and_then(|fact| fact.shape.as_ref());
        coupling.layouts[*value] = shape.map(|shape| Layout::fixed(shape));
    }
}
