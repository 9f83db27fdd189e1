//! Weights that the graph itself computes from constants, such as a kernel divided by its norm.
//!
//! A node whose inputs are all constant has the same output in every run. If such nodes *mix* the indices of a weight
//! ([`Folding::Mixes`]: a norm, a mean, a product), removing an index before them would change the result for the other
//! indices. Their output is therefore computed once and treated as a constant: channels are removed from the normalised
//! weight, and the kept elements do not change. Constants that nodes only move, scale or cast are coupled through those
//! nodes instead.
//!
//! [`Fold::find`] decides from shapes alone what to compute. A value is folded as late as possible, where it enters the
//! network. It is folded earlier if it would take more bytes there than the constants that it replaces.
//! [`Fold::evaluate`] computes it in ONNX Runtime. A part from which a cut removes nothing keeps its nodes
//! ([`Fold::replaced`]).

mod evaluate;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use petgraph::unionfind::UnionFind;

use crate::graph::fact::{Fact, static_shape};
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, NodeId, ValueId};
use crate::onnx::TensorProto;
use crate::onnx::builder::needed;
use crate::onnx::order::captured;
use crate::operator::couple::Coupling;
use crate::operator::couple::kept::Kept;
use crate::operator::{Folding, Operator, Operators};

/// Maximum size in bytes of constants that otherwise independent parts may share: epsilons, exponents, axes.
const SHARED_BYTES: u64 = 256;

/// A value of at most this fraction of its sources' size may be folded although the sources are kept: a norm in
/// addition to its weight.
const SMALL_FRACTION: u64 = 8;

/// Maximum size of an intermediate value, as a multiple of the size of all constants of the graph.
const GROWTH: u64 = 16;

/// Values that are computed from the same constants. A cut replaces all of them or none.
#[derive(Debug, Default)]
struct Part {
    values: BTreeSet<ValueId>,
    /// Initializers from which they are computed.
    sources: BTreeSet<ValueId>,
    tensors: OnceLock<BTreeMap<ValueId, TensorProto>>,
}

/// The values that are computed ahead of time.
#[derive(Debug, Default)]
pub struct Fold {
    parts: Vec<Part>,
    part_of: HashMap<ValueId, usize>,
    /// Nodes that are not needed if every folded value is a constant.
    interior: Vec<bool>,
}

/// The values that a cut replaces.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    /// Folded values that become initializers.
    pub values: BTreeSet<ValueId>,
    nodes: Vec<bool>,
}

impl Replaced {
    /// Returns whether this node is no longer needed.
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.nodes.get(node).copied().unwrap_or(false)
    }

    /// Returns whether a value becomes an initializer although its node is kept for another output.
    pub fn is_computed_too(&self, graph: &Graph, value: ValueId) -> bool {
        let producer = graph.values[value].producer;
        self.values.contains(&value) && producer.is_some_and(|(node, _)| !self.is_removed(node))
    }

    /// Returns whether only nodes that are no longer needed used an initializer.
    fn is_unread(&self, graph: &Graph, value: ValueId) -> bool {
        let value = &graph.values[value];
        let is_held = value.is_output || !value.captured_by.is_empty() || value.consumers.is_empty();
        !is_held && value.consumers.iter().all(|(node, _)| self.is_removed(*node))
    }
}

/// Returns the size in bytes of a value with known type and static shape.
fn byte_count(fact: &Fact) -> Option<u64> {
    let element = fact.dtype.byte_size()? as u64;
    let shape = static_shape(fact.shape.as_ref()?)?;
    shape.iter().try_fold(element, |bytes, size| bytes.checked_mul(*size as u64))
}

/// Returns for every node whether it is not needed if the values for which `is_replaced` holds are constants.
fn unneeded(graph: &Graph, is_replaced: &dyn Fn(ValueId) -> bool) -> Vec<bool> {
    let nodes = graph.nodes.iter().map(|node| {
        let reads = node.inputs.iter().flatten().copied().filter(|value| !is_replaced(*value)).collect();
        let gives: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        // A node whose outputs are not used in the file either is kept.
        let was_read = |value: &ValueId| is_replaced(*value) || !graph.values[*value].consumers.is_empty();
        let is_held = !gives.iter().any(was_read);
        (reads, gives, is_held)
    });
    let held = (0..graph.values.len()).filter(|value| {
        let is_held = graph.values[*value].is_output || !graph.values[*value].captured_by.is_empty();
        is_held && !is_replaced(*value)
    });
    let (needed, _) = needed(nodes, held);
    needed.into_iter().map(|needed| !needed).collect()
}

/// The nodes and sources from which a value is computed.
#[derive(Clone, Debug, Default)]
struct Origin {
    nodes: BTreeSet<NodeId>,
    /// Initializers, and outputs of nodes without inputs.
    sources: BTreeSet<ValueId>,
}

/// The search for values to fold.
struct Search<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    /// Values that are constants, or computed only from constants.
    is_constant: Vec<bool>,
    /// Those that depend on a mixing node.
    is_mixed: Vec<bool>,
    /// Nodes that use only constants.
    is_region: Vec<bool>,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, operators: &Operators, facts: &'a Facts) -> Self {
        let bytes = |value: ValueId| facts.values[value].as_ref().and_then(byte_count);
        let initializers = (0..graph.values.len()).filter(|value| graph.values[*value].initializer.is_some());
        let total = initializers.filter_map(bytes).fold(0, u64::saturating_add);
        let mut search = Search {
            graph,
            facts,
            is_constant: graph.values.iter().map(|value| value.initializer.is_some()).collect(),
            is_mixed: vec![false; graph.values.len()],
            is_region: vec![false; graph.nodes.len()],
        };
        for node in &graph.nodes {
            let Some(folding) = operators.get(node.id).map(Operator::folding) else {
                continue;
            };
            let mut inputs = node.inputs.iter().flatten();
            let mut outputs = node.outputs.iter().flatten();
            if folding == Folding::Never
                || !inputs.clone().all(|value| search.is_constant[*value])
                || !captured(&node.proto).is_empty()
                || !outputs.clone().all(|value| bytes(*value).is_some_and(|size| size / GROWTH <= total))
            {
                continue;
            }
            search.is_region[node.id] = true;
            let is_mixed = folding == Folding::Mixes || inputs.any(|value| search.is_mixed[*value]);
            outputs.by_ref().for_each(|value| {
                search.is_constant[*value] = true;
                search.is_mixed[*value] = is_mixed;
            });
        }
        search
    }

    fn bytes(&self, value: ValueId) -> u64 {
        self.facts.values[value].as_ref().and_then(byte_count).unwrap_or(0)
    }

    fn origin(&self, value: ValueId) -> Origin {
        let mut origin = Origin::default();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            match self.graph.values[value].producer {
                Some((node, _)) if origin.nodes.insert(node) => {
                    let inputs = self.graph.nodes[node].inputs.iter().flatten();
                    if inputs.clone().next().is_none() {
                        origin.sources.insert(value);
                    }
                    open.extend(inputs);
                }
                Some(_) => {}
                None => {
                    origin.sources.insert(value);
                }
            }
        }
        origin
    }

    /// Returns the values that enter the network: they depend on a mixing node, and a node that does not use only
    /// constants uses them.
    fn frontier(&self) -> Vec<ValueId> {
        let enters =
            |value: &ValueId| self.graph.values[*value].consumers.iter().any(|(node, _)| !self.is_region[*node]);
        (0..self.graph.values.len()).filter(|value| self.is_mixed[*value] && enters(value)).collect()
    }

    /// Chooses the values to fold, starting from `open` and going back to their inputs: foldable values that are not
    /// `rejected` and no larger than their sources.
    fn choose(&self, mut open: Vec<ValueId>, rejected: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let mut chosen = BTreeSet::new();
        let mut seen: BTreeSet<ValueId> = open.iter().copied().collect();
        while let Some(value) = open.pop() {
            let fact = self.facts.values[value].as_ref().filter(|fact| fact.is_float() && fact.known.is_none());
            if fact.is_none() {
                continue;
            }
            let is_held = self.graph.values[value].is_output || !self.graph.values[value].captured_by.is_empty();
            let is_small = || {
                let sources: u64 = self.origin(value).sources.iter().map(|source| self.bytes(*source)).sum();
                self.bytes(value) <= sources
            };
            if !is_held && !rejected.contains(&value) && is_small() {
                chosen.insert(value);
            } else if let Some((node, _)) = self.graph.values[value].producer {
                let inputs = self.graph.nodes[node].inputs.iter().flatten();
                open.extend(inputs.filter(|input| self.is_mixed[**input] && seen.insert(**input)));
            }
        }
        chosen
    }

    /// Sorts the chosen values into parts that share nodes or large constants.
    fn parts(&self, chosen: &BTreeSet<ValueId>) -> Vec<Part> {
        let origins: Vec<Origin> = chosen.iter().map(|value| self.origin(*value)).collect();
        let mut joined: UnionFind<usize> = UnionFind::new(origins.len());
        let (mut by_node, mut by_source) = (HashMap::new(), HashMap::new());
        for (at, origin) in origins.iter().enumerate() {
            let has_inputs = |node: &&NodeId| self.graph.nodes[**node].inputs.iter().flatten().next().is_some();
            for node in origin.nodes.iter().filter(has_inputs) {
                joined.union(at, *by_node.entry(*node).or_insert(at));
            }
            for source in origin.sources.iter().filter(|source| self.bytes(**source) > SHARED_BYTES) {
                joined.union(at, *by_source.entry(*source).or_insert(at));
            }
        }
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        for ((value, origin), label) in chosen.iter().zip(origins).zip(joined.into_labeling()) {
            let part = parts.entry(label).or_default();
            part.values.insert(*value);
            part.sources.extend(origin.sources);
        }
        parts.into_values().collect()
    }

    /// Returns whether the file would grow even if the cut removes nothing from the part.
    fn grows(&self, part: &Part, gone: &Replaced) -> bool {
        let bytes = |values: &mut dyn Iterator<Item = &ValueId>| values.map(|value| self.bytes(*value)).sum::<u64>();
        let folded = bytes(&mut part.values.iter());
        let saved = bytes(&mut part.sources.iter().filter(|source| self.vanishes(**source, gone)));
        folded > saved && folded > bytes(&mut part.sources.iter()) / SMALL_FRACTION
    }

    /// Returns whether a constant is no longer in the file: an initializer that nothing uses, or the output of a node
    /// that is no longer needed.
    fn vanishes(&self, source: ValueId, gone: &Replaced) -> bool {
        match self.graph.values[source].producer {
            Some((node, _)) => gone.is_removed(node),
            None => gone.is_unread(self.graph, source),
        }
    }
}

impl Fold {
    /// Decides which values of a graph to compute ahead of time.
    pub fn find(graph: &Graph, operators: &Operators, facts: &Facts) -> Self {
        let search = Search::new(graph, operators, facts);
        let mut chosen = search.choose(search.frontier(), &BTreeSet::new());
        let mut rejected = BTreeSet::new();
        // If a part would grow, earlier values are folded. Every round rejects values that were chosen.
        let parts = loop {
            let gone = Replaced { values: BTreeSet::new(), nodes: unneeded(graph, &|value| chosen.contains(&value)) };
            let parts = search.parts(&chosen);
            let growing = parts.iter().filter(|part| search.grows(part, &gone));
            let growing: Vec<ValueId> = growing.flat_map(|part| part.values.iter().copied()).collect();
            if growing.is_empty() {
                break parts;
            }
            rejected.extend(growing.iter().copied());
            chosen.retain(|value| !rejected.contains(value));
            chosen.extend(search.choose(growing, &rejected));
        };
        let part_of = parts.iter().enumerate().flat_map(|(at, part)| part.values.iter().map(move |value| (*value, at)));
        let interior = unneeded(graph, &|value| chosen.contains(&value));
        Fold { part_of: part_of.collect(), parts, interior }
    }

    /// Returns whether no value is computed ahead of time.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns whether a value is treated as a constant although nodes compute it.
    pub fn contains(&self, value: ValueId) -> bool {
        self.part_of.contains_key(&value)
    }

    /// Returns whether a node only serves to compute folded values.
    pub fn is_interior(&self, node: NodeId) -> bool {
        self.interior.get(node).copied().unwrap_or(false)
    }

    /// Returns whether a value counts as a constant: it has a tensor, or will have one after it is computed ahead of
    /// time.
    pub fn is_constant(&self, model: &Model, graph: &Graph, value: ValueId) -> bool {
        self.contains(value) || graph.tensor(model, value).is_some()
    }

    /// Returns the tensor of a value that is an initializer, the output of a Constant node, or computed ahead of time
    /// ([`Fold::evaluate`]).
    pub fn constant<'m>(&'m self, model: &'m Model, graph: &'m Graph, value: ValueId) -> Option<&'m TensorProto> {
        if self.contains(value) { self.tensor(value) } else { graph.tensor(model, value) }
    }

    /// Returns the elements of a folded value. `None`: not computed yet.
    pub fn tensor(&self, value: ValueId) -> Option<&TensorProto> {
        self.parts[*self.part_of.get(&value)?].tensors.get()?.get(&value)
    }

    /// Returns the constants from which a folded value is computed.
    pub fn sources(&self, value: ValueId) -> impl Iterator<Item = ValueId> {
        let part = self.part_of.get(&value).map(|part| &self.parts[*part]);
        part.into_iter().flat_map(|part| part.sources.iter().copied())
    }

    /// Returns what is replaced if a cut removes channels from the values for which `is_cut` holds.
    fn replaced_where(&self, graph: &Graph, is_cut: &dyn Fn(ValueId) -> bool) -> Replaced {
        let cut = self.parts.iter().filter(|part| part.values.iter().any(|value| is_cut(*value)));
        let mut values: BTreeSet<ValueId> = cut.flat_map(|part| part.values.iter().copied()).collect();
        if values.is_empty() {
            return Replaced::default();
        }
        let nodes = unneeded(graph, &|value| values.contains(&value));
        values.retain(|value| graph.values[*value].consumers.iter().any(|(node, _)| !nodes[*node]));
        Replaced { values, nodes }
    }

    /// Returns what a cut replaces: the parts from which it removes channels.
    pub fn replaced(&self, graph: &Graph, coupling: &Coupling, kept: &Kept) -> Replaced {
        if self.is_empty() {
            return Replaced::default();
        }
        let cuts = |axes: &[Option<usize>]| axes.iter().flatten().any(|space| kept.indices(*space).is_some());
        let cut: BTreeSet<ValueId> = coupling
            .uses
            .iter()
            .filter(|weight| self.contains(weight.value) && cuts(&weight.axes))
            .map(|weight| weight.value)
            .collect();
        self.replaced_where(graph, &|value| cut.contains(&value))
    }
}
