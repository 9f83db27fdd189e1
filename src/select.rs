//! Selection: which channels go.
//!
//! Ranking is local by default: every group loses the asked share of its own channels, the lowest scores first. A
//! group whose channels pass through norms loses the same number from every aligned block, so that no surviving channel
//! moves to another norm group; groups that share a norm lose the same share.
//!
//! In global scope the groups compete: next goes what loses least for what it saves. Which channels of a group go first is
//! still a matter of its scores.

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
    /// Groups lose shares of their own: next goes the channel with the least loss per operation saved. The loss is the
    /// error that a fit of the layers behind would leave, where there is data; else the score over the mean of its group.
    Global,
}

/// What selection is asked for.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Share of the channels of every group that goes, by group; groups that the user keeps have zero.
    pub ratios: Vec<f64>,
    /// Ranking scope.
    pub scope: Scope,
    /// What survives of the axes of a group is a multiple of this many indices.
    pub round_to: usize,
    /// What survives of every head is a multiple of this many dimensions; 0 as `round_to`.
    pub round_heads_to: usize,
    /// Whether what survives of every norm group is an even number of channels, where that comes out.
    pub evens_blocks: bool,
    /// No group loses a larger share.
    pub max_ratio: f64,
    /// For global scope.
    pub across: Across,
}

/// Which channels of every group go, `true` for removed, in the groups' own order.
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

/// The positions of the channels of every cell.
fn cells(cells: &[usize]) -> Vec<Vec<usize>> {
    let mut by_cell: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, cell) in cells.iter().enumerate() {
        by_cell.entry(*cell).or_default().push(at);
    }
    by_cell.into_values().collect()
}

/// The `count` positions of `among` with the lowest scores; ties go in order of position.
fn lowest(scores: &[f64], among: &[usize], count: usize) -> Vec<usize> {
    let mut order = among.to_vec();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    order.truncate(count);
    order
}

/// The number of channels to remove from every unit of a component so that the share of `ratio` goes from each of its
/// groups at most, as Torch-Pruning up to 1.4.0 and Diff-Pruning count it: `C - floor(C * (1 - ratio))` channels,
/// then whole numbers per block.
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

/// The positions of the channels of a group that can shrink, the first to go first: the lowest scores of every cell in turn.
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
