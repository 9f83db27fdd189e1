//! An excerpt of some spaces, as they were before any rule applied to them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Division, Spaces};
use crate::operator::couple::layout::SpaceId;

impl Spaces {
    /// Returns the given spaces alone, free and not united, and their new ids. A division of one of them is included
    /// with all its digits if a digit is given too, so that a statistic per block still meets its block.
    pub fn excerpt(&self, wanted: &BTreeSet<SpaceId>) -> (Spaces, BTreeMap<SpaceId, SpaceId>) {
        let is_met = |division: &&Division| {
            let mut digits = division.digits.iter().flatten();
            wanted.contains(&division.space) && digits.any(|digit| wanted.contains(digit))
        };
        let divisions: Vec<&Division> = self.divisions.values().filter(is_met).collect();
        let digits = divisions.iter().flat_map(|division| division.digits.iter().flatten());
        let all: BTreeSet<SpaceId> = wanted.iter().chain(digits).copied().collect();
        let mut excerpt = Spaces::default();
        let renamed: BTreeMap<SpaceId, SpaceId> =
            all.into_iter().map(|space| (space, excerpt.add(self.spaces[space].len))).collect();
        for division in divisions {
            let space = renamed[&division.space];
            let digits = division.digits.iter().map(|digit| digit.map(|digit| renamed[&digit])).collect();
            let division = Division { space, digits, ..division.clone() };
            excerpt.divisions.insert((space, division.sizes.clone()), division);
        }
        for (space, new) in &renamed {
            if let Some(reason) = self.repeated.get(space) {
                excerpt.repeated.insert(*new, reason.clone());
            }
        }
        (excerpt, renamed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_includes_divisions_with_their_digits() {
        let mut spaces = Spaces::default();
        let (other, channels) = (spaces.add(3), spaces.add(12));
        let groups = spaces.outer_digit(channels, 4, "norm");
        spaces.unite(other, 0, channels, 0);
        let (excerpt, renamed) = spaces.excerpt(&BTreeSet::from([channels, groups]));
        assert_eq!(excerpt.all().len(), 2);
        assert_eq!(excerpt.classes(), (0..15).collect::<Vec<u32>>());
        let division = excerpt.divisions().next().expect("the norm's");
        assert_eq!((division.space, division.digits[0]), (renamed[&channels], Some(renamed[&groups])));
        let (alone, _) = spaces.excerpt(&BTreeSet::from([channels]));
        assert_eq!(alone.divisions().count(), 0);
    }
}
