//! The analysis of a model before scoring: its graph, operators, shapes and coupling.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::couple::group::{Grouping, Member, Role, group};
use crate::couple::options::{AttentionOption, NormGroups};
use crate::couple::resolve::HeadDigit;
use crate::couple::text::Texts;
use crate::couple::{couple, couple_freely, frequencies};
use crate::error::Error;
use crate::fold::Fold;
use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::graph::{Graph, NodeId, ValueId};
use crate::infer::infer;
use crate::macs::{Counter, zero_tables};
use crate::onnx::TensorProto;
use crate::operator::Operators;
use crate::operator::couple::Coupling;
use crate::operator::couple::layout::{Piece, SpaceId};
use crate::operator::couple::space::Space;
use crate::ops;

/// A model with its graph, shapes and coupling.
#[derive(Debug)]
pub struct Analysis {
    /// The model.
    pub model: Model,
    /// Its graph.
    pub graph: Graph,
    /// Its operators.
    pub operators: Operators,
    /// What is known of its values: element types, shapes, constants.
    pub facts: Facts,
    /// The weights that are computed ahead of time from constants.
    pub fold: Fold,
    /// Its coupling, not yet resolved.
    pub coupling: Coupling,
    /// Constants that do not count as parameters ([`zero_tables`]).
    pub zero_tables: BTreeSet<ValueId>,
}

/// Builds the graph of a model, infers shapes and couples channels.
///
/// # Errors
/// Fails if the model contradicts itself.
pub fn analyse(model: &Model) -> Result<Analysis, Error> {
    let graph = Graph::new(model)?;
    let operators = ops::parse(&graph);
    let facts = infer(model, &graph, &operators)?;
    let fold = Fold::find(&graph, &operators, &facts);
    let coupling = couple(&graph, &operators, &facts, &fold, &|value| fold.is_constant(model, &graph, value));
    let zero_tables = zero_tables(model, &graph);
    Ok(Analysis { model: model.clone(), graph, operators, facts, fold, coupling, zero_tables })
}

impl Analysis {
    /// Returns the tensor of a constant: an initializer, the output of a Constant node, or a weight that was computed
    /// ahead of time.
    pub fn constant(&self, value: ValueId) -> Option<&TensorProto> {
        self.fold.constant(&self.model, &self.graph, value)
    }

    /// Returns whether a value counts as a constant.
    pub fn is_constant(&self, value: ValueId) -> bool {
        self.fold.is_constant(&self.model, &self.graph, value)
    }

    /// Infers all values again with the symbolic sizes of the inputs replaced by numbers.
    ///
    /// # Errors
    /// Fails if a node contradicts its operator's specification at these sizes.
    pub fn facts_at(&self, sizes: &Sizes) -> Result<Facts, Error> {
        Facts::at_sizes(&self.model, &self.graph, &self.operators, sizes)
    }

    /// Returns the groupings for an attention option, in the order in which they are pruned.
    pub fn groupings(&self, attention: AttentionOption, norm_groups: NormGroups) -> Vec<Grouping> {
        let passes: &[HeadDigit] = match attention {
            AttentionOption::Heads => &[HeadDigit::Heads],
            AttentionOption::Dims => &[HeadDigit::Dims],
            AttentionOption::Both => &[HeadDigit::Heads, HeadDigit::Dims],
            AttentionOption::None => &[HeadDigit::None],
        };
        passes.iter().map(|attention| group(&self.coupling, *attention, norm_groups == NormGroups::Drop)).collect()
    }

    /// Returns the floating point constants with an axis of channels that may be removed, without frequency tables.
    pub fn prunable_weights(&self) -> Vec<ValueId> {
        let groupings = self.groupings(AttentionOption::Both, NormGroups::Keep);
        let groups = groupings.iter().flat_map(|grouping| &grouping.groups).filter(|group| group.fixed.is_none());
        let values = groups.flat_map(|group| &group.members).map(|member| self.coupling.uses[member.weight].value);
        let tables = frequencies(&self.graph, &self.operators, &self.coupling);
        let is_float = |value: &ValueId| self.facts.values[*value].as_ref().is_some_and(Fact::is_float);
        values.filter(is_float).filter(|value| !tables.contains(value)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Returns the coupling of every node as text, see [`crate::couple::text`]; `None` for nodes that are computed
    /// ahead of time.
    pub fn coupling_texts(&self) -> Vec<Option<String>> {
        self.texts_of(&self.coupling)
    }

    /// Returns the coupling texts with every axis of every network input free to shrink, so that they show the rules
    /// for all axes.
    pub fn free_coupling_texts(&self) -> Vec<Option<String>> {
        let is_constant = |value: ValueId| self.is_constant(value);
        self.texts_of(&couple_freely(&self.graph, &self.operators, &self.facts, &self.fold, &is_constant))
    }

    fn texts_of(&self, coupling: &Coupling) -> Vec<Option<String>> {
        let is_constant = |value: ValueId| self.is_constant(value);
        let (graph, operators, facts, fold) = (&self.graph, &self.operators, &self.facts, &self.fold);
        Texts { graph, operators, facts, fold, is_constant: &is_constant, coupling }.all()
    }

    /// Returns, for every group of a grouping of this network, the nodes with an input or output that has its channels.
    pub fn nodes_by_group(&self, grouping: &Grouping) -> Vec<BTreeSet<NodeId>> {
        let mut group_of = BTreeMap::new();
        for (at, group) in grouping.groups.iter().enumerate() {
            group_of.extend(group.channels.iter().map(|class| (*class, at)));
        }
        let of_space = |space: &Space| -> BTreeSet<usize> {
            let classes = &grouping.classes[space.start..space.start + space.len];
            classes.iter().filter_map(|class| group_of.get(class).copied()).collect()
        };
        let of_space: Vec<BTreeSet<usize>> = grouping.spaces.all().iter().map(of_space).collect();
        let mut nodes = vec![BTreeSet::new(); grouping.groups.len()];
        let mut add = |node: NodeId, space: SpaceId| {
            of_space[space].iter().for_each(|group| {
                nodes[*group].insert(node);
            });
        };
        for node in &self.graph.nodes {
            let layouts = node.inputs.iter().chain(&node.outputs).flatten().map(|value| &self.coupling.layouts[*value]);
            let pieces = layouts.flatten().flat_map(|layout| layout.axes.iter().flatten());
            pieces.filter_map(Piece::space).for_each(|space| add(node.id, space));
        }
        for weight in &self.coupling.uses {
            weight.axes.iter().flatten().for_each(|space| add(weight.node, *space));
        }
        nodes
    }

    /// Calls `with` with a counter of this network.
    pub fn count<T>(&self, with: impl FnOnce(&Counter<'_>) -> T) -> T {
        let is_constant = |value: ValueId| self.is_constant(value);
        with(&Counter {
            graph: &self.graph,
            operators: &self.operators,
            fold: &self.fold,
            facts: &self.facts,
            coupling: &self.coupling,
            is_constant: &is_constant,
            zero_tables: &self.zero_tables,
        })
    }

    /// Returns the name to show for a group: its producer, or its first weight if it has none. If the exporter only
    /// numbered that weight, this is the name of the node that takes it as input.
    pub fn group_name(&self, members: &[Member]) -> String {
        let producer = members.iter().find(|member| member.role == Role::Producer).or(members.first());
        let Some(member) = producer else { return String::new() };
        let name = self.weight_name(member);
        // PyTorch's exporter names constants that it folded or transposed `onnx::MatMul_1872`.
        if !name.starts_with("onnx::") {
            return name;
        }
        self.graph.nodes[self.coupling.uses[member.weight].node].name.clone()
    }

    /// Returns the name of a member's constant.
    pub fn weight_name(&self, member: &Member) -> String {
        let weight = &self.coupling.uses[member.weight];
        self.graph.values[weight.value].name.clone()
    }

    /// Returns whether a pattern matches a weight of the group, a constant that it is computed from, or a node that
    /// takes it as input.
    pub fn matches(&self, members: &[Member], pattern: &Regex) -> bool {
        members.iter().any(|member| {
            let weight = &self.coupling.uses[member.weight];
            let name = |value: ValueId| &self.graph.values[value].name;
            pattern.is_match(name(weight.value))
                || self.fold.sources(weight.value).any(|source| pattern.is_match(name(source)))
                || pattern.is_match(&self.graph.nodes[weight.node].name)
        })
    }
}
