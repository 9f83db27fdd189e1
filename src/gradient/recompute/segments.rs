//! The division of a forward pass into segments.

use std::collections::{HashMap, HashSet};

/// The values of a forward pass, with the nodes that compute and use them.
pub(super) struct Values {
    /// The number of nodes of the forward pass.
    nodes: usize,
    places: HashMap<String, usize>,
    values: Vec<Value>,
    /// Values that change between runs and to which a number can be added, including inputs of the network.
    pub(super) sources: HashSet<String>,
}

struct Value {
    name: String,
    bytes: u64,
    producer: usize,
    /// The last node of the forward pass that uses it.
    last: usize,
    /// Whether it is kept for every division.
    is_kept: bool,
    /// Whether the backward pass uses it.
    is_read_back: bool,
}

impl Values {
    pub(super) fn new(nodes: usize) -> Self {
        Self { nodes, places: HashMap::new(), values: Vec::new(), sources: HashSet::new() }
    }

    /// Adds a value that node `at` computes.
    pub(super) fn add(&mut self, name: &str, at: usize, bytes: u64) {
        self.places.insert(name.to_owned(), self.values.len());
        let name = name.to_owned();
        self.values.push(Value { name, bytes, producer: at, last: at, is_kept: false, is_read_back: false });
    }

    fn get(&mut self, name: &str) -> Option<&mut Value> {
        self.places.get(name).map(|at| &mut self.values[*at])
    }

    /// Records that node `at` uses a value.
    pub(super) fn read(&mut self, name: &str, at: usize) {
        if let Some(value) = self.get(name) {
            value.last = value.last.max(at);
        }
    }

    /// Records that a value is kept.
    pub(super) fn keep(&mut self, name: &str) {
        if let Some(value) = self.get(name) {
            value.is_kept = true;
        }
    }

    /// Records that the backward pass uses a value.
    pub(super) fn read_back(&mut self, name: &str) {
        if let Some(value) = self.get(name) {
            value.is_read_back = true;
        }
    }

    /// Returns the names of the values that are kept if segments begin at the nodes `starts`: the values that later
    /// segments use, and all values of the last segment.
    pub(super) fn kept(&self, starts: &[usize]) -> HashSet<&str> {
        let kept = self.values.iter().filter(|value| value.is_kept_for(starts));
        kept.map(|value| value.name.as_str()).collect()
    }

    /// Estimates the maximum number of bytes that are in memory at the same time during the backward pass.
    fn peak(&self, starts: &[usize]) -> u64 {
        let (mut kept, mut again) = (vec![0; starts.len()], vec![0; starts.len()]);
        for value in &self.values {
            let segment = segment_of(starts, value.producer);
            if value.is_kept_for(starts) && segment + 1 < starts.len() {
                kept[segment] += value.bytes;
            } else if value.is_read_back {
                again[segment] += value.bytes;
            }
        }
        let (mut below, mut peak) = (0, 0);
        for (kept, again) in kept.into_iter().zip(again) {
            below += kept;
            peak = peak.max(below + again);
        }
        peak
    }
}

impl Value {
    fn is_kept_for(&self, starts: &[usize]) -> bool {
        let segment = segment_of(starts, self.producer);
        self.is_kept || segment + 1 == starts.len() || segment_of(starts, self.last) > segment
    }
}

fn segment_of(starts: &[usize], node: usize) -> usize {
    starts.partition_point(|start| *start <= node).saturating_sub(1)
}

/// Chooses the nodes at which segments begin, including the first node. Returns them with the estimated peak memory in
/// bytes. Tests several segment sizes. In each division, the segments have activations of about the same size, and each
/// ends where the fewest bytes cross to the next.
pub(super) fn choose(values: &Values) -> (Vec<usize>, u64) {
    // The bytes of every node's outputs that the backward pass uses, and the bytes that cross from earlier to later
    // nodes.
    let mut read = vec![0_u64; values.nodes];
    let mut change = vec![0_i64; values.nodes + 1];
    for value in &values.values {
        read[value.producer] += if value.is_read_back { value.bytes } else { 0 };
        if value.last > value.producer {
            let bytes = i64::try_from(value.bytes).unwrap_or(i64::MAX);
            change[value.producer + 1] += bytes;
            change[value.last + 1] -= bytes;
        }
    }
    let mut across = 0_i64;
    let crossing: Vec<i64> = change
        .iter()
        .map(|change| {
            across += change;
            across
        })
        .collect();
    let total: u64 = read.iter().sum();
    let mut best = (vec![0], values.peak(&[0]));
    for halves in 1..=12 {
        let size = (total as f64 / 2_f64.powf(f64::from(halves) / 2.0)) as u64;
        let starts = divide(&read, &crossing, size.max(1));
        let peak = values.peak(&starts);
        if peak < best.1 {
            best = (starts, peak);
        }
    }
    best
}

/// Divides the nodes into segments of at most `size` bytes. Each ends in its second half, where the fewest bytes cross.
fn divide(read: &[u64], crossing: &[i64], size: u64) -> Vec<usize> {
    let mut starts = vec![0];
    let (mut start, mut middle, mut bytes) = (0, 0, 0);
    let mut at = 0;
    while at < read.len() {
        bytes += read[at];
        if bytes <= size / 2 {
            middle = at + 1;
        }
        if bytes <= size || at == start {
            at += 1;
            continue;
        }
        let candidates = middle.max(start + 1)..=at;
        let Some(next) = candidates.min_by_key(|next| (crossing[*next], usize::MAX - next)) else { break };
        starts.push(next);
        (start, middle, bytes, at) = (next, next, 0, next);
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a chain of nodes with values of 4 bytes. The backward pass uses all values, and all later nodes use the
    /// first.
    fn chain(nodes: usize) -> Values {
        let mut values = Values::new(nodes);
        for at in 0..nodes {
            values.add(&format!("{at}"), at, 4);
            values.read_back(&format!("{at}"));
            if at > 0 {
                values.read(&format!("{}", at - 1), at);
                values.read("0", at);
            }
        }
        values
    }

    #[test]
    fn the_memory_of_a_chain_grows_with_the_square_root_of_its_length() {
        let values = chain(100);
        let (starts, bytes) = choose(&values);
        assert!((7..16).contains(&starts.len()), "{starts:?}");
        assert_eq!(values.peak(&[0]), 400);
        assert!(bytes <= 4 * 24, "{bytes}");
        let kept = values.kept(&starts);
        assert!(kept.contains("0") && kept.contains("99"));
        assert!(starts[1..].iter().all(|start| kept.contains(format!("{}", start - 1).as_str())));
        assert!(kept.len() < 30, "{}", kept.len());
    }

    #[test]
    fn segments_end_where_few_bytes_cross() {
        // The values have 100 bytes, except those of every fifth node.
        let mut values = Values::new(20);
        for at in 0..20 {
            values.add(&format!("{at}"), at, if at % 5 == 4 { 1 } else { 100 });
            values.read_back(&format!("{at}"));
            if at > 0 {
                values.read(&format!("{}", at - 1), at);
            }
        }
        let (starts, _) = choose(&values);
        assert!(starts.len() > 1 && starts.iter().all(|start| start % 5 == 0), "{starts:?}");
    }

    #[test]
    fn a_pass_that_no_division_makes_smaller_is_not_divided() {
        let mut values = chain(4);
        (0..4).for_each(|at| values.keep(&format!("{at}")));
        assert_eq!(choose(&values), (vec![0], 16));
        assert_eq!(choose(&Values::new(0)), (vec![0], 0));
    }
}
