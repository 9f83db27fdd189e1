//! The metadata of a file (`metadata_props`): nothing computes with them, yet people and programs read them.

use std::collections::BTreeMap;

use crate::onnx::StringStringEntryProto;
use crate::plan::METADATA;

/// Keys that are named; of more, their number is given.
const MOST_NAMED: usize = 3;

/// Which entries of a pruned file are not those of the original, in words; `None` if all are. What the cut writes itself
/// does not count.
pub(super) fn difference(original: &[StringStringEntryProto], pruned: &[StringStringEntryProto]) -> Option<String> {
    let (original, pruned) = (by_key(original), by_key(pruned));
    let missing = original.keys().filter(|key| !pruned.contains_key(*key)).map(|key| format!("{key:?} is missing"));
    let other = pruned.iter().filter_map(|(key, values)| match original.get(key) {
        None => Some(format!("{key:?} is new")),
        Some(before) => (before != values).then(|| format!("{key:?} has another value")),
    });
    let mut named: Vec<String> = missing.chain(other).collect();
    if named.is_empty() {
        return None;
    }
    let more = named.len().saturating_sub(MOST_NAMED);
    named.truncate(MOST_NAMED);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    Some(format!("the metadata, with which nothing computes, are not the original's: {}", named.join(", ")))
}

/// The values of every key, in the order of the file.
fn by_key(entries: &[StringStringEntryProto]) -> BTreeMap<&str, Vec<&str>> {
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !entry.key.starts_with(METADATA)) {
        values.entry(&entry.key).or_default().push(&entry.value);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(entries: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
        let entry =
            |(key, value): &(&str, &str)| StringStringEntryProto { key: (*key).to_owned(), value: (*value).to_owned() };
        entries.iter().map(entry).collect()
    }

    #[test]
    fn entries_that_differ_are_named_and_those_of_the_cut_are_not() {
        let original = entries(&[("author", "a"), ("license", "b"), ("onnx_diffprune.ratio", "0.1"), ("twice", "1")]);
        let same = entries(&[("twice", "1"), ("license", "b"), ("author", "a"), ("onnx_diffprune.tool", "x")]);
        assert_eq!(difference(&original, &same), None);
        let other = entries(&[("license", "c"), ("new", "d"), ("twice", "1"), ("twice", "1")]);
        let text = difference(&original, &other).unwrap_or_default();
        for part in ["\"author\" is missing", "\"license\" has another value", "\"new\" is new", "1 more"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
