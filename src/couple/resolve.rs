//! Decides what every divided axis may lose.
//!
//! An axis that is used as a product of digits can lose values of only one digit, because one selection must apply to
//! the whole axis: whole heads or head dimensions, not both at once. A ragged division (the norm groups of a channel
//! axis) either keeps the number of groups, in which case the same number of channels is removed from each, or loses
//! whole groups.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::operator::couple::layout::SpaceId;
use crate::operator::couple::space::{Division, Reason, Shrinks, Spaces};

/// Which digit of an attention axis `[heads, head dimension]` may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadDigit {
    /// Whole heads if there is more than one, else head dimensions.
    Heads,
    /// Head dimensions, the same ones in every head.
    Dims,
    /// Neither.
    None,
}

/// Norms that lose whole groups, as the space of the channels and the number of channels in a group.
pub type DroppedNorms = BTreeSet<(SpaceId, usize)>;

/// Unites or freezes the indices of every divided axis.
pub fn resolve(spaces: &mut Spaces, attention: HeadDigit, drop_all: bool, dropped: &DroppedNorms) {
    let divisions: Vec<Division> = spaces.divisions().cloned().collect();
    let (ragged, mut open): (Vec<Division>, Vec<Division>) = divisions.into_iter().partition(Division::is_ragged);
    for division in ragged {
        let (Some(groups), Some(block)) = (division.digits[0], division.sizes.get(1).copied()) else {
            continue;
        };
        if drop_all || dropped.contains(&(division.space, block)) {
            apply(spaces, &division, Free::Digit(0));
        } else {
            let text = "the number of norm groups is kept".to_owned();
            spaces.freeze_space(groups, &Reason { text, node: division.node.clone() });
            spaces.require_equal_blocks(division.space, block, &division.node);
        }
    }
    while !open.is_empty() {
        let forced = forced_digits(spaces, &open);
        if forced.iter().any(Option::is_some) {
            let mut rest = Vec::new();
            for (division, forced) in open.into_iter().zip(forced) {
                match forced {
                    Some(free) => apply(spaces, &division, free),
                    None => rest.push(division),
                }
            }
            open = rest;
            continue;
        }
        let division = open.remove(0);
        let frozen = frozen_digits(spaces, &division);
        // For example, a linear layer may compute tokens from one vector. Their channels are those of the layers that
        // use them.
        let read = digits_of_layers(spaces, &division);
        let mut of_layers = (0..frozen.len()).filter(|at| read[*at] && !frozen[*at]);
        let free = match (division.shrinks, attention, of_layers.next(), of_layers.next()) {
            (Shrinks::Preferably(at), ..) => {
                let others = (0..frozen.len()).filter(|other| *other != at);
                std::iter::once(at).chain(others).find(|at| !frozen[*at] && leaves_a_choice(spaces, &division, *at))
            }
            (_, HeadDigit::None, _, _) => None,
            (_, _, Some(only), None) => Some(only),
            (_, HeadDigit::Heads, _, _) => frozen.iter().position(|frozen| !frozen),
            (_, HeadDigit::Dims, _, _) => frozen.iter().rposition(|frozen| !frozen),
        };
        apply(spaces, &division, free.map_or(Free::Nothing, Free::Digit));
    }
    settle_borders(spaces, dropped);
}

/// Demands that the same number of indices is removed from each block between the borders of axes, unless the classes
/// ensure this already. They do if every class has the same number of indices in every block, or consists of whole
/// blocks.
fn settle_borders(spaces: &mut Spaces, dropped: &DroppedNorms) {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let mut demands = Vec::new();
    for (id, block, node) in spaces.borders() {
        let space = &spaces.all()[id];
        let blocks = classes[space.start..space.start + space.len].chunks(block);
        let count = blocks.len();
        let mut sizes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, block) in blocks.enumerate() {
            for class in block.iter().filter(|class| frozen[**class as usize].is_none()) {
                sizes.entry(*class).or_insert_with(|| vec![0; count])[at] += 1;
            }
        }
        let is_spread = sizes.values().all(|sizes| sizes.iter().all(|size| *size == sizes[0]));
        let is_whole = || sizes.values().flatten().all(|size| *size == 0 || *size == block);
        let is_demanded = || spaces.equal_blocks().any(|demand| demand.space == id && demand.block == block);
        if !is_spread && !is_whole() && !is_demanded() {
            demands.push((id, block, node.to_owned()));
        }
    }
    for (space, block, node) in demands {
        if dropped.contains(&(space, block)) {
            for k in 0..spaces.all()[space].len {
                spaces.unite(space, k, space, k - k % block);
            }
        } else {
            spaces.require_equal_blocks(space, block, &node);
        }
    }
}

/// The part of a divided space that may shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Free {
    /// The digit at this position, and no other.
    Digit(usize),
    /// No index.
    Nothing,
}

/// Returns for every division what may shrink, if at most one digit still can. `None`: more than one digit can.
fn forced_digits(spaces: &Spaces, divisions: &[Division]) -> Vec<Option<Free>> {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let is_frozen = |space: SpaceId| {
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().all(|class| frozen[*class as usize].is_some())
    };
    let forced = |division: &Division| {
        let can_shrink = |at: usize| division.digits.get(at).copied().flatten().is_some_and(|digit| !is_frozen(digit));
        if is_frozen(division.space) {
            return Some(Free::Nothing);
        }
        match division.shrinks {
            Shrinks::Only(only) => return Some(if can_shrink(only) { Free::Digit(only) } else { Free::Nothing }),
            Shrinks::Nothing => return Some(Free::Nothing),
            Shrinks::Any | Shrinks::Preferably(_) => {}
        }
        let mut free = (0..division.digits.len()).filter(|at| can_shrink(*at));
        match (free.next(), free.next()) {
            (None, _) => Some(Free::Nothing),
            (Some(only), None) => Some(Free::Digit(only)),
            _ => None,
        }
    };
    divisions.iter().map(forced).collect()
}

fn frozen_digits(spaces: &Spaces, division: &Division) -> Vec<bool> {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let is_frozen = |space: SpaceId| {
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().all(|class| frozen[*class as usize].is_some())
    };
    division.digits.iter().map(|digit| digit.is_none_or(is_frozen)).collect()
}

/// Returns for each digit of a divided axis whether it is a whole, undivided axis of a weight that produces or consumes
/// channels.
fn digits_of_layers(spaces: &Spaces, division: &Division) -> Vec<bool> {
    let classes = spaces.classes();
    let of = |space: SpaceId| {
        let space = &spaces.all()[space];
        &classes[space.start..space.start + space.len]
    };
    let is_divided: BTreeSet<SpaceId> = spaces.divisions().map(|division| division.space).collect();
    let whole = (0..spaces.all().len()).filter(|space| !is_divided.contains(space));
    let layers = whole.filter(|space| spaces.all()[*space].produced || spaces.all()[*space].consumed);
    let read: BTreeSet<_> = layers.flat_map(|space| of(space).iter().copied()).collect();
    division
        .digits
        .iter()
        .map(|digit| digit.is_some_and(|digit| of(digit).iter().any(|class| read.contains(class))))
        .collect()
}

/// Returns why a divided axis may not shrink: the reason of the first part that is not kept because of another part.
fn why_nothing(spaces: &Spaces, division: &Division) -> Reason {
    let classes = spaces.classes();
    let frozen = spaces.frozen_classes(&classes);
    let of = |space: SpaceId| {
        let space = &spaces.all()[space];
        classes[space.start..space.start + space.len].iter().find_map(|class| frozen[*class as usize])
    };
    let parts = std::iter::once(division.space).chain(division.digits.iter().flatten().copied());
    parts.filter_map(of).find(|reason| reason.text != OTHER_PART).cloned().unwrap_or_else(|| {
        let text = match division.shrinks {
            Shrinks::Nothing => "two operators divide the axis and would cut it differently",
            Shrinks::Only(_) => "the axis is divided, and the part that could shrink has one index",
            Shrinks::Any | Shrinks::Preferably(_) => "the axis is divided into heads and dimensions, and both are kept",
        };
        Reason { text: text.to_owned(), node: division.node.clone() }
    })
}

/// The reason why one part of a divided axis is kept if another shrinks.
const OTHER_PART: &str = "the axis is divided in parts, and channels are removed along another part";

/// Returns whether some but not all of the space can be removed if a digit of its division may shrink. Other divisions
/// may unite all its values, and a demand for equal blocks can't be met if whole blocks are removed.
fn leaves_a_choice(spaces: &Spaces, division: &Division, digit: usize) -> bool {
    let mut tried = spaces.clone();
    apply(&mut tried, division, Free::Digit(digit));
    let classes = tried.classes();
    let frozen = tried.frozen_classes(&classes);
    let of = |space: SpaceId| {
        let space = &tried.all()[space];
        &classes[space.start..space.start + space.len]
    };
    let own: BTreeSet<u32> = of(division.space).iter().copied().collect();
    let inner: usize = division.sizes[digit + 1..].iter().product();
    own.iter().filter(|class| frozen[**class as usize].is_none()).count() > 1
        && !tried.equal_blocks().any(|demand| demand.block <= inner && of(demand.space) == of(division.space))
}

/// Lets the `free` part of a division shrink, and freezes the rest.
fn apply(spaces: &mut Spaces, division: &Division, free: Free) {
    let reason = match free {
        Free::Digit(_) => Reason { text: OTHER_PART.to_owned(), node: division.node.clone() },
        Free::Nothing => why_nothing(spaces, division),
    };
    for (at, digit) in division.digits.iter().enumerate() {
        if let Some(digit) = digit.filter(|_| Free::Digit(at) != free) {
            spaces.freeze_space(digit, &reason);
        }
    }
    let digit = match free {
        Free::Digit(at) => division.digits.get(at).copied().flatten().map(|digit| (at, digit)),
        Free::Nothing => None,
    };
    let Some((free, digit)) = digit else {
        spaces.freeze_space(division.space, &reason);
        return;
    };
    let inner: usize = division.sizes[free + 1..].iter().product();
    let extent = division.sizes[free];
    for k in 0..spaces.all()[division.space].len {
        spaces.unite(division.space, k, digit, (k / inner) % extent);
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
        for (attention, count) in [(HeadDigit::Heads, 8), (HeadDigit::Dims, 4)] {
            let mut spaces = Spaces::default();
            let channels = spaces.add(32);
            spaces.digits(channels, &[8, 4], Shrinks::Any, "reshape");
            resolve(&mut spaces, attention, false, &DroppedNorms::new());
            assert_eq!(class_count(&spaces, channels), count, "{attention:?}");
        }
    }

    #[test]
    fn if_one_factor_can_not_shrink_the_other_does() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(24);
        let digits = spaces.digits(channels, &[3, 8], Shrinks::Any, "split of q, k and v");
        spaces.freeze_space(digits[0], &Reason { text: "selected".into(), node: "gather".into() });
        resolve(&mut spaces, HeadDigit::Heads, false, &DroppedNorms::new());
        assert_eq!(class_count(&spaces, channels), 8);
    }

    #[test]
    fn an_axis_that_can_not_shrink_names_the_reason() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(24);
        let digits = spaces.digits(channels, &[3, 8], Shrinks::Any, "reshape");
        for (digit, text) in digits.iter().zip(["the node reads one index", "the node interpolates the axis"]) {
            spaces.freeze_space(*digit, &Reason { text: text.to_owned(), node: "gather".to_owned() });
        }
        resolve(&mut spaces, HeadDigit::Heads, false, &DroppedNorms::new());
        let classes = spaces.classes();
        let frozen = spaces.frozen_classes(&classes);
        let reason = frozen[classes[spaces.all()[channels].start] as usize].cloned();
        assert_eq!(reason, Some(Reason { text: "the node reads one index".to_owned(), node: "gather".to_owned() }));
        // Where the user keeps heads and their dimensions, nothing else does.
        let mut spaces = Spaces::default();
        let channels = spaces.add(24);
        spaces.digits(channels, &[3, 8], Shrinks::Any, "reshape");
        resolve(&mut spaces, HeadDigit::None, false, &DroppedNorms::new());
        let classes = spaces.classes();
        let frozen = spaces.frozen_classes(&classes);
        let reason = frozen[classes[spaces.all()[channels].start] as usize].cloned();
        assert!(reason.is_some_and(|reason| reason.text.contains("heads") && reason.node == "reshape"));
    }

    #[test]
    fn norm_groups_are_kept_or_removed_as_a_whole() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(64);
        spaces.outer_digit(channels, 2, "norm");
        let mut kept = spaces.clone();
        resolve(&mut kept, HeadDigit::Heads, false, &DroppedNorms::new());
        assert_eq!(class_count(&kept, channels), 64);
        assert_eq!(kept.equal_blocks().count(), 1);
        resolve(&mut spaces, HeadDigit::Heads, true, &DroppedNorms::new());
        assert_eq!(class_count(&spaces, channels), 32);
    }
}
