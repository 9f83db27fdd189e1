//! Chooses how many channels to remove so that the sizes of the remaining axes suit the kernels.
//!
//! A channel may have several indices along an axis: a head has one for each of its dimensions. A kernel only sees the
//! size of the axis, so this size is rounded, not the number of channels.

use std::collections::BTreeMap;

use crate::couple::group::{ChannelGroup, Component, Grouping, Member, PreferredBlock, Role};

/// How the size of one axis of a weight depends on the number of kept channels of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    /// Number of indices of each channel along the axis.
    whole: usize,
    /// Number of these that are adjacent: all dimensions of a head, or one dimension of every head.
    run: usize,
    /// Number of indices of the axis that are always kept. If several groups lie along the axis, the first one counts
    /// them.
    stay: usize,
}

impl Share {
    fn of(indices: &[u32]) -> Self {
        let run = indices.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count() + 1;
        Self { whole: indices.len(), run: run.min(indices.len()), stay: 0 }
    }
}

/// Returns whether one axis has a suitable size with this number of channels of a group kept.
type Fits<'a> = &'a dyn Fn(usize, &Share) -> bool;

/// The sizes of the axes that the channels of a network lie along.
pub(super) struct Widths {
    multiple: usize,
    /// The kept dimensions of every head should be a multiple of this, and those of all heads together of `multiple`.
    of_head: usize,
    /// The number of kept channels in every norm group should be a multiple of this.
    of_block: usize,
    /// For every group, the axes whose sizes count.
    shares: Vec<Vec<Share>>,
}

impl Widths {
    /// Collects the axes whose sizes should be multiples of `multiple`. Groups with a ratio of zero keep all channels.
    pub(super) fn of(grouping: &Grouping, ratios: &[f64], multiple: usize) -> Self {
        if multiple <= 1 {
            return Self { multiple, of_head: multiple, of_block: 1, shares: Vec::new() };
        }
        let key = |member: &Member| (member.weight, member.axis);
        let stays = |(group, ratio): (&ChannelGroup, &f64)| {
            group.fixed.is_some() || grouping.components[group.component].unit <= 1 || *ratio <= 0.0
        };
        let stays: Vec<bool> = grouping.groups.iter().zip(ratios).map(stays).collect();
        // The kept indices of every axis, until a group has counted them.
        let mut stay: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for (group, _) in grouping.groups.iter().zip(&stays).filter(|(_, stays)| **stays) {
            for member in &group.members {
                *stay.entry(key(member)).or_default() += member.indices.iter().map(Vec::len).sum::<usize>();
            }
        }
        let shares = grouping.groups.iter().zip(&stays).map(|(group, stays)| {
            if *stays {
                return Vec::new();
            }
            let shares = counted(group, multiple).into_iter();
            let mut shares: Vec<Share> =
                shares.map(|(member, share)| Share { stay: stay.remove(&key(member)).unwrap_or(0), ..share }).collect();
            shares.sort_unstable();
            shares.dedup();
            shares
        });
        Self { multiple, of_head: multiple, of_block: 1, shares: shares.collect() }
    }

    /// Sets another multiple for the dimensions of heads, unless it is zero.
    pub(super) fn with_heads(self, multiple: usize) -> Self {
        Self { of_head: if multiple > 0 { multiple } else { self.of_head }, ..self }
    }

    /// Requests an even number of kept channels in every norm group, since some kernels process them in pairs.
    pub(super) fn evening(self, is_asked: bool) -> Self {
        Self { of_block: if is_asked { 2 } else { 1 }, ..self }
    }

    /// Returns the largest number of steps, up to `most`, after which the axes of every group of a component have sizes
    /// that are multiples. The kept dimensions of each head should be a multiple; if that is impossible, those of all
    /// heads together. If neither is possible with the indices of an axis that are always kept, only the part that the
    /// groups contribute is rounded. Sizes of norm groups that their kernels accept take precedence over all of this,
    /// if any number of steps leads to them. Returns zero if nothing fits.
    pub(super) fn rounded(&self, grouping: &Grouping, component: &Component, most: usize) -> usize {
        let shares = |group: &usize| Some((grouping.groups[*group].channels.len(), self.shares.get(*group)?));
        let groups: Vec<(usize, &Vec<Share>)> = component.groups.iter().filter_map(shares).collect();
        let largest = |fits_axis: Fits<'_>, likes: bool| {
            let fits = |steps: &usize| {
                groups.iter().all(|(channels, shares)| {
                    let kept = channels - steps * (channels / component.unit.max(1));
                    shares.iter().all(|share| fits_axis(kept, share))
                }) && (!likes || component.preferred.iter().all(|block| block.is_liked_after(*steps, self.of_block)))
            };
            (1..=most).rev().find(fits)
        };
        let whole = |kept: usize, share: &Share, stay: usize| (kept * share.whole + stay).is_multiple_of(self.multiple);
        // Adjacent heads form one axis.
        let each =
            |kept: usize, share: &Share, stay: usize| match share.run < share.whole && self.of_head < self.multiple {
                true => (kept * share.run + stay).is_multiple_of(self.of_head) && whole(kept, share, stay),
                false => (kept * share.run + stay).is_multiple_of(self.multiple),
            };
        let ways: [Fits<'_>; 4] = [
            &|kept, share| each(kept, share, share.stay),
            &|kept, share| whole(kept, share, share.stay),
            &|kept, share| each(kept, share, 0),
            &|kept, share| whole(kept, share, 0),
        ];
        let of = |likes: bool| ways.iter().find_map(|fits_axis| largest(fits_axis, likes));
        of(true).or_else(|| of(false)).unwrap_or(0)
    }
}

impl PreferredBlock {
    fn is_liked_after(&self, steps: usize, multiple: usize) -> bool {
        let left = self.size.saturating_sub(steps * self.per_step);
        left.is_multiple_of(self.multiple) && left.is_multiple_of(multiple)
    }
}

/// Returns the axes of a group whose sizes count: those of producers and consumers, or all axes if there are none. An
/// axis of fewer than twice `multiple` indices could not shrink at all. It does not constrain a group that also has a
/// wider axis, such as the gates of eight heads next to the heads themselves.
fn counted(group: &ChannelGroup, multiple: usize) -> Vec<(&Member, Share)> {
    let of = |counts: &dyn Fn(Role) -> bool| -> Vec<(&Member, Share)> {
        let members = group.members.iter().filter(|member| counts(member.role));
        members.filter_map(|member| Some((member, Share::of(member.indices.first()?)))).collect()
    };
    let mut shares = of(&|role| role != Role::Parameter);
    if shares.is_empty() {
        shares = of(&|_| true);
    }
    let is_wide = |(_, share): &(&Member, Share)| group.channels.len() * share.whole >= 2 * multiple;
    if shares.iter().any(is_wide) {
        shares.retain(is_wide);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The role of an axis, and a function that returns the indices of a channel along it.
    type Axis<'a> = (Role, &'a dyn Fn(usize) -> Vec<u32>);

    /// Builds a grouping with one group, whose channels lie along these axes.
    fn grouping(channels: usize, axes: &[Axis<'_>]) -> Grouping {
        let members = axes.iter().enumerate().map(|(weight, (role, indices))| Member {
            weight,
            axis: 0,
            role: *role,
            indices: (0..channels).map(indices).collect(),
        });
        let group = ChannelGroup {
            channels: (0..channels as u32).collect(),
            members: members.collect(),
            cells: vec![0; channels],
            component: 0,
            fixed: None,
        };
        Grouping {
            groups: vec![group],
            components: vec![Component { groups: vec![0], unit: channels, preferred: Vec::new() }],
            spaces: crate::operator::couple::space::Spaces::default(),
            classes: Vec::new(),
            dropped: Vec::new(),
        }
    }

    fn kept(grouping: &Grouping, multiple: usize, asked: usize) -> usize {
        let channels = grouping.groups[0].channels.len();
        channels
            - Widths::of(grouping, &[0.5; 2], multiple).rounded(grouping, &grouping.components[0], channels - asked)
    }

    fn run(length: usize) -> impl Fn(usize) -> Vec<u32> {
        move |channel| (0..length).map(|at| (channel * length + at) as u32).collect()
    }

    #[test]
    fn adjacent_indices_are_distinguished_from_scattered_ones() {
        assert_eq!(Share::of(&[8, 9, 10, 11]), Share { whole: 4, run: 4, stay: 0 });
        assert_eq!(Share::of(&[1, 9, 17]), Share { whole: 3, run: 1, stay: 0 });
        assert_eq!(Share::of(&[0, 1, 16, 17, 32, 33]), Share { whole: 6, run: 2, stay: 0 });
        assert_eq!(Share::of(&[]), Share { whole: 0, run: 0, stay: 0 });
    }

    #[test]
    fn heads_count_with_their_dimensions_and_narrow_axes_do_not_constrain_wider_ones() {
        let one = |channel: usize| vec![channel as u32];
        for (size, multiple, asked, expected) in [(40, 8, 3, 3), (40, 32, 3, 4), (20, 32, 4, 8), (1, 8, 4, 8)] {
            let heads = grouping(8, &[(Role::Producer, &run(size)), (Role::Consumer, &run(size))]);
            assert_eq!(kept(&heads, multiple, asked), expected, "heads of {size}, {multiple}");
        }
        let gated = grouping(8, &[(Role::Producer, &run(64)), (Role::Producer, &one), (Role::Parameter, &one)]);
        assert_eq!(kept(&gated, 8, 3), 3);
        // The producer computes both halves of a gated layer; the next layer takes only one half as input.
        let halves = |channel: usize| vec![channel as u32, channel as u32 + 64];
        let gated = grouping(64, &[(Role::Producer, &halves), (Role::Consumer, &one)]);
        assert_eq!(kept(&gated, 8, 28), 32);
    }

    #[test]
    fn head_dimensions_are_a_multiple_per_head_or_over_all_heads() {
        let dims = |channel: usize| (0..8).map(|head| (head * 40 + channel) as u32).collect::<Vec<_>>();
        let attention = grouping(40, &[(Role::Producer, &dims), (Role::Consumer, &dims)]);
        assert_eq!(kept(&attention, 8, 20), 24);
        // Multiples of 8 per head, of 32 over all heads.
        let in_eights = |attention: &Grouping, asked: usize| {
            let widths = Widths::of(attention, &[0.5; 2], 32).with_heads(8);
            40 - widths.rounded(attention, &attention.components[0], 40 - asked)
        };
        assert_eq!((kept(&attention, 32, 20), in_eights(&attention, 20), in_eights(&attention, 25)), (32, 24, 32));
        let small = |channel: usize| (0..8).map(|head| (head * 12 + channel) as u32).collect::<Vec<_>>();
        let attention = grouping(12, &[(Role::Producer, &small), (Role::Consumer, &small)]);
        assert_eq!(kept(&attention, 16, 5), 6);
    }

    #[test]
    fn norm_groups_keep_a_size_that_their_kernel_accepts_if_possible() {
        let mut norm = grouping(10, &[(Role::Producer, &run(1))]);
        norm.components[0].preferred.push(PreferredBlock { size: 10, per_step: 1, multiple: 2 });
        assert_eq!((kept(&norm, 1, 5), kept(&norm, 1, 4), kept(&norm, 1, 9)), (6, 4, 9));
    }

    #[test]
    fn norm_groups_keep_an_even_size_if_requested_and_possible() {
        let mut norm = grouping(10, &[(Role::Producer, &run(1))]);
        norm.components[0].preferred.push(PreferredBlock { size: 10, per_step: 1, multiple: 1 });
        let kept = |norm: &Grouping, evens: bool, asked: usize| {
            let widths = Widths::of(norm, &[0.5; 2], 1).evening(evens);
            10 - widths.rounded(norm, &norm.components[0], 10 - asked)
        };
        assert_eq!((kept(&norm, false, 5), kept(&norm, true, 5), kept(&norm, true, 4)), (5, 6, 4));
        // Every step removes two of nine channels per block: an odd block remains odd.
        norm.components[0].preferred[0] = PreferredBlock { size: 9, per_step: 2, multiple: 1 };
        assert_eq!(kept(&norm, true, 5), 5);
    }

    #[test]
    fn always_kept_indices_count_towards_the_axis_size_if_possible() {
        let twelve = run(12);
        let mut beside = grouping(4, &[(Role::Consumer, &twelve)]);
        let mut fixed = grouping(20, &[(Role::Consumer, &run(1))]).groups.remove(0);
        fixed.fixed = Some(crate::operator::couple::space::Reason { text: String::new(), node: String::new() });
        beside.groups.push(fixed.clone());
        assert_eq!(kept(&beside, 8, 2), 3, "12 x 3 + 20 = 56");
        // One layer produces the channels, another takes them as input next to 20 others: only one axis can be a
        // multiple of 8.
        let mut beside = grouping(64, &[(Role::Consumer, &run(1)), (Role::Producer, &run(1))]);
        beside.groups.push(fixed);
        assert_eq!(kept(&beside, 8, 32), 32);
    }
}
