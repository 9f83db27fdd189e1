//! A network in blocks: what a page draws of it.
//!
//! Blocks come from the names that exporters give to nodes and weights, and where there are none from the order of the data
//! flow; levels come from the shapes of values. Nothing is known of any architecture here.

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
    /// Values that a block takes of an earlier one although others lie between: positions in `blocks`.
    pub skips: Vec<(usize, usize)>,
    /// Whether blocks have the names of the file; else they are made of the order of the layers.
    pub is_named: bool,
    /// Channel groups whose channels are the heads of an attention: positions in [`Plan::groups`].
    pub head_groups: Vec<usize>,
    /// Multiply-accumulate operations that belong to no block, before and after.
    pub other_macs: (f64, f64),
    /// The block of a node, by its name.
    #[serde(skip)]
    pub(super) by_node: HashMap<String, usize>,
}

/// A level: a number of positions that values have.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutlineLevel {
    /// The sizes, `16×16` or `64`; empty where values have channels alone.
    pub size: String,
    /// The number of positions.
    pub positions: f64,
}

/// A number before and after a cut.
pub type Change = (usize, usize);

/// A block: a few layers that the file names together.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutlineBlock {
    /// The name, as far as it differs from the others'.
    pub name: String,
    /// Position in [`Outline::levels`].
    pub level: usize,
    /// Channels that leave it.
    pub channels: Change,
    /// Channels of its widest layer.
    pub widest: Change,
    /// The heads of its attention: their number, and the dimensions of each.
    pub heads: Option<(Change, Change)>,
    /// Layers with weights.
    pub layers: usize,
    /// Multiply-accumulate operations, those between activations among them, before and after.
    pub macs: (f64, f64),
    /// Positions of its channel groups in [`Plan::groups`].
    pub groups: Vec<usize>,
}

impl Cut {
    /// The network in blocks, before and after the cut.
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
