//! Channel groups: the united indices, sorted into sets that selection ranks together.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::unionfind::UnionFind;

use super::resolve::{DroppedNorms, HeadDigit, resolve};
use crate::operator::couple::layout::SpaceId;
use crate::operator::couple::space::{EqualBlocks, Reason, Spaces};
use crate::operator::couple::{Coupling, WeightUse};

/// How a constant relates to the channels of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A contraction computes the channels with it (rows of a weight).
    Producer,
    /// A contraction sums over the channels with it (columns of a weight).
    Consumer,
    /// It is applied per channel: biases, norm scales and offsets.
    Parameter,
}

/// An axis of a constant that belongs to a channel group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Index into [`Coupling::uses`].
    pub weight: usize,
    /// The axis.
    pub axis: usize,
    /// The role of the constant.
    pub role: Role,
    /// For every channel of the group, in the group's order, its indices along the axis.
    pub indices: Vec<Vec<u32>>,
}

/// Channels that are ranked together: all have indices in the same axes.
#[derive(Clone, Debug)]
pub struct ChannelGroup {
    /// The representative of every channel, sorted by first index.
    pub channels: Vec<u32>,
    /// The axes of constants to which the channels belong.
    pub members: Vec<Member>,
    /// The cell of every channel. Channels of one cell are in the same blocks of every norm.
    pub cells: Vec<usize>,
    /// The component of the group. Groups of one component lose the same share, because norms span them.
    pub component: usize,
    /// Why the group can't shrink. `None`: it can.
    pub fixed: Option<Reason>,
}

/// Groups whose channels share norms.
#[derive(Clone, Debug, Default)]
pub struct Component {
    /// Indices of the groups.
    pub groups: Vec<usize>,
    /// Every cell holds a multiple of this many channels, and the same number is removed from every unit. It is the
    /// number of channels of the group if no norm demands anything.
    pub unit: usize,
    /// Blocks from which the same number of channels is removed, with the sizes that kernels support.
    pub preferred: Vec<PreferredBlock>,
}

/// The channels of a norm group, of which a kernel requires a multiple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreferredBlock {
    /// Number of channels in the block.
    pub size: usize,
    /// Number of channels removed from the block for each channel that is removed from every unit.
    pub per_step: usize,
    /// The number of kept channels should be a multiple of this. One: every number is equally good.
    pub multiple: usize,
}

/// All channel groups of a graph under one choice of options.
#[derive(Clone, Debug)]
pub struct Grouping {
    /// Groups with at least one weight, in the order of their first use.
    pub groups: Vec<ChannelGroup>,
    /// Groups tied by norms.
    pub components: Vec<Component>,
    /// The resolved spaces.
    pub spaces: Spaces,
    /// The class of every element of the spaces.
    pub classes: Vec<u32>,
    /// Norms that lose whole groups because the same number of channels could not be removed from every group.
    pub dropped: Vec<String>,
}

/// Collects the channel groups of a coupled graph.
///
/// Norms keep their number of groups unless `drop_norm_groups`. If the same number of channels can't be removed from
/// every norm group, whole groups are removed instead.
pub fn group(coupling: &Coupling, attention: HeadDigit, drop_norm_groups: bool) -> Grouping {
    let mut dropped = DroppedNorms::new();
    let mut names = Vec::new();
    loop {
        let mut spaces = coupling.spaces.clone();
        resolve(&mut spaces, attention, drop_norm_groups, &dropped);
        let mut grouping = read(coupling, spaces);
        let unmet = assign_components(&mut grouping);
        let before = dropped.len();
        for EqualBlocks { space, block, node } in unmet {
            let is_norm = coupling.spaces.divisions().any(|division| {
                division.space == space && division.is_ragged() && division.sizes.get(1) == Some(&block)
            });
            let is_border = || coupling.spaces.borders().any(|(of, size, _)| of == space && size == block);
            let may_drop = is_norm || is_border();
            let is_new = may_drop && dropped.insert((space, block));
            if is_new && is_norm {
                names.push(node);
            }
        }
        if dropped.len() == before {
            grouping.dropped = names;
            return grouping;
        }
    }
}

/// The indices of a class: pairs of space and index, in ascending order.
type Places = Vec<(SpaceId, u32)>;

fn read(coupling: &Coupling, spaces: Spaces) -> Grouping {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let mut places: Vec<Places> = vec![Vec::new(); classes.len()];
    for (id, space) in spaces.all().iter().enumerate() {
        for at in 0..space.len {
            places[classes[space.start + at] as usize].push((id, u32::try_from(at).unwrap_or(u32::MAX)));
        }
    }
    let mut by_space: BTreeMap<SpaceId, Vec<(usize, usize)>> = BTreeMap::new();
    for (weight, WeightUse { axes, .. }) in coupling.uses.iter().enumerate() {
        for (axis, space) in axes.iter().enumerate() {
            if let Some(space) = space {
                by_space.entry(*space).or_default().push((weight, axis));
            }
        }
    }
    // Channels are ranked together if they have the same number of indices in the same spaces, and the same reason to
    // be kept.
    let mut by_signature: BTreeMap<(Vec<SpaceId>, Option<&Reason>), Vec<u32>> = BTreeMap::new();
    for (class, places) in places.iter().enumerate() {
        let is_weight = |(space, _): &(SpaceId, u32)| {
            let space = &spaces.all()[*space];
            space.produced || space.consumed
        };
        if places.iter().any(is_weight) {
            let signature = places.iter().map(|(space, _)| *space).collect();
            let class = u32::try_from(class).unwrap_or(u32::MAX);
            // Copies of one value that only consumers use. Removing one of them would change the consumer's sum.
            let is_source = |(space, _): &(SpaceId, u32)| {
                let is_consumer = spaces.all()[*space].consumed && !spaces.all()[*space].produced;
                by_space.contains_key(space) && !is_consumer
            };
            let copies = places.iter().find_map(|(space, _)| spaces.repeated(*space));
            let reason = frozen[class as usize].or(copies.filter(|_| !places.iter().any(is_source)));
            by_signature.entry((signature, reason)).or_default().push(class);
        }
    }
    let mut groups = Vec::new();
    for ((mut signature, reason), mut channels) in by_signature {
        signature.dedup();
        channels.sort_by_key(|class| places[*class as usize].first().copied());
        // For every space, the indices of every channel. Both places and the signature are sorted by space.
        let mut indices: Vec<Vec<Vec<u32>>> = vec![Vec::with_capacity(channels.len()); signature.len()];
        for class in &channels {
            let mut rest = places[*class as usize].as_slice();
            for (space, indices) in signature.iter().zip(&mut indices) {
                let count = rest.iter().take_while(|(at, _)| at == space).count();
                let (here, others) = rest.split_at(count);
                indices.push(here.iter().map(|(_, index)| *index).collect());
                rest = others;
            }
        }
        let mut members = Vec::new();
        for (space, indices) in signature.iter().zip(indices) {
            let role = match &spaces.all()[*space] {
                space if space.produced => Role::Producer,
                space if space.consumed => Role::Consumer,
                _ => Role::Parameter,
            };
            for (weight, axis) in by_space.get(space).into_iter().flatten() {
                members.push(Member { weight: *weight, axis: *axis, role, indices: indices.clone() });
            }
        }
        let cells = vec![0; channels.len()];
        let fixed = reason.cloned();
        groups.push(ChannelGroup { channels, members, cells, component: 0, fixed });
    }
    groups.retain(|group| !group.members.is_empty());
    groups.sort_by_key(|group| {
        let first = group.members.iter().map(|member| coupling.uses[member.weight].node).min();
        (first, group.channels.first().copied())
    });
    Grouping { groups, components: Vec::new(), spaces, classes, dropped: Vec::new() }
}

/// Sorts channels into cells and groups into components. Returns the demands for equal blocks that no removal can meet.
/// Their groups are fixed.
fn assign_components(grouping: &mut Grouping) -> Vec<EqualBlocks> {
    let demanded = Demanded::of(grouping);
    for (group, blocks) in grouping.groups.iter_mut().zip(&demanded.blocks) {
        let mut cells: BTreeMap<&Vec<(usize, usize)>, usize> = BTreeMap::new();
        for (cell, signature) in group.cells.iter_mut().zip(blocks) {
            let next = cells.len();
            *cell = *cells.entry(signature).or_insert(next);
        }
    }
    grouping.components = components(&mut grouping.groups, &demanded.groups);
    fix_unmet(grouping, demanded)
}

/// The channels to which the demands for equal blocks apply.
struct Demanded {
    demands: Vec<EqualBlocks>,
    /// For every group and channel: the demands that apply, each with the block of the channel.
    blocks: Vec<Vec<Vec<(usize, usize)>>>,
    /// For every demand: the groups with a channel in one of its blocks.
    groups: Vec<BTreeSet<usize>>,
}

impl Demanded {
    fn of(grouping: &Grouping) -> Self {
        let spaces = &grouping.spaces;
        let mut channel_of: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for (g, group) in grouping.groups.iter().enumerate().filter(|(_, group)| group.fixed.is_none()) {
            channel_of.extend(group.channels.iter().enumerate().map(|(c, class)| (*class, (g, c))));
        }
        let demands: Vec<EqualBlocks> = spaces.equal_blocks().cloned().collect();
        let mut blocks: Vec<Vec<_>> =
            grouping.groups.iter().map(|group| vec![Vec::new(); group.channels.len()]).collect();
        let mut groups = vec![BTreeSet::new(); demands.len()];
        for (d, demand) in demands.iter().enumerate() {
            let space = &spaces.all()[demand.space];
            for at in 0..space.len {
                if let Some((g, c)) = channel_of.get(&grouping.classes[space.start + at]) {
                    blocks[*g][*c].push((d, at / demand.block));
                    groups[d].insert(*g);
                }
            }
        }
        Self { demands, blocks, groups }
    }
}

/// Returns the components of groups that demands tie together. Sets the component of every group.
fn components(groups: &mut [ChannelGroup], tied: &[BTreeSet<usize>]) -> Vec<Component> {
    let mut united: UnionFind<usize> = UnionFind::new(groups.len());
    for tied in tied {
        if let Some(first) = tied.first() {
            tied.iter().for_each(|other| {
                united.union(*first, *other);
            });
        }
    }
    let mut components: BTreeMap<usize, Component> = BTreeMap::new();
    for g in 0..groups.len() {
        components.entry(united.find_mut(g)).or_default().groups.push(g);
    }
    let mut components: Vec<Component> = components.into_values().collect();
    for (number, component) in components.iter_mut().enumerate() {
        for g in &component.groups {
            groups[*g].component = number;
            for size in cell_sizes(&groups[*g].cells) {
                component.unit = gcd(component.unit, size);
            }
        }
    }
    components
}

/// Fixes every group of the components whose demands no removal can meet. Returns these demands.
fn fix_unmet(grouping: &mut Grouping, demanded: Demanded) -> Vec<EqualBlocks> {
    let mut unmet = Vec::new();
    for (d, (demand, touched)) in demanded.demands.into_iter().zip(&demanded.groups).enumerate() {
        let Some(first) = touched.first() else {
            continue;
        };
        let component = &grouping.components[grouping.groups[*first].component];
        let len = grouping.spaces.all()[demand.space].len;
        let mut free = vec![0usize; len.div_ceil(demand.block)];
        for g in touched {
            for blocks in &demanded.blocks[*g] {
                blocks.iter().filter(|(of, _)| *of == d).for_each(|(_, block)| free[*block] += 1);
            }
        }
        let is_even = free.iter().all(|count| *count == free[0]);
        if is_even && component.unit > 1 {
            let multiple = grouping.spaces.liked_multiple(demand.space, demand.block);
            let (size, per_step) = (demand.block, free[0] / component.unit);
            let number = grouping.groups[*first].component;
            grouping.components[number].preferred.push(PreferredBlock { size, per_step, multiple });
            continue;
        }
        let text = if is_even {
            format!("the same number of channels can't be removed from every block of {}", demand.block)
        } else {
            format!("some blocks of {} channels contain channels that must be kept", demand.block)
        };
        let reason = Reason { text, node: demand.node.clone() };
        for g in &component.groups {
            grouping.groups[*g].fixed.get_or_insert_with(|| reason.clone());
        }
        unmet.push(demand);
    }
    unmet
}

fn cell_sizes(cells: &[usize]) -> Vec<usize> {
    let mut sizes = vec![0; cells.iter().max().map_or(0, |last| last + 1)];
    cells.iter().for_each(|cell| sizes[*cell] += 1);
    sizes
}

/// Returns the greatest common divisor. That of zero and a number is the number.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
