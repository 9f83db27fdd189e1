//! Sizes that stand for symbolic dimensions.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;

/// Sizes for the symbolic dimensions of a model.
pub type Sizes = BTreeMap<String, i64>;

/// A size for every symbolic dimension: what the user gives, else a small one by name; the network halves height and
/// width a few times, so theirs is a multiple of eight.
pub fn sizes_for(facts: &Facts, given: &Sizes) -> Sizes {
    let mut names = BTreeSet::new();
    for dim in facts.values.iter().flatten().filter_map(|fact| fact.shape.as_ref()).flatten() {
        dim.symbols(&mut names);
    }
    names
        .into_iter()
        .map(|name| (name.clone(), given.get(&name).copied().unwrap_or_else(|| default_size(&name))))
        .collect()
}

fn default_size(name: &str) -> i64 {
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
