//! Sizes that stand for symbolic dimensions.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;

/// Sizes for the symbolic dimensions of a model.
pub type Sizes = BTreeMap<String, i64>;

/// A size for every symbolic dimension: what a weight fixes, what the user gives, what follows from others, else a small one
/// by name; the network halves height and width a few times, so theirs is a multiple of eight.
pub fn sizes_for(facts: &Facts, given: &Sizes) -> Sizes {
    let mut names = BTreeSet::new();
    for dim in facts.values.iter().flatten().filter_map(|fact| fact.shape.as_ref()).flatten() {
        dim.symbols(&mut names);
    }
    let mut given = given.clone();
    // A size that is given for one of two symbols that meet is that of both.
    for tie in facts.ties.iter().rev() {
        if let (Some(size), Some(other)) = (given.get(&tie.symbol).copied(), tie.size.as_symbol()) {
            given.entry(other).or_insert(size);
        }
    }
    let mut sizes: Sizes = names
        .into_iter()
        .map(|name| {
            let size = given.get(&name).copied().unwrap_or_else(|| default_size(&name));
            (name, size)
        })
        .collect();
    sizes.extend(facts.fixed_sizes());
    follow(facts, &given, &mut sizes);
    sizes
}

/// Sets the sizes that follow from others, but those that are given.
pub fn follow(facts: &Facts, given: &Sizes, sizes: &mut Sizes) {
    for tie in facts.ties.iter().filter(|tie| !given.contains_key(&tie.symbol)) {
        if let Some(size) = tie.size.eval(sizes).filter(|size| *size > 0) {
            sizes.insert(tie.symbol.clone(), size);
        }
    }
}

/// Whether the name of a symbol says what it counts, so that it is no batch.
pub fn has_telling_name(name: &str) -> bool {
    let name = name.to_lowercase();
    ["seq", "len", "token", "text", "height", "width"].iter().any(|word| name.contains(word))
}

/// The size of a symbol of which nothing but the name is known.
pub fn default_size(name: &str) -> i64 {
    let name = name.to_lowercase();
    let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if name.starts_with('?') || is(&["batch"]) || name == "b" || name == "n" {
        1
    } else if is(&["height", "width", "size"]) || name == "h" || name == "w" {
        16
    } else if is(&["seq", "len", "token", "text"]) || name == "l" {
        7
    } else if is(&["frame", "depth", "time"]) {
        8
    } else {
        2
    }
}
