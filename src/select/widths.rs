//! How many channels may go so that the axes that are left are as wide as kernels like them.
//!
//! A channel may take several indices of an axis: a head takes as many as it has dimensions. What a kernel sees is the
//! axis, so that its width is what is rounded, not the number of channels.

use crate::couple::group::{ChannelGroup, Component, Grouping, Role};

/// How one axis of a weight grows with the channels of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    /// Indices of each channel along the axis.
    whole: usize,
    /// How many of them stand side by side: all dimensions of a head, one dimension of every head.
    run: usize,
}

impl Share {
    fn of(indices: &[u32]) -> Self {
        let run = indices.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count() + 1;
        Self { whole: indices.len(), run: run.min(indices.len()) }
    }
}

/// The axes of a group whose widths count: those that contractions make or sum over, or all if there is none. An axis of
/// fewer than twice `multiple` could not shrink at all and binds no group that goes through a wider one, such as the
/// gates of eight heads beside the heads themselves.
fn shares(group: &ChannelGroup, multiple: usize) -> Vec<Share> {
    let of = |counts: &dyn Fn(Role) -> bool| -> Vec<Share> {
        let members = group.members.iter().filter(|member| counts(member.role));
        members.filter_map(|member| Some(Share::of(member.indices.first()?))).collect()
    };
    let mut shares = of(&|role| role != Role::Parameter);
    if shares.is_empty() {
        shares = of(&|_| true);
    }
    let is_wide = |share: &Share| group.channels.len() * share.whole >= 2 * multiple;
    if shares.iter().any(is_wide) {
        shares.retain(is_wide);
    }
    shares
}

/// The largest number of steps, up to `most`, after which what every group of a component keeps of its axes is a multiple
/// of `multiple`, and within an axis each of its blocks too where that comes out (dimensions of every head). Zero if none.
pub(super) fn rounded(grouping: &Grouping, component: &Component, most: usize, multiple: usize) -> usize {
    if multiple <= 1 {
        return most;
    }
    let groups = component.groups.iter().map(|group| &grouping.groups[*group]).filter(|group| group.fixed.is_none());
    let widths: Vec<(usize, Vec<Share>)> =
        groups.map(|group| (group.channels.len(), shares(group, multiple))).collect();
    let largest = |size: &dyn Fn(&Share) -> usize| {
        let fits = |steps: &usize| {
            widths.iter().all(|(channels, shares)| {
                let kept = channels - steps * (channels / component.unit.max(1));
                shares.iter().all(|share| (kept * size(share)).is_multiple_of(multiple))
            })
        };
        (1..=most).rev().find(fits).unwrap_or(0)
    };
    match largest(&|share| share.run) {
        0 => largest(&|share| share.whole),
        steps => steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_side_by_side_are_told_from_those_apart() {
        assert_eq!(Share::of(&[8, 9, 10, 11]), Share { whole: 4, run: 4 });
        assert_eq!(Share::of(&[1, 9, 17]), Share { whole: 3, run: 1 });
        assert_eq!(Share::of(&[0, 1, 16, 17, 32, 33]), Share { whole: 6, run: 2 });
        assert_eq!(Share::of(&[]), Share { whole: 0, run: 0 });
    }
}
