//! Letters for spaces and their digits, and sums of letters.

use std::collections::{BTreeMap, BTreeSet};

use crate::operator::couple::layout::SpaceId;
use crate::operator::couple::space::Spaces;

/// Maximum number of runs of indices that are written out.
const RUNS: usize = 8;

/// A digit of a space: `(k / inner) % extent`.
pub(super) type Digit = (SpaceId, usize, usize);

struct Letter {
    /// The space that consists of exactly this letter.
    space: Option<SpaceId>,
    len: usize,
    /// For every index, whether the node keeps it.
    kept: Vec<bool>,
    /// Whether the indices are copies of one value.
    is_repeated: bool,
    /// Whether other axes consist of some of its indices.
    is_named: bool,
    /// Its position in the alphabet. `None`: not written yet.
    place: Option<usize>,
}

/// A part of a sum: some indices of a letter in order.
#[derive(Clone)]
pub(super) struct Term {
    letter: usize,
    indices: Vec<usize>,
}

/// The letters of one text.
pub(super) struct Letters {
    lens: Vec<usize>,
    starts: Vec<usize>,
    classes: Vec<u32>,
    kept: Vec<bool>,
    repeated: BTreeSet<u32>,
    letters: Vec<Letter>,
    /// The letter and the index in it for every class of united indices.
    owners: BTreeMap<u32, (usize, usize)>,
    sums: BTreeMap<SpaceId, Vec<Term>>,
    digits: BTreeMap<Digit, usize>,
    kept_digits: BTreeSet<Digit>,
    written: usize,
}

impl Letters {
    /// Creates the letters of a text. No space has been met yet.
    pub(super) fn new(spaces: &Spaces) -> Self {
        let classes = spaces.classes();
        let frozen = spaces.frozen_classes(&classes);
        let kept = classes.iter().map(|class| frozen[*class as usize].is_some()).collect();
        let all = spaces.all();
        let repeated = (0..all.len()).filter(|space| spaces.repeated(*space).is_some());
        let repeated = repeated.flat_map(|space| classes[all[space].start..][..all[space].len].iter().copied());
        Self {
            lens: all.iter().map(|space| space.len).collect(),
            starts: all.iter().map(|space| space.start).collect(),
            repeated: repeated.collect(),
            kept,
            classes,
            letters: Vec::new(),
            owners: BTreeMap::new(),
            sums: BTreeMap::new(),
            digits: BTreeMap::new(),
            kept_digits: BTreeSet::new(),
            written: 0,
        }
    }

    /// Returns the number of indices of a space.
    pub(super) fn len(&self, space: SpaceId) -> usize {
        self.lens[space]
    }

    /// Marks a whole space as kept.
    pub(super) fn keep(&mut self, space: SpaceId) {
        let classes: BTreeSet<u32> = self.of(space).iter().copied().collect();
        for (kept, class) in self.kept.iter_mut().zip(&self.classes) {
            *kept |= classes.contains(class);
        }
    }

    /// Marks a digit without a space as kept.
    pub(super) fn keep_digit(&mut self, digit: Digit) {
        self.kept_digits.insert(digit);
    }

    /// Returns the classes of the indices of a space.
    pub(super) fn of(&self, space: SpaceId) -> &[u32] {
        &self.classes[self.starts[space]..][..self.lens[space]]
    }

    /// Finds the letters of the indices of a space, and assigns new letters to the rest. Returns `false` if the space
    /// has been met before.
    pub(super) fn meet(&mut self, space: SpaceId) -> bool {
        if self.sums.contains_key(&space) {
            return false;
        }
        let mut terms: Vec<Term> = Vec::new();
        // The new letter of the previous index, if it got one.
        let mut new: Option<usize> = None;
        for (at, class) in self.of(space).to_vec().into_iter().enumerate() {
            let owner = self.owners.get(&class).copied();
            let (letter, index) = owner.unwrap_or_else(|| {
                let letter = new.unwrap_or_else(|| self.add(0));
                let index = self.letters[letter].len;
                let is_kept = self.kept[self.starts[space] + at];
                let is_repeated = self.repeated.contains(&class);
                let of = &mut self.letters[letter];
                of.len += 1;
                of.kept.push(is_kept);
                of.is_repeated = is_repeated;
                self.owners.insert(class, (letter, index));
                (letter, index)
            });
            new = owner.is_none().then_some(letter);
            // A letter that starts again after its end is another term.
            let is_again = |last: &Term| index == 0 && last.indices.len() == self.letters[letter].len;
            match terms.last_mut() {
                Some(last) if last.letter == letter && !is_again(last) => last.indices.push(index),
                _ => terms.push(Term { letter, indices: vec![index] }),
            }
        }
        for term in &terms {
            let letter = &mut self.letters[term.letter];
            letter.is_named |= !term.indices.iter().copied().eq(0..letter.len);
        }
        if let [term] = terms.as_slice() {
            self.letters[term.letter].space.get_or_insert(space);
        }
        self.sums.insert(space, terms);
        true
    }

    fn add(&mut self, len: usize) -> usize {
        self.letters.push(Letter {
            space: None,
            len,
            kept: vec![false; len],
            is_repeated: false,
            is_named: false,
            place: None,
        });
        self.letters.len() - 1
    }

    /// Returns whether a space needs a name in addition to its products: because others name some of its indices, or
    /// because the node keeps only some.
    pub(super) fn is_named(&self, space: SpaceId) -> bool {
        let terms = self.sums.get(&space).map_or(&[][..], Vec::as_slice);
        let is_partly_kept = |term: &Term| {
            let kept = &self.letters[term.letter].kept;
            kept.iter().any(|kept| *kept) && !kept.iter().all(|kept| *kept)
        };
        terms.len() > 1 || terms.iter().any(|term| self.letters[term.letter].is_named || is_partly_kept(term))
    }

    /// Returns whether the node keeps a whole space.
    pub(super) fn is_kept(&self, space: SpaceId) -> bool {
        self.kept[self.starts[space]..][..self.lens[space]].iter().all(|kept| *kept)
    }

    /// Returns whether all letters of a space were written already.
    pub(super) fn is_written(&self, space: SpaceId) -> bool {
        self.sums.get(&space).is_some_and(|terms| terms.iter().all(|term| self.letters[term.letter].place.is_some()))
    }

    /// Returns the terms whose sum is the space.
    pub(super) fn terms(&self, space: SpaceId) -> Vec<Term> {
        self.sums.get(&space).cloned().unwrap_or_default()
    }

    /// Returns the space that consists of exactly this term, if it is not `sum` and has no name.
    pub(super) fn unnamed_space(&self, term: &Term, sum: SpaceId) -> Option<SpaceId> {
        let letter = &self.letters[term.letter];
        letter.space.filter(|space| *space != sum && !self.is_named(*space))
    }

    /// Formats a digit without a space.
    pub(super) fn digit(&mut self, digit: Digit, is_axis: bool) -> String {
        let letter = match self.digits.get(&digit) {
            Some(letter) => *letter,
            None => {
                let letter = self.add(digit.2);
                self.digits.insert(digit, letter);
                let is_kept = self.kept_digits.contains(&digit) || self.is_kept(digit.0);
                self.letters[letter].kept.fill(is_kept);
                letter
            }
        };
        self.term(&Term { letter, indices: (0..digit.2).collect() }, is_axis)
    }

    /// Formats indices of a letter. `is_axis`: they are a whole axis.
    pub(super) fn term(&mut self, term: &Term, is_axis: bool) -> String {
        let letter = &mut self.letters[term.letter];
        let is_new = letter.place.is_none();
        let mut text = name(*letter.place.get_or_insert(self.written));
        self.written += usize::from(is_new);
        if is_new && !is_axis {
            text += &letter.len.to_string();
        }
        if !term.indices.iter().copied().eq(0..letter.len) {
            text += &format!("[{}]", runs(&term.indices, letter.len));
        }
        if letter.is_repeated {
            text.push('*');
        }
        let kept: Vec<usize> = term.indices.iter().copied().filter(|at| letter.kept[*at]).collect();
        if kept.len() == term.indices.len() {
            text.push('!');
        } else if !kept.is_empty() {
            text += &format!("![{}]", runs(&kept, letter.len));
        }
        text
    }
}

/// Returns the letter at a position of the alphabet: `a` to `z`, then `aa`, `ab`, …
fn name(place: usize) -> String {
    let last = char::from(b'a' + u8::try_from(place % 26).unwrap_or(0));
    match place / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", name(more - 1)),
    }
}

/// Formats indices of a letter with `len` indices as slices: runs with a constant step.
fn runs(indices: &[usize], len: usize) -> String {
    let mut texts = Vec::new();
    let mut rest = indices;
    while let Some(first) = rest.first() {
        if texts.len() == RUNS {
            texts.push("…".to_owned());
            break;
        }
        let step = rest.get(1).map_or(1, |second| second.abs_diff(*first));
        let falls = rest.get(1).is_some_and(|second| second < first);
        let continues = |pair: &&[usize]| (pair[1] < pair[0]) == falls && pair[0].abs_diff(pair[1]) == step && step > 0;
        let mut count = 1 + rest.windows(2).take_while(continues).count();
        if count < 3 && (falls || step != 1) {
            count = 1;
        }
        let last = rest[count - 1];
        texts.push(match (count, falls, step) {
            (1, _, _) => first.to_string(),
            (_, false, 1) => format!("{first}:{}", last + 1),
            (_, false, step) => format!("{first}:{}:{step}", (last + step).min(len)),
            (_, true, step) => {
                let end = last.checked_sub(step).map_or_else(String::new, |end| end.to_string());
                format!("{first}:{end}:-{step}")
            }
        });
        rest = &rest[count..];
    }
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_formatted_as_slices() {
        assert_eq!(runs(&[0, 1, 2, 3], 8), "0:4");
        assert_eq!(runs(&[0, 2, 4, 6], 8), "0:8:2");
        assert_eq!(runs(&[5, 4, 3], 8), "5:2:-1");
        assert_eq!(runs(&[4, 2, 0], 8), "4::-2");
        assert_eq!(runs(&[5, 3, 3, 0, 1], 8), "5,3,3,0:2");
        assert_eq!(runs(&[0, 2, 1, 3, 0, 2, 1, 3, 0, 2], 4), "0,2,1,3,0,2,1,3,…");
    }

    #[test]
    fn names_continue_after_z() {
        assert_eq!([0, 25, 26, 51, 52, 701, 702].map(name), ["a", "z", "aa", "az", "ba", "zz", "aaa"]);
    }
}
