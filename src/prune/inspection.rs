//! Describes a network: inputs, operators, costs, and the channels that could be pruned.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Analysis;
use crate::analysis;
use crate::couple::group::{ChannelGroup, Grouping, Member};
use crate::couple::options::{AttentionOption, NormGroups};
use crate::error::Error;
use crate::graph::fact::Fact;
use crate::graph::sizes::Sizes;
use crate::macs::Cost;

/// The description of a network, and the channels that could be pruned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The opset version of the standard operators.
    pub opset: i64,
    /// The inputs: name, and type with shape.
    pub inputs: Vec<(String, String)>,
    /// The outputs: name, and type with shape.
    pub outputs: Vec<(String, String)>,
    /// The sizes of symbolic dimensions at which costs were counted.
    pub sizes: Sizes,
    /// The cost of the network.
    pub cost: Cost,
    /// The nodes in the order of the graph.
    pub nodes: Vec<NodeInfo>,
    /// The channel groups, by the passes in which they are pruned.
    pub groupings: Vec<Vec<GroupInfo>>,
    /// The nodes that keep all channels they touch, and why.
    pub barriers: Vec<BarrierInfo>,
}

/// A node of a network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// Its multiply-accumulate operations with weights.
    pub macs: f64,
}

/// A channel group.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The name to show.
    pub name: String,
    /// The number of channels.
    pub channels: usize,
    /// The same number of channels is removed from every block of this many. `None`: no norm requires it.
    pub equal_blocks: Option<usize>,
    /// The weights that have its channels along an axis.
    pub members: Vec<MemberInfo>,
    /// Why it can't shrink, and the responsible node. `None`: it can.
    pub kept: Option<(String, String)>,
    /// The nodes with its channels in an input or output, as indices of [`Inspection::nodes`].
    pub nodes: Vec<usize>,
}

/// A weight with channels of a group along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// The name of the weight.
    pub weight: String,
    /// The axis with the channels.
    pub axis: usize,
    /// `producer`, `consumer` or `parameter`.
    pub role: String,
    /// The node that takes the weight as input, as an index of [`Inspection::nodes`].
    pub node: usize,
}

/// A node that keeps all channels it touches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarrierInfo {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why it keeps the channels.
    pub cause: String,
}

impl Analysis {
    /// Describes the network and the channels that could be pruned. `sizes` are sizes of symbolic dimensions.
    ///
    /// # Errors
    /// Fails if a size is for a dimension that the model does not have.
    pub fn inspect(
        &self,
        attention: AttentionOption,
        norm_groups: NormGroups,
        sizes: &Sizes,
    ) -> Result<Inspection, Error> {
        let sizes = self.sizes(sizes)?;
        let analysis = &*self.0;
        let by_node = analysis.count(|counter| counter.macs_by_node(None, &sizes));
        let describe = |value: &usize| {
            let fact = analysis.facts.values[*value].as_ref();
            (analysis.graph.values[*value].name.clone(), fact.map_or("unknown".to_owned(), Fact::describe))
        };
        let node = |(node, macs): (&crate::graph::Node, &f64)| NodeInfo {
            name: node.name.clone(),
            op: node.op(),
            macs: *macs,
        };
        let barrier = |barrier: &crate::operator::couple::Barrier| {
            let node = &analysis.graph.nodes[barrier.node];
            BarrierInfo { node: node.name.clone(), op: node.op(), cause: barrier.cause.clone() }
        };
        let groupings = analysis.groupings(attention, norm_groups);
        Ok(Inspection {
            opset: analysis.graph.opset,
            inputs: analysis.graph.inputs.iter().map(describe).collect(),
            outputs: analysis.graph.outputs.iter().map(describe).collect(),
            cost: analysis.count(|counter| counter.cost(None, &sizes)),
            sizes,
            nodes: analysis.graph.nodes.iter().zip(&by_node).map(node).collect(),
            groupings: groupings.iter().map(|grouping| groups(analysis, grouping)).collect(),
            barriers: analysis.coupling.barriers.iter().map(barrier).collect(),
        })
    }
}

impl Analysis {
    /// Returns the coupling of every node as text, in the order of [`Inspection::nodes`]: axes as letters, as in
    /// einsum, and block sizes as digits. `None` for nodes that are computed ahead of time.
    pub fn coupling_texts(&self) -> Vec<Option<String>> {
        self.0.coupling_texts()
    }
}

fn groups(analysis: &analysis::Analysis, grouping: &Grouping) -> Vec<GroupInfo> {
    let member = |member: &Member| MemberInfo {
        weight: analysis.weight_name(member),
        axis: member.axis,
        role: format!("{:?}", member.role).to_lowercase(),
        node: analysis.coupling.uses[member.weight].node,
    };
    let group = |(group, nodes): (&ChannelGroup, BTreeSet<usize>)| GroupInfo {
        name: analysis.group_name(&group.members),
        channels: group.channels.len(),
        equal_blocks: Some(grouping.components[group.component].unit).filter(|unit| *unit < group.channels.len()),
        members: group.members.iter().map(member).collect(),
        kept: group.fixed.as_ref().map(|reason| (reason.text.clone(), reason.node.to_string())),
        nodes: nodes.into_iter().collect(),
    };
    grouping.groups.iter().zip(analysis.nodes_by_group(grouping)).map(group).collect()
}

impl Inspection {
    /// Returns the number of nodes of each operator.
    pub fn operators(&self) -> BTreeMap<String, usize> {
        let mut operators = BTreeMap::new();
        self.nodes.iter().for_each(|node| *operators.entry(node.op.clone()).or_default() += 1);
        operators
    }
}
