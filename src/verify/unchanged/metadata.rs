//! The metadata of a file (`metadata_props`). No computation depends on them, yet people and programs read them.

use std::collections::BTreeMap;

use crate::onnx::StringStringEntryProto;
use crate::plan::METADATA;

/// Maximum number of keys that are named. Of the others, only the number is.
const MOST_NAMED: usize = 3;

/// Describes the entries of a pruned file that differ from those of the original. `None`: all are equal. Entries that
/// the cut itself writes do not count.
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
    Some(format!("the metadata, on which no computation depends, differ from the original's: {}", named.join(", ")))
}

/// Returns the values of every key, in the order of the file.
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
    fn differing_entries_are_named_and_entries_of_the_cut_are_not() {
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
