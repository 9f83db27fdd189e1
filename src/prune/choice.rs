//! Scores the channels and chooses which of them to remove.

use std::collections::BTreeSet;

use super::barriers;
use super::options::{CriterionOption, CutOptions, PruneOptions, ScoreOptions, Target};
use crate::analysis::Analysis;
use crate::couple::group::{ChannelGroup, Component, Grouping, Member, Role};
use crate::error::Error;
use crate::gradient::accumulate::Accumulated;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;
use crate::operator::couple::kept::Kept;
use crate::runtime::Runtime;
use crate::score::{Criterion, GradientCriterion, GroupScores, Magnitude, Random, ScoreCx, score_groups};
use crate::select::{Across, Budget, Removed, Scope, order, select};

/// One grouping with the scores of its channels.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) grouping: Grouping,
    pub(super) scores: Vec<Vec<f64>>,
    /// By group, the criterion that ranks it instead of the requested one. `None`: the requested one.
    pub(super) fallback: Vec<Option<&'static str>>,
    /// Groups that an earlier pass has pruned already.
    pub(super) done: Vec<bool>,
    /// By group, the loss that each of its channels adds when it is removed, comparable between groups. Empty if it was
    /// not measured.
    pub(super) losses: Vec<Option<Vec<f64>>>,
}

impl Scored {
    fn remove(&self, analysis: &Analysis, options: &CutOptions, (ratio, across): (f64, &Across)) -> Removed {
        let mut ratios = ratios(analysis, &self.grouping, options, ratio);
        for (ratio, done) in ratios.iter_mut().zip(&self.done) {
            if *done {
                *ratio = 0.0;
            }
        }
        let (scope, round_to, max_ratio) = (options.scope, options.round_to, options.max_ratio);
        let across = across.clone();
        let (evens_blocks, round_heads_to) = (options.evens_norm_groups, options.round_heads_to);
        select(
            &self.grouping,
            &self.scores,
            &Budget { ratios, scope, round_to, round_heads_to, evens_blocks, max_ratio, across },
        )
    }

    /// Returns what global scope compares: the losses, and for each component how many parameters or MACs its first
    /// step saves.
    fn across(&self, analysis: &Analysis, options: &CutOptions, sizes: &Sizes) -> Across {
        if options.scope == Scope::Local {
            return Across::default();
        }
        let count = |kept: Option<&Kept>| {
            analysis.count(|counter| match options.target {
                Target::Params(_) => counter.parameters(kept) as f64,
                _ => counter.macs(kept, sizes).0,
            })
        };
        let before = count(None);
        let Grouping { groups, components, classes, .. } = &self.grouping;
        let saving = |component: &Component| {
            let mut gone = BTreeSet::new();
            for group in component.groups.iter().copied().filter(|group| groups[*group].fixed.is_none()) {
                let step = groups[group].channels.len() / component.unit.max(1);
                let order = order(&self.grouping, group, &self.scores[group]);
                gone.extend(order.into_iter().take(step).map(|at| groups[group].channels[at]));
            }
            if gone.is_empty() {
                return 0.0;
            }
            let kept = Kept::without(&analysis.coupling.spaces, classes, &|class| gone.contains(&class));
            before - count(Some(&kept))
        };
        Across { losses: self.losses.clone(), savings: components.iter().map(saving).collect() }
    }
}

/// The scores of all groups, by pass.
#[derive(Debug)]
pub(super) struct Scoring {
    pub(super) passes: Vec<Scored>,
    /// The name of the criterion.
    pub(super) criterion: &'static str,
    pub(super) warnings: Vec<String>,
}

/// The channels that a cut removes, before the graph is rewritten.
pub(super) struct Choice {
    pub(super) removed: Vec<Removed>,
    pub(super) kept: Kept,
    pub(super) ratio: f64,
}

/// Returns the input of criteria, and the groups of all these groupings. Computes those weights of groups that may
/// shrink which the graph computes from constants.
///
/// # Errors
/// Fails if a weight can't be computed.
pub(super) fn members<'a>(
    analysis: &'a Analysis,
    groupings: &[Grouping],
    runtime: Option<&Runtime>,
) -> Result<(ScoreCx<'a>, Vec<ChannelGroup>), Error> {
    let cx = ScoreCx {
        model: &analysis.model,
        graph: &analysis.graph,
        operators: &analysis.operators,
        fold: &analysis.fold,
        coupling: &analysis.coupling,
    };
    let all: Vec<_> = groupings.iter().flat_map(|grouping| grouping.groups.iter().cloned()).collect();
    let shrinking = all.iter().filter(|group| group.fixed.is_none()).flat_map(|group| &group.members);
    let shrinking: BTreeSet<usize> = shrinking.map(|member| analysis.coupling.uses[member.weight].value).collect();
    analysis.fold.evaluate(&analysis.model, &analysis.graph, runtime, &|value| shrinking.contains(&value))?;
    Ok((cx, all))
}

/// Scores all groups. The gradient criteria need `gradients`: the sums, and the number of elements of one sample.
///
/// # Errors
/// Fails if a weight can't be read, or if nothing can be pruned.
pub(super) fn score(
    analysis: &Analysis,
    options: &ScoreOptions,
    gradients: Option<(&Accumulated, f64)>,
    runtime: Option<&Runtime>,
) -> Result<Scoring, Error> {
    let groupings = analysis.groupings(options.attention, options.norm_groups);
    let (cx, all) = members(analysis, &groupings, runtime)?;
    let criterion = criterion(&cx, &all, options, gradients)?;
    let mut passes: Vec<Scored> = Vec::new();
    let mut unranked = Vec::new();
    for grouping in groupings {
        let mut warn = |group: &ChannelGroup, text: String| {
            let text = format!("channel group {:?}: {text}", analysis.group_name(&group.members));
            if !unranked.contains(&text) {
                unranked.push(text);
            }
        };
        let by_magnitude = (options.norm, options.reduction);
        let of_groups = score_groups(&cx, &grouping.groups, criterion.as_ref(), by_magnitude, &mut warn)?;
        let GroupScores { scores, fallback } = of_groups;
        let done = grouping.groups.iter().map(|group| {
            passes.iter().any(|earlier| {
                earlier.grouping.groups.iter().any(|other| is_same_group(&other.members, &group.members))
            })
        });
        let done = done.collect();
        passes.push(Scored { grouping, scores, fallback, done, losses: Vec::new() });
    }
    if passes.iter().all(|scored| scored.grouping.groups.iter().all(|group| group.fixed.is_some())) {
        return Err(nothing_to_prune(analysis, &passes));
    }
    let mut warnings = criterion.warnings();
    warnings.extend(unranked);
    Ok(Scoring { criterion: criterion.name(), warnings, passes })
}

/// Chooses the channels to remove.
///
/// # Errors
/// Fails if a target can't be met.
pub(super) fn choose(
    analysis: &Analysis,
    scoring: &Scoring,
    options: &CutOptions,
    sizes: &Sizes,
) -> Result<Choice, Error> {
    let scored = &scoring.passes;
    let sizes = sizes_for(&analysis.facts, sizes);
    let across: Vec<Across> = scored.iter().map(|scored| scored.across(analysis, options, &sizes)).collect();
    let removed_at = |ratio: f64| -> Vec<Removed> {
        let passes = scored.iter().zip(&across);
        passes.map(|(scored, across)| scored.remove(analysis, options, (ratio, across))).collect()
    };
    let ratio = match options.target {
        Target::Ratio(ratio) => ratio,
        Target::Macs(share) | Target::Params(share) => {
            let before = analysis.count(|counter| counter.cost(None, &sizes));
            search_ratio(analysis, options, share, &before, &|ratio| {
                let kept = kept_of(analysis, scored, &removed_at(ratio));
                analysis.count(|counter| match options.target {
                    Target::Params(_) => counter.parameters(Some(&kept)) as f64 / before.parameters as f64,
                    _ => counter.macs(Some(&kept), &sizes).0 / before.macs,
                })
            })?
        }
    };
    let removed = removed_at(ratio);
    let kept = kept_of(analysis, scored, &removed);
    Ok(Choice { removed, kept, ratio })
}

/// Returns the channels that a cut with these gradients would remove, one entry per channel of every group.
///
/// # Errors
/// Same as [`score`] and [`choose`].
pub(super) fn selection(
    analysis: &Analysis,
    options: &PruneOptions,
    gradients: (&Accumulated, f64),
    runtime: Option<&Runtime>,
) -> Result<Vec<Removed>, Error> {
    let scoring = score(analysis, &options.score, Some(gradients), runtime)?;
    Ok(choose(analysis, &scoring, &options.cut, &options.score.sizes)?.removed)
}

/// Returns the requested ratio of each group.
fn ratios(analysis: &Analysis, grouping: &Grouping, options: &CutOptions, ratio: f64) -> Vec<f64> {
    grouping
        .groups
        .iter()
        .map(|group| {
            if options.keep.iter().any(|pattern| analysis.matches(&group.members, pattern)) {
                return 0.0;
            }
            let own = options.ratio_for.iter().rev().find(|(pattern, _)| analysis.matches(&group.members, pattern));
            own.map_or(ratio, |(_, ratio)| *ratio)
        })
        .collect()
}

fn kept_of(analysis: &Analysis, scored: &[Scored], removed: &[Removed]) -> Kept {
    let mut kept: Option<Kept> = None;
    for (scored, removed) in scored.iter().zip(removed) {
        let mut gone = BTreeSet::new();
        for (group, removed) in scored.grouping.groups.iter().zip(removed) {
            gone.extend(group.channels.iter().zip(removed).filter(|(_, removed)| **removed).map(|(class, _)| *class));
        }
        let pass = Kept::without(&analysis.coupling.spaces, &scored.grouping.classes, &|class| gone.contains(&class));
        kept = Some(match kept {
            None => pass,
            Some(other) => other.and(&pass),
        });
    }
    kept.unwrap_or_else(|| Kept::without(&analysis.coupling.spaces, &analysis.coupling.spaces.classes(), &|_| false))
}

fn criterion(
    cx: &ScoreCx<'_>,
    groups: &[ChannelGroup],
    options: &ScoreOptions,
    gradients: Option<(&Accumulated, f64)>,
) -> Result<Box<dyn Criterion>, Error> {
    Ok(match (options.criterion, gradients) {
        (CriterionOption::Magnitude, _) => Box::new(Magnitude::new(cx, groups, options.norm, options.reduction)?),
        (CriterionOption::Random, _) => Box::new(Random { seed: options.seed }),
        (_, None) => {
            let text = "the criterion needs gradients, which were not computed";
            return Err(Error::usage(text).hint("pass gradients, or use the criterion magnitude or random"));
        }
        (CriterionOption::DiffPruning | CriterionOption::Taylor | CriterionOption::Hessian, Some(gradients)) => {
            let (sums, image_elements) = gradients;
            Box::new(GradientCriterion::new(cx, groups, sums, &options.gradient_form(image_elements))?)
        }
    })
}

fn is_same_group(a: &[Member], b: &[Member]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.weight == b.weight && a.axis == b.axis && a.indices == b.indices)
}

fn nothing_to_prune(analysis: &Analysis, scored: &[Scored]) -> Error {
    // Channels that a layer produces are the better example; channels that are only consumed often belong to a network
    // input.
    let is_made = |group: &&ChannelGroup| group.members.iter().any(|member| member.role == Role::Producer);
    let groups = || scored.iter().flat_map(|scored| &scored.grouping.groups);
    let first = groups().find(is_made).or(groups().next()).and_then(|group| {
        let reason = group.fixed.as_ref()?;
        Some(format!("{}: {} (node {:?})", analysis.group_name(&group.members), reason.text, reason.node))
    });
    let example = barriers::example(analysis).or(first);
    let example = example.map_or_else(String::new, |example| format!("; for example {example}"));
    Error::unmet(format!("nothing can be pruned: every channel group must keep all of its channels{example}"))
        .in_file(analysis.model.path())
        .hint("inspect lists all channel groups and why they are kept")
}

/// Searches for the smallest ratio that keeps at most `share` of the parameters or MACs.
fn search_ratio(
    analysis: &Analysis,
    options: &CutOptions,
    share: f64,
    before: &Cost,
    share_at: &dyn Fn(f64) -> f64,
) -> Result<f64, Error> {
    let what = if matches!(options.target, Target::Params(_)) { "parameters" } else { "MACs" };
    if before.macs == 0.0 || before.parameters == 0 {
        return Err(Error::unmet(format!("the network has no {what} to count")).in_file(analysis.model.path()));
    }
    let (mut low, mut high) = (0.0, 1.0);
    let least = share_at(high);
    if least > share {
        let text = format!(
            "can't reach {} % of the {what}: the largest possible cut keeps {:.1} %",
            // As many digits as were requested, without those that only binary fractions have.
            ((share * 1e8).round() / 1e6),
            least * 100.0
        );
        return Err(Error::unmet(text)
            .in_file(analysis.model.path())
            .hint("set a larger target; --keep, --ratio-for, --max-ratio and --round-to limit what can be removed"));
    }
    for _ in 0..24 {
        let middle = (low + high) / 2.0;
        if share_at(middle) > share { low = middle } else { high = middle }
    }
    Ok(high)
}
