//! The data flow through blocks: the nodes of each block, the order of blocks, and skip connections.

use std::collections::{BTreeMap, BTreeSet};

use super::OutlineLevel;
use super::measure::{Layer, Measure};
use super::names::Blocks;
use crate::analysis::Analysis;
use crate::graph::fact::Fact;
use crate::graph::{NodeId, ValueId};

/// Maximum number of layers in a block if there are no names.
const RUN: usize = 6;

/// Blocks in the order of the data flow.
pub(super) struct Flow {
    pub(super) names: Vec<String>,
    /// The block of every node.
    pub(super) of_node: Vec<Option<usize>>,
    pub(super) levels: Vec<OutlineLevel>,
    /// The level of every block.
    pub(super) block_levels: Vec<usize>,
    pub(super) skips: Vec<(usize, usize)>,
}

/// Forms blocks of consecutive layers at one level. Layers of a level that no other level affects, such as that of text
/// tokens, join the block they are next to.
pub(super) fn runs(analysis: &Analysis, layers: &[Layer]) -> Blocks {
    let main = main_levels(analysis, layers);
    let mut of_node = vec![None; analysis.graph.nodes.len()];
    let mut runs: Vec<(u64, usize, usize)> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let level = layer.positions as u64;
        match runs.last_mut() {
            Some((_, _, last)) if !main.contains(&level) => *last = at,
            Some((known, first, last)) if *known == level && at - *first < RUN => *last = at,
            _ => runs.push((level, at, at)),
        }
        of_node[layer.node] = Some(runs.len() - 1);
    }
    let name = |(_, first, last): &(u64, usize, usize)| match first == last {
        true => format!("layer {}", first + 1),
        false => format!("layers {} to {}", first + 1, last + 1),
    };
    Blocks { names: runs.iter().map(name).collect(), of_node }
}

/// Returns the levels with a layer that depends on a layer of another level; all levels if there are none.
fn main_levels(analysis: &Analysis, layers: &[Layer]) -> BTreeSet<u64> {
    let all: BTreeSet<u64> = layers.iter().map(|layer| layer.positions as u64).collect();
    let of_layers: BTreeMap<NodeId, u64> = layers.iter().map(|layer| (layer.node, layer.positions as u64)).collect();
    // For every node, the levels of the layers before it, as bits. Levels beyond the number of bits share the last one.
    let bit = |level: u64| 1u64 << all.range(..level).count().min(63);
    let mut before = vec![0u64; analysis.graph.nodes.len()];
    let mut main = BTreeSet::new();
    for node in &analysis.graph.nodes {
        let producers = node.inputs.iter().flatten().filter_map(|value| analysis.graph.values[*value].producer);
        before[node.id] = producers.fold(0, |bits, (producer, _)| bits | before[producer]);
        if let Some(level) = of_layers.get(&node.id) {
            main.extend(Some(*level).filter(|level| before[node.id] & !bit(*level) != 0));
            before[node.id] |= bit(*level);
        }
    }
    if main.is_empty() { all } else { main }
}

impl Flow {
    /// Builds the flow; `macs` are the operations of every node before the cut.
    pub(super) fn new(
        analysis: &Analysis,
        measure: &Measure<'_>,
        blocks: &Blocks,
        layers: &[Layer],
        macs: &[f64],
    ) -> Self {
        let mut flow = Self {
            names: Vec::new(),
            of_node: Vec::new(),
            levels: Vec::new(),
            block_levels: Vec::new(),
            skips: Vec::new(),
        };
        flow.order(blocks, layers);
        flow.spread(analysis);
        flow.settle_levels(&main_levels(analysis, layers), layers, macs);
        flow.find_skips(analysis, measure, layers);
        flow
    }

    /// Orders the blocks by the middle one of their layers. Named blocks without layers are dropped.
    fn order(&mut self, blocks: &Blocks, layers: &[Layer]) {
        let mut nodes: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
        for layer in layers {
            blocks.of_node[layer.node].into_iter().for_each(|block| nodes.entry(block).or_default().push(layer.node));
        }
        let mut order: Vec<(NodeId, usize)> =
            nodes.into_iter().map(|(block, nodes)| (nodes[nodes.len() / 2], block)).collect();
        order.sort_unstable();
        let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, (_, block))| (*block, at)).collect();
        self.names = order.iter().map(|(_, block)| blocks.names[*block].clone()).collect();
        self.of_node = blocks.of_node.iter().map(|block| place.get(&(*block)?).copied()).collect();
    }

    fn block_of(&self, analysis: &Analysis, value: ValueId) -> Option<usize> {
        self.of_node[analysis.graph.values[value].producer?.0]
    }

    /// Assigns nodes without a block to the block whose data they process. A node that combines a block's output with a
    /// value that the block does not take as input, such as a skip connection, belongs to the block that takes the
    /// result as input.
    fn spread(&mut self, analysis: &Analysis) {
        let graph = &analysis.graph;
        let mut joins: BTreeMap<NodeId, usize> = BTreeMap::new();
        for node in graph.nodes.iter() {
            if self.of_node[node.id].is_some() {
                continue;
            }
            let join = |value: ValueId| joins.get(&graph.values[value].producer?.0).copied();
            let given: Vec<(ValueId, usize, bool)> = node
                .inputs
                .iter()
                .flatten()
                .filter_map(|value| match join(*value) {
                    Some(block) => Some((*value, block, true)),
                    None => Some((*value, self.block_of(analysis, *value)?, false)),
                })
                .collect();
            let Some(latest) = given.iter().map(|(_, block, _)| *block).max() else { continue };
            let own = given.iter().find(|(_, block, joins)| *block == latest && !joins);
            let is_own = own.is_some_and(|(own, ..)| {
                given.iter().all(|(value, block, joins)| {
                    *block == latest && !joins || self.leads(analysis, *value, *own, (*block, latest))
                })
            });
            match is_own {
                true => self.of_node[node.id] = Some(latest),
                false => _ = joins.insert(node.id, latest),
            }
        }
        for (node, latest) in joins.into_iter().rev() {
            let values = graph.nodes[node].outputs.iter().flatten();
            let readers = values.flat_map(|value| &graph.values[*value].consumers);
            let first = readers.filter_map(|(reader, _)| self.of_node[*reader]).min();
            self.of_node[node] = Some(first.unwrap_or(latest));
        }
    }

    /// Returns whether one value is computed from another by nodes of two blocks only. Then the second value is an
    /// input of the block, and adding it is part of the block.
    fn leads(&self, analysis: &Analysis, from: ValueId, to: ValueId, (first, second): (usize, usize)) -> bool {
        let Some((end, _)) = analysis.graph.values[to].producer else { return false };
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(value) = open.pop() {
            for (node, _) in &analysis.graph.values[value].consumers {
                let is_inside = self.of_node[*node].is_some_and(|block| block == first || block == second);
                if *node == end {
                    return true;
                }
                if is_inside && *node < end && seen.insert(*node) {
                    open.extend(analysis.graph.nodes[*node].outputs.iter().flatten());
                }
            }
        }
        false
    }

    /// Decides the level of every block: the one with most of its operations, preferably a level of the main data flow.
    fn settle_levels(&mut self, main: &BTreeSet<u64>, layers: &[Layer], macs: &[f64]) {
        let mut of_blocks: Vec<BTreeMap<u64, f64>> = vec![BTreeMap::new(); self.names.len()];
        for layer in layers {
            if let Some(block) = self.of_node[layer.node] {
                *of_blocks[block].entry(layer.positions as u64).or_default() += macs[layer.node];
            }
        }
        let most = |levels: &BTreeMap<u64, f64>| {
            let by_macs = |is_it: &dyn Fn(&u64) -> bool| {
                levels
                    .iter()
                    .filter(|(level, _)| is_it(level))
                    .max_by(|a, b| a.1.total_cmp(b.1))
                    .map(|(level, _)| *level)
            };
            by_macs(&|level| main.contains(level)).or(by_macs(&|_| true)).unwrap_or(1)
        };
        let chosen: Vec<u64> = of_blocks.iter().map(most).collect();
        let all: Vec<u64> = chosen.iter().copied().collect::<BTreeSet<_>>().into_iter().rev().collect();
        for positions in &all {
            let of_level = layers.iter().filter(|layer| layer.positions as u64 == *positions);
            // Some layers treat an image as a list of positions.
            let sizes = of_level.map(|layer| &layer.sizes).max_by_key(|sizes| sizes.len());
            let size =
                sizes.map_or_else(String::new, |sizes| sizes.iter().map(i64::to_string).collect::<Vec<_>>().join("×"));
            // The level with the fewest positions has one vector per sample.
            let is_vector = Some(positions) == all.last();
            let size = if size.is_empty() && !is_vector { positions.to_string() } else { size };
            self.levels.push(OutlineLevel { size, positions: *positions as f64 });
        }
        self.block_levels =
            chosen.iter().map(|positions| all.iter().position(|level| level == positions).unwrap_or(0)).collect();
    }

    /// Finds values that a later block of the same level takes as input, if there is also a longer path between the two
    /// blocks. Values from another level are conditioning, such as text tokens.
    fn find_skips(&mut self, analysis: &Analysis, measure: &Measure<'_>, layers: &[Layer]) {
        let sources = self.sources(analysis, layers);
        let mut edges: BTreeSet<(usize, usize)> = BTreeSet::new();
        let vector = self.levels.last().map_or(1.0, |level| level.positions);
        for (value, of) in analysis.graph.values.iter().enumerate() {
            let Some(from) = of.producer.and_then(|(node, _)| sources[node]) else { continue };
            if !analysis.facts.values[value].as_ref().is_some_and(Fact::is_float) {
                continue;
            }
            let readers: BTreeSet<usize> =
                of.consumers.iter().filter_map(|(node, _)| self.of_node[*node]).filter(|to| *to > from).collect();
            if readers.is_empty() {
                continue;
            }
            let positions = measure.positions(value);
            // One vector per sample, such as the time embedding, is not a skip connection.
            if positions.is_some_and(|positions| positions > vector) {
                edges.extend(readers.into_iter().map(|to| (from, to)));
            }
        }
        let mut ways: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.names.len()];
        for (from, to) in edges.iter().rev() {
            ways[*from].insert(*to);
            let further: Vec<usize> = ways[*to].iter().copied().collect();
            ways[*from].extend(further);
        }
        let is_passed = |(from, to): &(usize, usize)| {
            edges.iter().any(|(start, next)| start == from && next < to && ways[*next].contains(to))
        };
        let is_level = |edge: &&(usize, usize)| self.block_levels[edge.0] == self.block_levels[edge.1];
        self.skips = edges.iter().filter(is_level).filter(|edge| is_passed(edge)).copied().collect();
    }

    /// Returns, for every node, the block of the last layer that its outputs went through. Before the first layer of a
    /// block, a value still belongs to the previous block.
    fn sources(&self, analysis: &Analysis, layers: &[Layer]) -> Vec<Option<usize>> {
        let layers: BTreeSet<NodeId> = layers.iter().map(|layer| layer.node).collect();
        let mut sources: Vec<Option<usize>> = vec![None; analysis.graph.nodes.len()];
        for node in &analysis.graph.nodes {
            let producers = node.inputs.iter().flatten().filter_map(|value| analysis.graph.values[*value].producer);
            let given = producers.filter_map(|(producer, _)| sources[producer]).max();
            sources[node.id] = if layers.contains(&node.id) { self.of_node[node.id] } else { given };
        }
        sources
    }
}
