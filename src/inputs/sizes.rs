//! The sizes of symbolic dimensions that a network is run with, and whether such a run fits into memory.

use std::collections::{BTreeMap, BTreeSet};

use super::given::check_names;
use super::{InputOptions, Purpose};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::sizes::{Sizes, follow, sizes_for};
use crate::macs::memory::{Footprint, refuse_beyond};
use crate::runtime::available_memory;

/// Returns sets of sizes for the symbolic dimensions to run in turn; a single set if there are none. The first two sets
/// are the intended ones. The others replace them if the network refuses them: some networks declare a symbolic batch,
/// but accept one size only. No size exceeds `most`. The last set has exactly the sizes of `most`.
pub fn size_variants(analysis: &Analysis, given: &Sizes, most: &Sizes) -> Vec<Sizes> {
    let mut names = BTreeSet::new();
    for input in &analysis.graph.inputs {
        let shape = analysis.facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
        shape.into_iter().flatten().for_each(|dim| dim.symbols(&mut names));
    }
    let all = sizes_for(&analysis.facts, given);
    let base: Sizes = all.into_iter().filter(|(name, _)| names.contains(name)).collect();
    let is_free = |name: &String| !given.contains_key(name) && !analysis.facts.fixed.contains_key(name);
    let mut variants: Vec<Sizes> = Vec::new();
    let mut add = |size_of: &dyn Fn(&String, i64) -> i64| {
        let mut sizes = base.clone();
        for (name, size) in sizes.iter_mut().filter(|(name, _)| is_free(name)) {
            *size = size_of(name, *size).min(most.get(name).copied().unwrap_or(i64::MAX));
        }
        follow(&analysis.facts, given, &mut sizes);
        if !variants.contains(&sizes) {
            variants.push(sizes);
        }
    };
    // Batches of different size, and other sizes unchanged or doubled: this reveals a hard-coded size.
    for (batch, factor) in [(1, 1), (2, 2), (2, 1), (3, 1), (4, 1)] {
        add(&|_, size| if size == 1 { batch } else { size.saturating_mul(factor) });
    }
    if !most.is_empty() {
        add(&|name, size| most.get(name).copied().unwrap_or(size));
    }
    variants
}

/// Returns the sets of sizes whose runs fit into memory, with their numbers among all sets.
///
/// # Errors
/// Fails if a name matches no input of the graph, or if no set of sizes fits into memory.
pub fn affordable_sizes(analysis: &Analysis, options: &InputOptions<'_>) -> Result<Vec<(usize, Sizes)>, Error> {
    affordable_within(available_memory(), analysis, options)
}

pub(super) fn affordable_within(
    available: Option<u64>,
    analysis: &Analysis,
    options: &InputOptions<'_>,
) -> Result<Vec<(usize, Sizes)>, Error> {
    let given = options.inputs.unwrap_or_default();
    check_names(&analysis.model, &analysis.graph, given)?;
    let mut fixed = options.sizes.clone();
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    for (name, array) in given {
        for (axis, (dim, size)) in shape_of(analysis, name).into_iter().flatten().zip(&array.dims).enumerate() {
            if let (Some(symbol), Ok(size)) = (dim.as_symbol(), i64::try_from(*size)) {
                match axis {
                    0 => rows.entry(symbol).and_modify(|rows| *rows = (*rows).min(size)).or_insert(size),
                    _ => fixed.entry(symbol).or_insert(size),
                };
            }
        }
    }
    rows.retain(|symbol, size| *size > 0 && !fixed.contains_key(symbol));
    let (mut sizes, mut least) = (Vec::new(), None);
    for (number, variant) in size_variants(analysis, &fixed, &rows).into_iter().enumerate() {
        let footprint = Footprint::of(&analysis.model, &analysis.graph, &analysis.facts, &variant)?;
        let needed = options.purpose.needed(&footprint);
        if available.is_none_or(|available| needed <= available) {
            sizes.push((number, variant));
        } else if least.as_ref().is_none_or(|(bytes, _)| needed < *bytes) {
            least = Some((needed, variant));
        }
    }
    match least.filter(|_| sizes.is_empty()) {
        None => Ok(sizes),
        Some((needed, variant)) => Err(too_large(available, analysis, options.purpose, needed, &variant)),
    }
}

/// Returns the error for a run that does not fit into memory at any of the sizes.
fn too_large(available: Option<u64>, analysis: &Analysis, purpose: Purpose, needed: u64, sizes: &Sizes) -> Error {
    let shapes: Vec<String> = analysis
        .graph
        .inputs
        .iter()
        .filter_map(|input| {
            let shape = analysis.facts.values[*input].as_ref()?.shape.as_ref()?;
            let dims: Vec<String> =
                shape.iter().map(|dim| dim.eval(sizes).map_or("?".to_owned(), |n| n.to_string())).collect();
            Some(format!("{} [{}]", analysis.graph.values[*input].name, dims.join(", ")))
        })
        .collect();
    let what = format!("{} at {}", purpose.describe(), shapes.join(" and "));
    let error = match refuse_beyond(available, needed, &what) {
        Err(error) => error,
        Ok(()) => Error::unmet(what),
    };
    let otherwise = match purpose {
        Purpose::Verification => "run on a machine with more memory, or skip verification with --no-verify",
        Purpose::Timing => "skip timing with --no-latency",
    };
    let hint = match sizes.is_empty() {
        true => format!("the model fixes all sizes of its inputs, so smaller inputs are not possible; {otherwise}"),
        false => format!("use smaller sizes with --size, or {otherwise}"),
    };
    error.in_file(analysis.model.path()).hint(hint)
}

/// Returns the declared shape of an input.
pub(super) fn shape_of<'a>(analysis: &'a Analysis, name: &str) -> Option<&'a Vec<Dim>> {
    analysis.facts.values[analysis.graph.value(name)?].as_ref()?.shape.as_ref()
}
