//! The stages in order: load → graph → infer → fold → couple → importance → select → rewrite. Writing and verification take
//! what comes out of here.

mod apply;
mod describe;
mod gradients;
mod options;

use std::collections::BTreeSet;

use crate::couple::group::{ChannelGroup, Grouping, Member};
use crate::error::Error;
use crate::gradient::accumulate::Accumulated;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::macs::Cost;
use crate::operator::couple::kept::Kept;
use crate::plan::Plan;
use crate::rewrite::{Rewritten, rewrite};
use crate::score::{Criterion, GradientCriterion, Magnitude, Random, ScoreCx, score_groups};
use crate::select::{Budget, Removed, select};

pub use crate::analysis::{Analysis, analyse};
pub use crate::couple::options::{AttentionOption, NormGroups};
use crate::runtime::Runtime;
pub use apply::apply;
use describe::make_plan;
pub use gradients::{
    ADAPTIVE_CHECKS, ADAPTIVE_EVERY, GradientInputs, GradientRun, GradientSettings, GradientStep, gradients,
};
pub use options::{CriterionOption, PruneOptions, Target};

/// A cut, ready to be written.
#[derive(Debug)]
pub struct Cut {
    /// What survives.
    pub kept: Kept,
    /// The rewritten model.
    pub rewritten: Rewritten,
    /// The plan.
    pub plan: Plan,
    /// Costs before and after at the sizes used for counting.
    pub before: Cost,
    /// Costs after.
    pub after: Cost,
    /// The sizes of symbolic dimensions at which costs were counted.
    pub sizes: Sizes,
    /// Things that the user should know.
    pub warnings: Vec<String>,
    /// The channel ratio that was used.
    pub ratio: f64,
}

/// The share of channels of each group that the options ask for.
fn ratios(analysis: &Analysis, grouping: &Grouping, options: &PruneOptions, ratio: f64) -> Vec<f64> {
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

/// One grouping with the scores of its channels.
struct Scored {
    grouping: Grouping,
    scores: Vec<Vec<f64>>,
    /// Groups that an earlier pass has pruned already.
    done: Vec<bool>,
}

impl Scored {
    fn remove(&self, analysis: &Analysis, options: &PruneOptions, ratio: f64) -> Removed {
        let mut ratios = ratios(analysis, &self.grouping, options, ratio);
        for (ratio, done) in ratios.iter_mut().zip(&self.done) {
            if *done {
                *ratio = 0.0;
            }
        }
        let (scope, round_to, max_ratio) = (options.scope, options.round_to, options.max_ratio);
        select(&self.grouping, &self.scores, &Budget { ratios, scope, round_to, max_ratio })
    }
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

/// What a cut takes away, before anything is rewritten.
struct Choice {
    scored: Vec<Scored>,
    removed: Vec<Removed>,
    kept: Kept,
    ratio: f64,
    criterion: &'static str,
    warnings: Vec<String>,
}

fn criterion(
    cx: &ScoreCx<'_>,
    groups: &[ChannelGroup],
    options: &PruneOptions,
    gradients: Option<&Accumulated>,
) -> Result<Box<dyn Criterion>, Error> {
    Ok(match (options.criterion, gradients) {
        (CriterionOption::Magnitude, _) => Box::new(Magnitude::new(cx, groups, options.norm, options.reduction)?),
        (CriterionOption::Random, _) => Box::new(Random { seed: options.seed }),
        (_, None) => {
            let text = "the criterion scores by gradients, which were not computed";
            return Err(Error::usage(text).hint("pass gradients, or choose magnitude or random"));
        }
        (CriterionOption::DiffPruning | CriterionOption::Taylor | CriterionOption::Hessian, Some(gradients)) => {
            Box::new(GradientCriterion::new(cx, groups, gradients, &options.gradient_form())?)
        }
    })
}

fn choose(
    analysis: &Analysis,
    options: &PruneOptions,
    gradients: Option<&Accumulated>,
    runtime: Option<&Runtime>,
) -> Result<Choice, Error> {
    let cx = ScoreCx {
        model: &analysis.model,
        graph: &analysis.graph,
        operators: &analysis.operators,
        fold: &analysis.fold,
        coupling: &analysis.coupling,
    };
    let groupings = analysis.groupings(options.attention, options.norm_groups);
    let all: Vec<_> = groupings.iter().flat_map(|grouping| grouping.groups.iter().cloned()).collect();
    let shrinking = all.iter().filter(|group| group.fixed.is_none()).flat_map(|group| &group.members);
    let shrinking: BTreeSet<usize> = shrinking.map(|member| analysis.coupling.uses[member.weight].value).collect();
    analysis.fold.evaluate(&analysis.model, &analysis.graph, runtime, &|value| shrinking.contains(&value))?;
    let criterion = criterion(&cx, &all, options, gradients)?;
    let mut scored: Vec<Scored> = Vec::new();
    for grouping in groupings {
        let scores = score_groups(&cx, &grouping, criterion.as_ref())?;
        let done = grouping.groups.iter().map(|group| {
            scored.iter().any(|earlier| {
                earlier.grouping.groups.iter().any(|other| is_same_group(&other.members, &group.members))
            })
        });
        let done = done.collect();
        scored.push(Scored { grouping, scores, done });
    }
    if scored.iter().all(|scored| scored.grouping.groups.iter().all(|group| group.fixed.is_some())) {
        return Err(nothing_to_prune(analysis, &scored));
    }
    let removed_at =
        |ratio: f64| -> Vec<Removed> { scored.iter().map(|scored| scored.remove(analysis, options, ratio)).collect() };
    let ratio = match options.target {
        Target::Ratio(ratio) => ratio,
        Target::Macs(share) | Target::Params(share) => {
            let sizes = sizes_for(&analysis.facts, &options.sizes);
            let before = analysis.count(|counter| counter.cost(None, &sizes));
            search_ratio(analysis, options, share, &before, &|ratio| {
                let kept = kept_of(analysis, &scored, &removed_at(ratio));
                analysis.count(|counter| match options.target {
                    Target::Params(_) => counter.parameters(Some(&kept)) as f64 / before.parameters as f64,
                    _ => counter.macs(Some(&kept), &sizes).0 / before.macs,
                })
            })?
        }
    };
    let removed = removed_at(ratio);
    let kept = kept_of(analysis, &scored, &removed);
    let (criterion, warnings) = (criterion.name(), criterion.warnings());
    Ok(Choice { scored, removed, kept, ratio, criterion, warnings })
}

/// The channels that a cut by these gradients would remove, one entry per channel of every group.
///
/// # Errors
/// As [`cut`].
pub fn selection(
    analysis: &Analysis,
    options: &PruneOptions,
    gradients: &Accumulated,
    runtime: Option<&Runtime>,
) -> Result<Vec<Removed>, Error> {
    choose(analysis, options, Some(gradients), runtime).map(|choice| choice.removed)
}

/// Scores, selects and rewrites, by a criterion that looks at the weights alone.
///
/// # Errors
/// A weight that can't be read, a target that can't be met, nothing that can be pruned.
pub fn cut(analysis: &Analysis, options: &PruneOptions, runtime: Option<&Runtime>) -> Result<Cut, Error> {
    cut_by(analysis, options, None, runtime)
}

/// Scores, selects and rewrites; the gradient criteria need `gradients`.
///
/// # Errors
/// A weight that can't be read, a target that can't be met, nothing that can be pruned.
pub fn cut_by(
    analysis: &Analysis,
    options: &PruneOptions,
    gradients: Option<&Accumulated>,
    runtime: Option<&Runtime>,
) -> Result<Cut, Error> {
    let Choice { scored, removed, kept, ratio, criterion, mut warnings } =
        choose(analysis, options, gradients, runtime)?;
    let sizes = sizes_for(&analysis.facts, &options.sizes);
    let before = analysis.count(|counter| counter.cost(None, &sizes));
    let is_asked = ratio > 0.0 || options.ratio_for.iter().any(|(_, ratio)| *ratio > 0.0);
    if is_asked && removed.iter().flatten().flatten().all(|removed| !removed) {
        return Err(Error::unmet(format!("nothing can be pruned at ratio {ratio}"))
            .in_file(analysis.model.path())
            .hint("a larger --ratio, a smaller --round-to or --norm-groups drop may help; inspect shows the groups"));
    }
    let rewritten = rewrite(analysis, &kept)?;
    let after = analysis.count(|counter| counter.cost(Some(&kept), &sizes));
    for scored in &scored {
        if let [first, others @ ..] = scored.grouping.dropped.as_slice() {
            let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            warnings.push(format!(
                "norm {first:?}{others} can't lose the same number of channels from each of its groups; whole groups go"
            ));
        }
    }
    for barrier in &analysis.coupling.barriers {
        let node = &analysis.graph.nodes[barrier.node];
        warnings.push(format!("node {:?} ({}) keeps all channels it touches: {}", node.name, node.op(), barrier.cause));
    }
    let plan = make_plan(analysis, options, (criterion, ratio), &scored, &removed, &rewritten)?;
    Ok(Cut { kept, rewritten, plan, before, after, sizes, warnings, ratio })
}

fn is_same_group(a: &[Member], b: &[Member]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.weight == b.weight && a.axis == b.axis && a.indices == b.indices)
}

fn nothing_to_prune(analysis: &Analysis, scored: &[Scored]) -> Error {
    let first = scored.iter().flat_map(|scored| &scored.grouping.groups).find_map(|group| {
        let reason = group.fixed.as_ref()?;
        Some(format!("{}: {} (node {:?})", analysis.group_name(&group.members), reason.text, reason.node))
    });
    let barrier = analysis.coupling.barriers.first().map(|barrier| {
        let node = &analysis.graph.nodes[barrier.node];
        format!("node {:?} ({}): {}", node.name, node.op(), barrier.cause)
    });
    let example = first.or(barrier).map_or_else(String::new, |example| format!("; for example {example}"));
    Error::unmet(format!("nothing can be pruned: no channel group of the network may shrink{example}"))
        .in_file(analysis.model.path())
}

/// The smallest ratio that leaves at most `share`.
fn search_ratio(
    analysis: &Analysis,
    options: &PruneOptions,
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
            "expected {} % of the {what}, the most that can go leaves {:.1} %",
            // As many digits as were asked for, without those that only binary fractions have.
            ((share * 1e8).round() / 1e6),
            least * 100.0
        );
        return Err(Error::unmet(text).in_file(analysis.model.path()));
    }
    for _ in 0..24 {
        let middle = (low + high) / 2.0;
        if share_at(middle) > share { low = middle } else { high = middle }
    }
    Ok(high)
}
