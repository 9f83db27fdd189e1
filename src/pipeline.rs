//! The stages in order: load → graph → infer → couple → importance → select → rewrite. Writing and verification take
//! what comes out of here.

use std::collections::BTreeSet;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::couple::group::{Grouping, Member, Role, group};
use crate::couple::resolve::Attention;
use crate::couple::{Coupling, couple};
use crate::error::Error;
use crate::graph::Graph;
use crate::importance::{Criterion, GroupReduction, Magnitude, Norm, Random, ScoreCx, score_groups};
use crate::infer::{Facts, infer};
use crate::kept::Kept;
use crate::load::Model;
use crate::macs::{Cost, Counter, Sizes, sizes_for};
use crate::plan::{GroupPlan, MemberPlan, Plan, SCHEMA, options_record, tensor_plans};
use crate::rewrite::{Rewritten, rewrite};
use crate::select::{Budget, Removed, Scope, select};

/// What may shrink in attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum AttentionOption {
    /// Whole heads where there is more than one, else head dimensions.
    #[default]
    Heads,
    /// Head dimensions, the same of every head.
    Dims,
    /// Heads and dimensions, each by the ratio.
    Both,
    /// Nothing.
    None,
}

/// What happens to norm groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum NormGroups {
    /// Their number stays; each loses equally many channels.
    #[default]
    Keep,
    /// Their size stays; whole groups go.
    Drop,
}

/// Which criterion scores the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum CriterionOption {
    /// The norm of the weights.
    #[default]
    Magnitude,
    /// Random scores.
    Random,
}

/// How much goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of the channels of every group.
    Ratio(f64),
    /// Whatever ratio leaves this share of the multiply-accumulate operations.
    Macs(f64),
    /// Whatever ratio leaves this share of the parameters.
    Params(f64),
}

/// Everything that decides a cut.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// How much goes.
    pub target: Target,
    /// Ranking within groups or among all.
    pub scope: Scope,
    /// Surviving channels of every group are a multiple of this.
    pub round_to: usize,
    /// No group loses a larger share.
    pub max_ratio: f64,
    /// Groups with a weight or node of a matching name stay.
    pub keep: Vec<Regex>,
    /// Groups with a weight or node of a matching name have a ratio of their own; the last match counts.
    pub ratio_for: Vec<(Regex, f64)>,
    /// What happens to norm groups.
    pub norm_groups: NormGroups,
    /// What may shrink in attention.
    pub attention: AttentionOption,
    /// Which criterion scores.
    pub criterion: CriterionOption,
    /// The norm of the magnitude criterion.
    pub norm: Norm,
    /// How members make one score.
    pub reduction: GroupReduction,
    /// The seed of everything random.
    pub seed: u64,
    /// Sizes of symbolic dimensions, for counting.
    pub sizes: Sizes,
}

impl PruneOptions {
    /// The defaults with a target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            scope: Scope::Local,
            round_to: 1,
            max_ratio: 1.0,
            keep: Vec::new(),
            ratio_for: Vec::new(),
            norm_groups: NormGroups::Keep,
            attention: AttentionOption::Heads,
            criterion: CriterionOption::Magnitude,
            norm: Norm::L2,
            reduction: GroupReduction::Sum,
            seed: 0,
            sizes: Sizes::new(),
        }
    }
}

/// A model with its graph, shapes and coupling.
#[derive(Debug)]
pub struct Analysis<'m> {
    /// The model.
    pub model: &'m Model,
    /// Its graph.
    pub graph: Graph,
    /// What is known of its values.
    pub facts: Facts,
    /// Its coupling, not yet resolved.
    pub coupling: Coupling,
}

/// Builds the graph of a model, infers shapes and couples channels.
///
/// # Errors
/// The model contradicts itself.
pub fn analyse(model: &Model) -> Result<Analysis<'_>, Error> {
    let graph = Graph::new(model)?;
    let facts = infer(model, &graph)?;
    let coupling = couple(&graph, &facts, &|value| graph.constant(model, value).is_some());
    Ok(Analysis { model, graph, facts, coupling })
}

impl Analysis<'_> {
    /// The groupings that an attention option asks for, in the order in which they are pruned.
    pub fn groupings(&self, attention: AttentionOption, norm_groups: NormGroups) -> Vec<Grouping> {
        let passes: &[Attention] = match attention {
            AttentionOption::Heads => &[Attention::Heads],
            AttentionOption::Dims => &[Attention::Dims],
            AttentionOption::Both => &[Attention::Heads, Attention::Dims],
            AttentionOption::None => &[Attention::None],
        };
        passes.iter().map(|attention| group(&self.coupling, *attention, norm_groups == NormGroups::Drop)).collect()
    }

    /// Calls `with` with a counter of this network.
    pub fn count<T>(&self, with: impl FnOnce(&Counter<'_>) -> T) -> T {
        let is_constant = |value: usize| self.graph.constant(self.model, value).is_some();
        let (graph, facts, coupling) = (&self.graph, &self.facts, &self.coupling);
        with(&Counter { graph, facts, coupling, is_constant: &is_constant })
    }

    /// The name by which a group is shown: the weight that produces it, else its first.
    pub fn group_name(&self, members: &[Member]) -> String {
        let producer = members.iter().find(|member| member.role == Role::Producer).or(members.first());
        producer.map_or_else(String::new, |member| self.weight_name(member))
    }

    /// The name of a member's constant; of the node where an exporter gave the constant a mere number.
    pub fn weight_name(&self, member: &Member) -> String {
        let weight = &self.coupling.uses[member.weight];
        self.graph.values[weight.value].name.clone()
    }

    /// Whether a pattern matches a weight of the group or a node that reads one.
    fn matches(&self, members: &[Member], pattern: &Regex) -> bool {
        members.iter().any(|member| {
            let weight = &self.coupling.uses[member.weight];
            pattern.is_match(&self.graph.values[weight.value].name)
                || pattern.is_match(&self.graph.nodes[weight.node].name)
        })
    }
}

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
fn ratios(analysis: &Analysis<'_>, grouping: &Grouping, options: &PruneOptions, ratio: f64) -> Vec<f64> {
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
    fn remove(&self, analysis: &Analysis<'_>, options: &PruneOptions, ratio: f64) -> Removed {
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

fn kept_of(analysis: &Analysis<'_>, scored: &[Scored], removed: &[Removed]) -> Kept {
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

/// Scores, selects and rewrites.
///
/// # Errors
/// A weight that can't be read, a target that can't be met, nothing that can be pruned.
pub fn cut(analysis: &Analysis<'_>, options: &PruneOptions) -> Result<Cut, Error> {
    let cx = ScoreCx { model: analysis.model, graph: &analysis.graph, coupling: &analysis.coupling };
    let groupings = analysis.groupings(options.attention, options.norm_groups);
    let all: Vec<_> = groupings.iter().flat_map(|grouping| grouping.groups.iter().cloned()).collect();
    let criterion: Box<dyn Criterion> = match options.criterion {
        CriterionOption::Magnitude => Box::new(Magnitude::new(&cx, &all, options.norm, options.reduction)?),
        CriterionOption::Random => Box::new(Random { seed: options.seed }),
    };
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
    if scored.iter().all(|scored| scored.grouping.groups.iter().all(|group| group.kept.is_some())) {
        return Err(nothing_to_prune(analysis, &scored));
    }
    let sizes = sizes_for(&analysis.facts, &options.sizes);
    let before = analysis.count(|counter| counter.cost(None, &sizes));
    let removed_at =
        |ratio: f64| -> Vec<Removed> { scored.iter().map(|scored| scored.remove(analysis, options, ratio)).collect() };
    let ratio = match options.target {
        Target::Ratio(ratio) => ratio,
        Target::Macs(share) | Target::Params(share) => search_ratio(analysis, options, share, &before, &|ratio| {
            let kept = kept_of(analysis, &scored, &removed_at(ratio));
            analysis.count(|counter| match options.target {
                Target::Params(_) => counter.parameters(Some(&kept)) as f64 / before.parameters as f64,
                _ => counter.macs(Some(&kept), &sizes).0 / before.macs,
            })
        })?,
    };
    let removed = removed_at(ratio);
    let kept = kept_of(analysis, &scored, &removed);
    let is_asked = ratio > 0.0 || options.ratio_for.iter().any(|(_, ratio)| *ratio > 0.0);
    if is_asked && removed.iter().flatten().flatten().all(|removed| !removed) {
        return Err(Error::unmet(format!("nothing can be pruned at ratio {ratio}"))
            .in_file(analysis.model.path())
            .hint("a larger --ratio, a smaller --round-to or --norm-groups drop may help; inspect shows the groups"));
    }
    let rewritten = rewrite(analysis.model, &analysis.graph, &analysis.facts, &analysis.coupling, &kept)?;
    let after = analysis.count(|counter| counter.cost(Some(&kept), &sizes));
    let mut warnings = criterion.warnings();
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
    let plan = make_plan(analysis, options, criterion.name(), &scored, &removed, &rewritten, ratio)?;
    Ok(Cut { kept, rewritten, plan, before, after, sizes, warnings, ratio })
}

fn is_same_group(a: &[Member], b: &[Member]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.weight == b.weight && a.axis == b.axis && a.indices == b.indices)
}

fn nothing_to_prune(analysis: &Analysis<'_>, scored: &[Scored]) -> Error {
    let first = scored.iter().flat_map(|scored| &scored.grouping.groups).find_map(|group| {
        let reason = group.kept.as_ref()?;
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
    analysis: &Analysis<'_>,
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
        let (wanted, least) = distinct_percents(share, least);
        let text = format!("expected {wanted} of the {what}, the most that can go leaves {least}");
        return Err(Error::unmet(text).in_file(analysis.model.path()));
    }
    for _ in 0..24 {
        let middle = (low + high) / 2.0;
        if share_at(middle) > share { low = middle } else { high = middle }
    }
    Ok(high)
}

/// Two shares in per cent, with as many digits as it takes to tell them from zero and from each other.
fn distinct_percents(a: f64, b: f64) -> (String, String) {
    let text = |share: f64, digits: usize| format!("{:.digits$} %", share * 100.0);
    let is_zero = |share: f64, digits: usize| share != 0.0 && text(share, digits) == text(0.0, digits);
    let digits = (1..15).find(|&n| text(a, n) != text(b, n) && !is_zero(a, n) && !is_zero(b, n)).unwrap_or(15);
    (text(a, digits), text(b, digits))
}

fn make_plan(
    analysis: &Analysis<'_>,
    options: &PruneOptions,
    criterion: &str,
    scored: &[Scored],
    removed: &[Removed],
    rewritten: &Rewritten,
    ratio: f64,
) -> Result<Plan, Error> {
    let mut groups = Vec::new();
    for (scored, removed) in scored.iter().zip(removed) {
        for ((group, removed), (scores, done)) in
            scored.grouping.groups.iter().zip(removed).zip(scored.scores.iter().zip(&scored.done))
        {
            if *done {
                continue;
            }
            let is_kept_by_user = options.keep.iter().any(|pattern| analysis.matches(&group.members, pattern));
            let reason = match &group.kept {
                Some(reason) => Some(format!("{} (node {:?})", reason.text, reason.node)),
                None if is_kept_by_user => Some("kept by --keep".to_owned()),
                None if group.channels.len() == 1 => Some("all its indices live or die together".to_owned()),
                None if removed.iter().all(|removed| !removed) => {
                    let unit = scored.grouping.components[group.component].unit;
                    Some(format!("the ratio takes no whole channel of every block of {unit}"))
                }
                None => None,
            };
            let members = group.members.iter().map(|member| MemberPlan {
                tensor: analysis.weight_name(member),
                axis: member.axis,
                role: format!("{:?}", member.role).to_lowercase(),
            });
            let kept = removed.iter().enumerate().filter(|(_, removed)| !**removed).map(|(at, _)| at);
            groups.push(GroupPlan {
                name: analysis.group_name(&group.members),
                channels: group.channels.len(),
                kept: kept.collect(),
                scores: scores.clone(),
                members: members.collect(),
                reason,
            });
        }
    }
    let dims_of = |value: usize| {
        let tensor = analysis.graph.constant(analysis.model, value);
        tensor.map_or_else(Vec::new, |tensor| tensor.dims.clone())
    };
    Ok(Plan {
        schema: SCHEMA,
        tool: tool_name(),
        input_digest: analysis.model.digest()?,
        options: options_record(options),
        ratio,
        criterion: criterion.to_owned(),
        attention: options.attention,
        norm_groups: options.norm_groups,
        tensors: tensor_plans(&analysis.graph, &dims_of, &rewritten.slices),
        groups,
    })
}

/// The name and version that files carry.
pub fn tool_name() -> String {
    format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

/// Repeats the cut of a plan.
///
/// # Errors
/// The plan belongs to another model or contradicts its coupling.
pub fn apply(analysis: &Analysis<'_>, plan: &Plan, path: &std::path::Path) -> Result<Rewritten, Error> {
    let digest = analysis.model.digest()?;
    if plan.input_digest != digest {
        let text = format!(
            "the plan is for another file: its input has SHA-256 {}, {} has {digest}",
            plan.input_digest,
            analysis.model.path().display()
        );
        return Err(Error::input(path, text));
    }
    let reads = plan.kept_axes(&analysis.graph, path)?;
    let spaces = &analysis.coupling.spaces;
    // A space is cut as its uses say; spaces without a constant follow those that are united with them.
    let mut dead = vec![false; spaces.element_count()];
    for weight in &analysis.coupling.uses {
        let Some(kept) = reads.get(&(weight.node, weight.slot)) else {
            continue;
        };
        for (axis, indices) in kept {
            let Some(space) = weight.axes.get(*axis).copied().flatten() else {
                continue;
            };
            let space = &spaces.all()[space];
            let kept: BTreeSet<usize> = indices.iter().copied().collect();
            (0..space.len).filter(|at| !kept.contains(at)).for_each(|at| dead[space.start + at] = true);
        }
    }
    let mut kept: Option<Kept> = None;
    for grouping in analysis.groupings(plan.attention, plan.norm_groups) {
        // A class is gone if all of its indices in constants are.
        let mut alive: BTreeSet<u32> = BTreeSet::new();
        let mut constants: BTreeSet<u32> = BTreeSet::new();
        for weight in &analysis.coupling.uses {
            for space in weight.axes.iter().flatten() {
                let space = &spaces.all()[*space];
                let elements = space.start..space.start + space.len;
                for (class, dead) in grouping.classes[elements.clone()].iter().zip(&dead[elements]) {
                    constants.insert(*class);
                    if !dead {
                        alive.insert(*class);
                    }
                }
            }
        }
        let pass =
            Kept::without(spaces, &grouping.classes, &|class| constants.contains(&class) && !alive.contains(&class));
        kept = Some(match kept {
            None => pass,
            Some(other) => other.and(&pass),
        });
    }
    let kept = kept.ok_or_else(|| Error::input(path, "the plan names no attention option"))?;
    let rewritten = rewrite(analysis.model, &analysis.graph, &analysis.facts, &analysis.coupling, &kept)?;
    let again = rewritten.slices.reads();
    let is_same = again.len() == reads.len()
        && again.iter().all(|(node, slot, _, slices)| reads.get(&(*node, *slot)) == Some(slices));
    if !is_same {
        return Err(Error::input(path, "the plan removes indices that belong to channels it keeps")
            .hint("plans must remove whole channels; do not edit kept indices by hand"));
    }
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_apart() {
        let texts = |a, b| distinct_percents(a, b);
        assert_eq!(texts(0.25, 0.5), ("25.0 %".to_owned(), "50.0 %".to_owned()));
        assert_eq!(texts(0.0001, 0.0021), ("0.01 %".to_owned(), "0.21 %".to_owned()));
        assert_eq!(texts(0.25, 0.250_04), ("25.000 %".to_owned(), "25.004 %".to_owned()));
        assert_eq!(texts(0.0, 0.001), ("0.0 %".to_owned(), "0.1 %".to_owned()));
    }
}
