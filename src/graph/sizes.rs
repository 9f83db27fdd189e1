//! The sizes used for symbolic dimensions.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;

/// Sizes for the symbolic dimensions of a model.
pub type Sizes = BTreeMap<String, i64>;

/// Chooses a size for every symbolic dimension: the size that a weight fixes, the size that the user gives, the size
/// that follows from others, or else a small default by name. The default height and width are multiples of eight
/// because networks halve them a few times.
pub fn sizes_for(facts: &Facts, given: &Sizes) -> Sizes {
    let mut names = BTreeSet::new();
    for dim in facts.values.iter().flatten().filter_map(|fact| fact.shape.as_ref()).flatten() {
        dim.symbols(&mut names);
    }
    let mut given = given.clone();
    // If two symbols meet and a size is given for one, it holds for both.
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

/// Sets the sizes that follow from others, except those in `given`.
pub fn follow(facts: &Facts, given: &Sizes, sizes: &mut Sizes) {
    for tie in facts.ties.iter().filter(|tie| !given.contains_key(&tie.symbol)) {
        if let Some(size) = tie.size.eval(sizes).filter(|size| *size > 0) {
            sizes.insert(tie.symbol.clone(), size);
        }
    }
}

/// Returns whether the name of a symbol shows what it counts, so that it is no batch.
pub fn has_telling_name(name: &str) -> bool {
    let name = name.to_lowercase();
    ["seq", "len", "token", "text", "height", "width"].iter().any(|word| name.contains(word))
}

/// Returns the default size of a symbol of which only the name is known.
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
