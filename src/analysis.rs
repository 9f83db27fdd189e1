//! What is known of a model before anything is scored: its graph, operators, shapes and coupling.

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
    /// What is known of its values.
    pub facts: Facts,
    /// What is computed ahead of time.
    pub fold: Fold,
    /// Its coupling, not yet resolved.
    pub coupling: Coupling,
    /// Constants that are no parameters ([`zero_tables`]).
    pub zero_tables: BTreeSet<ValueId>,
}

/// Builds the graph of a model, infers shapes and couples channels.
///
/// # Errors
/// The model contradicts itself.
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
    /// The tensor of a constant: an initializer, the output of a Constant node, or a weight that has been computed ahead
    /// of time.
    pub fn constant(&self, value: ValueId) -> Option<&TensorProto> {
        self.fold.constant(&self.model, &self.graph, value)
    }

    /// Whether a value counts as a constant.
    pub fn is_constant(&self, value: ValueId) -> bool {
        self.fold.is_constant(&self.model, &self.graph, value)
    }

    /// What is known of all values where the symbolic sizes of the inputs are replaced.
    ///
    /// # Errors
    /// A node contradicts its operator's specification at these sizes.
    pub fn facts_at(&self, sizes: &Sizes) -> Result<Facts, Error> {
        Facts::at_sizes(&self.model, &self.graph, &self.operators, sizes)
    }

    /// The groupings that an attention option asks for, in the order in which they are pruned.
    pub fn groupings(&self, attention: AttentionOption, norm_groups: NormGroups) -> Vec<Grouping> {
        let passes: &[HeadDigit] = match attention {
            AttentionOption::Heads => &[HeadDigit::Heads],
            AttentionOption::Dims => &[HeadDigit::Dims],
            AttentionOption::Both => &[HeadDigit::Heads, HeadDigit::Dims],
            AttentionOption::None => &[HeadDigit::None],
        };
        passes.iter().map(|attention| group(&self.coupling, *attention, norm_groups == NormGroups::Drop)).collect()
    }

    /// The floating point constants that some channel group which may shrink goes through, without the tables of
    /// frequencies.
    pub fn prunable_weights(&self) -> Vec<ValueId> {
        let groupings = self.groupings(AttentionOption::Both, NormGroups::Keep);
        let groups = groupings.iter().flat_map(|grouping| &grouping.groups).filter(|group| group.fixed.is_none());
        let values = groups.flat_map(|group| &group.members).map(|member| self.coupling.uses[member.weight].value);
        let tables = frequencies(&self.graph, &self.operators, &self.coupling);
        let is_float = |value: &ValueId| self.facts.values[*value].as_ref().is_some_and(Fact::is_float);
        values.filter(is_float).filter(|value| !tables.contains(value)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The coupling of every node as text, see [`crate::couple::text`]; `None` for nodes that are computed ahead of time.
    pub fn coupling_texts(&self) -> Vec<Option<String>> {
        self.texts_of(&self.coupling)
    }

    /// The same where every axis of every input of the network may shrink, so that the texts show what the rules say of
    /// all axes.
    pub fn free_coupling_texts(&self) -> Vec<Option<String>> {
        let is_constant = |value: ValueId| self.is_constant(value);
        self.texts_of(&couple_freely(&self.graph, &self.operators, &self.facts, &self.fold, &is_constant))
    }

    fn texts_of(&self, coupling: &Coupling) -> Vec<Option<String>> {
        let is_constant = |value: ValueId| self.is_constant(value);
        let (graph, operators, facts, fold) = (&self.graph, &self.operators, &self.facts, &self.fold);
        Texts { graph, operators, facts, fold, is_constant: &is_constant, coupling }.all()
    }

    /// For every group of a grouping of this network, the nodes of which an input or output has its channels.
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

    /// The name by which a group is shown: the weight that produces it, else its first; the node that reads it where
    /// the exporter only numbered the weight.
    pub fn group_name(&self, members: &[Member]) -> String {
        let producer = members.iter().find(|member| member.role == Role::Producer).or(members.first());
        let Some(member) = producer else { return String::new() };
        let name = self.weight_name(member);
        // PyTorch's exporter calls what it folded or transposed `onnx::MatMul_1872`.
        if !name.starts_with("onnx::") {
            return name;
        }
        self.graph.nodes[self.coupling.uses[member.weight].node].name.clone()
    }

    /// The name of a member's constant.
    pub fn weight_name(&self, member: &Member) -> String {
        let weight = &self.coupling.uses[member.weight];
        self.graph.values[weight.value].name.clone()
    }

    /// Whether a pattern matches a weight of the group or a node that reads one.
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
