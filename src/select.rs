//! Selection of the channels to remove.
//!
//! Ranking is local by default: every group loses the requested share of its channels, those with the lowest scores
//! first. A group whose channels pass through norms loses the same number from every aligned block, so that no kept
//! channel moves to another norm group. Groups that share a norm lose the same share.
//!
//! In global scope the groups compete: the next channels to be removed are those with the smallest loss for what they
//! save. Within a group, the scores still decide the order.

mod global;
mod widths;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::couple::group::Grouping;
pub use global::Across;
use global::global_steps;
use widths::Widths;

/// Whether channels are ranked within their group or among all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Scope {
    /// Every group loses the same share.
    #[default]
    Local,
    /// Groups lose different shares: the next channel to be removed is the one with the smallest loss per operation
    /// saved. With data, the loss is the error that remains after a fit of the following layers; without, it is the
    /// score divided by the mean score of the group.
    Global,
}

/// The settings of a selection.
#[derive(Clone, Debug)]
pub struct Budget {
    /// By group, the share of its channels to remove. Groups that the user keeps have zero.
    pub ratios: Vec<f64>,
    /// Ranking scope.
    pub scope: Scope,
    /// The kept size of the axes of a group is a multiple of this number.
    pub round_to: usize,
    /// The number of kept dimensions of every head is a multiple of this number; 0: the same as `round_to`.
    pub round_heads_to: usize,
    /// Whether every norm group keeps an even number of channels, where that is possible.
    pub evens_blocks: bool,
    /// Maximum share of the channels of a group to remove.
    pub max_ratio: f64,
    /// Losses and savings that compare groups in global scope.
    pub across: Across,
}

/// By group, whether each channel is removed, in the order of the group.
pub type Removed = Vec<Vec<bool>>;

/// Chooses the channels to remove.
pub fn select(grouping: &Grouping, scores: &[Vec<f64>], budget: &Budget) -> Removed {
    let widths = Widths::of(grouping, &budget.ratios, budget.round_to);
    let widths = widths.with_heads(budget.round_heads_to).evening(budget.evens_blocks);
    let steps = match budget.scope {
        Scope::Local => local_steps(grouping, &widths, budget),
        Scope::Global => global_steps(grouping, &widths, scores, budget),
    };
    grouping
        .groups
        .iter()
        .zip(scores)
        .map(|(group, scores)| {
            let component = &grouping.components[group.component];
            let mut removed = vec![false; group.channels.len()];
            if group.fixed.is_some() || steps[group.component] == 0 {
                return removed;
            }
            for cell in cells(&group.cells) {
                let count = steps[group.component] * cell.len() / component.unit;
                for at in lowest(scores, &cell, count) {
                    removed[at] = true;
                }
            }
            removed
        })
        .collect()
}

/// Returns the positions of the channels of every cell.
fn cells(cells: &[usize]) -> Vec<Vec<usize>> {
    let mut by_cell: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, cell) in cells.iter().enumerate() {
        by_cell.entry(*cell).or_default().push(at);
    }
    by_cell.into_values().collect()
}

/// Returns the `count` positions of `among` with the lowest scores; on ties, lower positions come first.
fn lowest(scores: &[f64], among: &[usize], count: usize) -> Vec<usize> {
    let mut order = among.to_vec();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    order.truncate(count);
    order
}

/// Returns the number of channels to remove from every unit of a component so that each of its groups loses at most its
/// ratio. Counts as Torch-Pruning up to 1.4.0 and Diff-Pruning do: `C - floor(C * (1 - ratio))` channels, then whole
/// numbers per block.
fn steps_for(grouping: &Grouping, widths: &Widths, component: usize, budget: &Budget) -> usize {
    let of = &grouping.components[component];
    let shrinking = of.groups.iter().filter(|g| grouping.groups[**g].fixed.is_none());
    let mut steps = usize::MAX;
    for g in shrinking.clone() {
        let channels = grouping.groups[*g].channels.len();
        let ratio = budget.ratios[*g].min(budget.max_ratio).clamp(0.0, 1.0);
        // Rounded to a thousandth of a channel first, so that 0.3 of 10 is 3 and not 2.9999999999999996.
        let keep = ((channels as f64 * (1.0 - ratio) * 1000.0).round() / 1000.0).floor() as usize;
        let blocks = channels / of.unit.max(1);
        steps = steps.min((channels - keep.min(channels)) / blocks.max(1));
    }
    if steps == usize::MAX {
        return 0;
    }
    widths.rounded(grouping, of, steps.min(of.unit.saturating_sub(1)))
}

fn local_steps(grouping: &Grouping, widths: &Widths, budget: &Budget) -> Vec<usize> {
    (0..grouping.components.len()).map(|component| steps_for(grouping, widths, component, budget)).collect()
}

/// Returns the positions of the channels of a group in the order of removal: the lowest scores of every cell in turn.
/// The group must not be fixed.
pub fn order(grouping: &Grouping, group: usize, scores: &[f64]) -> Vec<usize> {
    let of = &grouping.groups[group];
    let unit = grouping.components[of.component].unit.max(1);
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(of.channels.len());
    for cell in cells(&of.cells) {
        let per_step = (cell.len() / unit).max(1);
        let sorted = lowest(scores, &cell, cell.len());
        order.extend(sorted.into_iter().enumerate().map(|(rank, at)| (rank / per_step, at)));
    }
    order.sort_unstable();
    order.into_iter().map(|(_, at)| at).collect()
}
