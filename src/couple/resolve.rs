//! Decides what every cut axis may lose.
//!
//! An axis that is read as a product of digits can lose values of one digit only, if one selection is to hold for all
//! of it: whole heads or head dimensions, not both at once. A ragged cut, the norm groups of a channel axis, either
//! keeps the number of groups (equally many channels go from each) or loses whole groups.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::operator::couple::layout::SpaceId;
use crate::operator::couple::space::{Cut, Reason, Spaces};

/// Which digit of an attention axis `[heads, head dimension]` may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// Whole heads where there is more than one, else head dimensions.
    Heads,
    /// Head dimensions, the same ones of every head.
    Dims,
    /// Neither.
    None,
}

/// Norm groups, by the space of the channels and the number of channels in a group, of which whole groups go.
pub type DroppedNorms = BTreeSet<(SpaceId, usize)>;

/// Unites or freezes the indices of every cut axis.
pub fn resolve(spaces: &mut Spaces, attention: Attention, drop_all: bool, dropped: &DroppedNorms) {
    let cuts: Vec<Cut> = spaces.cuts().cloned().collect();
    let (ragged, mut open): (Vec<Cut>, Vec<Cut>) = cuts.into_iter().partition(Cut::is_ragged);
    for cut in ragged {
        let (Some(groups), Some(block)) = (cut.digits[0], cut.sizes.get(1).copied()) else {
            continue;
        };
        if drop_all || dropped.contains(&(cut.space, block)) {
            apply(spaces, &cut, Some(0));
        } else {
            let text = "the number of norm groups stays".to_owned();
            spaces.freeze_space(groups, &Reason { text, node: cut.node.clone() });
            spaces.require_equal_blocks(cut.space, block, &cut.node);
        }
    }
    while !open.is_empty() {
        let decided = decide_forced(spaces, &open);
        if decided.iter().any(Option::is_some) {
            let mut rest = Vec::new();
            for (cut, decision) in open.into_iter().zip(decided) {
                match decision {
                    Some(free) => apply(spaces, &cut, free),
                    None => rest.push(cut),
                }
            }
            open = rest;
            continue;
        }
        let cut = open.remove(0);
        let frozen = frozen_digits(spaces, &cut);
        // Tokens that a linear layer makes of one vector, say: their channels are those of the layers that read them.
        let read = digits_of_layers(spaces, &cut);
        let mut of_layers = (0..frozen.len()).filter(|at| read[*at] && !frozen[*at]);
        let free = match (attention, of_layers.next(), of_layers.next()) {
            (Attention::None, _, _) => None,
            (_, Some(only), None) => Some(only),
            (Attention::Heads, _, _) => frozen.iter().position(|frozen| !frozen),
            (Attention::Dims, _, _) => frozen.iter().rposition(|frozen| !frozen),
        };
        apply(spaces, &cut, free);
    }
}

/// For every cut with at most one digit that may still shrink: that digit, or `Some(None)` where none may.
fn decide_forced(spaces: &Spaces, cuts: &[Cut]) -> Vec<Option<Option<usize>>> {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let is_frozen = |space: SpaceId| {
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().all(|class| frozen[*class as usize].is_some())
    };
    cuts.iter()
        .map(|cut| {
            if let Some(only) = cut.only {
                let free = cut.digits.get(only).copied().flatten();
                return Some(free.filter(|free| !is_frozen(*free) && !is_frozen(cut.space)).map(|_| only));
            }
            if is_frozen(cut.space) {
                return Some(None);
            }
            let mut free = (0..cut.digits.len()).filter(|at| cut.digits[*at].is_some_and(|digit| !is_frozen(digit)));
            match (free.next(), free.next()) {
                (None, _) => Some(None),
                (Some(only), None) => Some(Some(only)),
                _ => None,
            }
        })
        .collect()
}

fn frozen_digits(spaces: &Spaces, cut: &Cut) -> Vec<bool> {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let is_frozen = |space: SpaceId| {
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().all(|class| frozen[*class as usize].is_some())
    };
    cut.digits.iter().map(|digit| digit.is_none_or(is_frozen)).collect()
}

/// Whether a digit of a cut axis is a whole axis of a weight that produces or consumes channels, and no digit there.
fn digits_of_layers(spaces: &Spaces, cut: &Cut) -> Vec<bool> {
    let classes = spaces.classes();
    let of = |space: SpaceId| {
        let space = &spaces.all()[space];
        &classes[space.start..space.start + space.len]
    };
    let is_cut: BTreeSet<SpaceId> = spaces.cuts().map(|cut| cut.space).collect();
    let whole = (0..spaces.all().len()).filter(|space| !is_cut.contains(space));
    let layers = whole.filter(|space| spaces.all()[*space].produced || spaces.all()[*space].consumed);
    let read: BTreeSet<_> = layers.flat_map(|space| of(space).iter().copied()).collect();
    cut.digits
        .iter()
        .map(|digit| digit.is_some_and(|digit| of(digit).iter().any(|class| read.contains(class))))
        .collect()
}

/// Lets digit `free` of a cut shrink and keeps all others; with `None`, keeps everything.
fn apply(spaces: &mut Spaces, cut: &Cut, free: Option<usize>) {
    for (at, digit) in cut.digits.iter().enumerate() {
        if let Some(digit) = digit
            && Some(at) != free
        {
            let text = match free {
                Some(_) => "the axis shrinks along its other factor",
                None => "no factor of the axis may shrink",
            };
            spaces.freeze_space(*digit, &Reason { text: text.to_owned(), node: cut.node.clone() });
        }
    }
    let Some((free, digit)) = free.and_then(|free| Some((free, cut.digits.get(free).copied().flatten()?))) else {
        let text = "no factor of the axis may shrink".to_owned();
        spaces.freeze_space(cut.space, &Reason { text, node: cut.node.clone() });
        return;
    };
    let inner: usize = cut.sizes[free + 1..].iter().product();
    let extent = cut.sizes[free];
    for k in 0..spaces.all()[cut.space].len {
        spaces.unite(cut.space, k, digit, (k / inner) % extent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_count(spaces: &Spaces, space: SpaceId) -> usize {
        let classes = spaces.classes();
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().collect::<BTreeSet<_>>().len()
    }

    #[test]
    fn heads_unite_their_dimensions_and_dims_unite_across_heads() {
        for (attention, count) in [(Attention::Heads, 8), (Attention::Dims, 4)] {
            let mut spaces = Spaces::default();
            let channels = spaces.add(32);
            spaces.digits(channels, &[8, 4], None, "reshape");
            resolve(&mut spaces, attention, false, &DroppedNorms::new());
            assert_eq!(class_count(&spaces, channels), count, "{attention:?}");
        }
    }

    #[test]
    fn the_factor_that_can_not_shrink_leaves_the_other() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(24);
        let digits = spaces.digits(channels, &[3, 8], None, "split of q, k and v");
        spaces.freeze_space(digits[0], &Reason { text: "selected".into(), node: "gather".into() });
        resolve(&mut spaces, Attention::Heads, false, &DroppedNorms::new());
        assert_eq!(class_count(&spaces, channels), 8);
    }

    #[test]
    fn norm_groups_stay_or_go_whole() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(64);
        spaces.outer_digit(channels, 2, "norm");
        let mut kept = spaces.clone();
        resolve(&mut kept, Attention::Heads, false, &DroppedNorms::new());
        assert_eq!(class_count(&kept, channels), 64);
        assert_eq!(kept.equal_blocks().count(), 1);
        resolve(&mut spaces, Attention::Heads, true, &DroppedNorms::new());
        assert_eq!(class_count(&spaces, channels), 32);
    }
}
