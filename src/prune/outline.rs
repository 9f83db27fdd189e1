//! Divides a network into blocks for the page of a report.
//!
//! Blocks follow the names that exporters give to nodes and weights. Without such names, they follow the order of the
//! data flow. Levels follow from the shapes of values. Nothing here depends on a particular architecture.

mod flow;

mod measure;

mod names;

mod times;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::cut::Cut;
use crate::analysis::Analysis;
use crate::graph::NodeId;
use crate::graph::sizes::Sizes;
use crate::operator::couple::kept::Kept;
use crate::plan::Plan;
use flow::Flow;
use measure::{Layer, Measure};
pub use times::BlockTimes;

/// A network in blocks, in the order of the data flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Outline {
    /// The blocks.
    pub blocks: Vec<OutlineBlock>,
    /// The levels, the largest first.
    pub levels: Vec<OutlineLevel>,
    /// Skip connections: pairs of positions in `blocks`, where the second block takes a value of the first as input
    /// although others lie in between.
    pub skips: Vec<(usize, usize)>,
    /// Whether blocks are named after modules of the file. If not, they are runs of consecutive layers.
    pub is_named: bool,
    /// Channel groups whose channels are attention heads: positions in [`Plan::groups`].
    pub head_groups: Vec<usize>,
    /// Multiply-accumulate operations that belong to no block, before and after.
    pub other_macs: (f64, f64),
    /// The block of every node, by its name.
    #[serde(skip)]
    pub(super) by_node: HashMap<String, usize>,
}

/// A level: all blocks whose values have this number of positions.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutlineLevel {
    /// The sizes, such as `16×16` or `64`. Empty if values only have channels.
    pub size: String,
    /// The number of positions.
    pub positions: f64,
}

/// A number before and after a cut.
pub type Change = (usize, usize);

/// A block: a few layers that the file groups by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutlineBlock {
    /// The part of the name that differs from other blocks.
    pub name: String,
    /// Position in [`Outline::levels`].
    pub level: usize,
    /// Number of output channels.
    pub channels: Change,
    /// Number of channels of its widest layer.
    pub widest: Change,
    /// The number of attention heads, and of dimensions per head. `None`: there is no attention.
    pub heads: Option<(Change, Change)>,
    /// Number of layers with weights.
    pub layers: usize,
    /// Multiply-accumulate operations before and after the cut, including those between activations.
    pub macs: (f64, f64),
    /// Positions of its channel groups in [`Plan::groups`].
    pub groups: Vec<usize>,
}

impl Cut {
    /// Returns the network in blocks, before and after the cut.
    pub fn outline(&self) -> Outline {
        outline(&self.analysis().0, self.kept(), self.sizes(), self.plan())
    }
}

fn outline(analysis: &Analysis, kept: &Kept, sizes: &Sizes, plan: &Plan) -> Outline {
    let macs = [None, Some(kept)].map(|kept| analysis.count(|counter| counter.macs_by_node(kept, sizes)));
    let measure = Measure { analysis, kept, sizes };
    let works = |node: &NodeId| macs[0].get(*node).is_some_and(|macs| *macs > 0.0);
    let layers: Vec<Layer> = (0..analysis.graph.nodes.len()).filter(works).filter_map(|at| measure.layer(at)).collect();
    let named = names::blocks(analysis, &layers);
    let is_named = named.is_some();
    let blocks = named.unwrap_or_else(|| flow::runs(analysis, &layers));
    let flow = Flow::new(analysis, &measure, &blocks, &layers, &macs[0]);
    let mut outline = Outline { is_named, skips: flow.skips, levels: flow.levels, ..Outline::default() };
    let mut members: BTreeMap<usize, Vec<&Layer>> = BTreeMap::new();
    for layer in &layers {
        flow.of_node[layer.node].into_iter().for_each(|block| members.entry(block).or_default().push(layer));
    }
    for (at, name) in flow.names.into_iter().enumerate() {
        let level = flow.block_levels[at];
        let positions = outline.levels.get(level).map_or(1.0, |level| level.positions);
        let all = members.get(&at).map_or(&[][..], Vec::as_slice);
        let own: Vec<&&Layer> = all.iter().filter(|layer| layer.positions == positions).collect();
        let channels = own.last().map_or((0, 0), |layer| layer.channels);
        let widest = own.iter().map(|layer| layer.channels).max_by_key(|(before, _)| *before).unwrap_or(channels);
        outline.blocks.push(OutlineBlock {
            name,
            level,
            channels,
            widest,
            heads: None,
            layers: all.len(),
            macs: (0.0, 0.0),
            groups: Vec::new(),
        });
    }
    for node in &analysis.graph.nodes {
        let (before, after) = (macs[0][node.id], macs[1][node.id]);
        let Some(at) = flow.of_node[node.id] else {
            outline.other_macs = (outline.other_macs.0 + before, outline.other_macs.1 + after);
            continue;
        };
        let block = &mut outline.blocks[at];
        block.macs = (block.macs.0 + before, block.macs.1 + after);
        if before > 0.0
            && let Some(heads) = measure.heads(node.id)
            && block.heads.is_none_or(|known| known.0.0 < heads.0.0)
        {
            block.heads = Some(heads);
        }
        outline.by_node.insert(node.name.clone(), at);
    }
    for (at, group) in plan.groups.iter().enumerate() {
        let producer = group.members.iter().find(|member| member.role == "producer").or(group.members.first());
        let read = producer.and_then(|member| measure.reader(&member.tensor, member.axis));
        let Some((block, length)) = read.and_then(|(node, length)| Some((flow.of_node[node]?, length))) else {
            continue;
        };
        outline.blocks[block].groups.push(at);
        let is_heads = |(count, size): (Change, Change)| {
            count.0 == group.channels && count.0 > 1 && length.is_multiple_of(count.0 * size.0)
        };
        if outline.blocks[block].heads.is_some_and(is_heads) {
            outline.head_groups.push(at);
        }
    }
    outline
}
