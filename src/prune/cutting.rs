//! Makes a cut: selection, the smaller graph, and the plan.

use regex::Regex;

use super::barriers;
use super::choice::{Choice, Scored, Scoring, choose, score};
use super::describe::make_plan;
use super::options::{CutOptions, PruneOptions};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;
use crate::operator::couple::kept::Kept;
use crate::plan::Plan;
use crate::rewrite::{Rewritten, rewrite};
use crate::runtime::Runtime;

/// A cut, ready to be written.
#[derive(Debug)]
pub struct Cutting {
    /// The kept indices.
    pub kept: Kept,
    /// The rewritten model.
    pub rewritten: Rewritten,
    /// The plan.
    pub plan: Plan,
    /// The cost of the original.
    pub before: Cost,
    /// The cost of the pruned network.
    pub after: Cost,
    /// The sizes of symbolic dimensions at which costs were counted.
    pub sizes: Sizes,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// The channel ratio of the cut.
    pub ratio: f64,
}

/// Warns of patterns that match no channel group: they are probably misspelt.
fn unmatched(analysis: &Analysis, passes: &[Scored], options: &CutOptions) -> Vec<String> {
    let keep = options.keep.iter().map(|pattern| ("--keep", pattern));
    let ratios = options.ratio_for.iter().map(|(pattern, _)| ("--ratio-for", pattern));
    let matches = |pattern: &Regex| {
        let mut groups = passes.iter().flat_map(|scored| &scored.grouping.groups);
        groups.any(|group| analysis.matches(&group.members, pattern))
    };
    let unmatched = keep.chain(ratios).filter(|(_, pattern)| !matches(pattern));
    let text = |(option, pattern): (&str, &Regex)| {
        format!(
            "{option} {:?} has no effect: no weight or node of a channel group has a matching name (inspect --members \
             lists these names)",
            pattern.as_str()
        )
    };
    unmatched.map(text).collect()
}

/// Scores, selects and rewrites with a criterion that needs only the weights.
///
/// # Errors
/// Fails if a weight can't be read, a target can't be met, or nothing can be pruned.
pub fn cut(analysis: &Analysis, options: &PruneOptions, runtime: Option<&Runtime>) -> Result<Cutting, Error> {
    let scoring = score(analysis, &options.score, None, runtime)?;
    cut_scored(analysis, &scoring, options)
}

/// Selects and rewrites.
///
/// # Errors
/// Fails if a target can't be met, nothing can be pruned, or a node can't express the cut.
pub(super) fn cut_scored(analysis: &Analysis, scoring: &Scoring, options: &PruneOptions) -> Result<Cutting, Error> {
    let sizes = sizes_for(&analysis.facts, &options.score.sizes);
    let Choice { removed, kept, ratio } = choose(analysis, scoring, &options.cut, &options.score.sizes)?;
    let mut warnings = analysis.model.notes().to_vec();
    warnings.extend(scoring.warnings.iter().cloned());
    let before = analysis.count(|counter| counter.cost(None, &sizes));
    let is_asked = ratio > 0.0 || options.cut.ratio_for.iter().any(|(_, ratio)| *ratio > 0.0);
    if is_asked && removed.iter().flatten().flatten().all(|removed| !removed) {
        return Err(Error::unmet(format!("no channel can be removed at ratio {ratio:.3}"))
            .in_file(analysis.model.path())
            .hint(
                "raise the ratio, lower --round-to or use --norm-groups drop; --keep, --ratio-for and --max-ratio also \
                 limit what can be removed; inspect lists the groups",
            ));
    }
    let rewritten = rewrite(analysis, &kept)?;
    let after = analysis.count(|counter| counter.cost(Some(&kept), &sizes));
    for scored in &scoring.passes {
        if let [first, others @ ..] = scored.grouping.dropped.as_slice() {
            let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            warnings.push(format!(
                "norm {first:?}{others}: can't remove the same number of channels from each norm group; removes whole norm groups instead"
            ));
        }
    }
    warnings.extend(unmatched(analysis, &scoring.passes, &options.cut));
    warnings.extend(barriers::warnings(analysis));
    warnings.extend(rewritten.warnings());
    let plan = make_plan(analysis, options, (scoring.criterion, ratio), &scoring.passes, &removed, &rewritten)?;
    Ok(Cutting { kept, rewritten, plan, before, after, sizes, warnings, ratio })
}
