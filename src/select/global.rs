//! Global scope: channel groups compete for what a cut removes.

use super::widths::Widths;
use super::{Budget, order, steps_for};
use crate::couple::group::Grouping;
use crate::score::NEGLIGIBLE;

/// Losses and savings that are comparable between groups.
#[derive(Clone, Debug, Default)]
pub struct Across {
    /// By group, the loss that each of its channels adds when it is removed after those before it in [`order`]. If this
    /// is empty or a group has `None`, its scores are used instead.
    pub losses: Vec<Option<Vec<f64>>>,
    /// By component, what removing one channel from every unit saves. If this is empty, the number of channels is used.
    pub savings: Vec<f64>,
}

/// Beyond this share of a group, its channels are removed last in global scope. Losses are measured one group at a
/// time, and the few channels that are left of a layer then also have to make up for the losses of other groups.
const LARGE: f64 = 0.8;

/// Returns the loss for each channel of every group, made comparable between groups as far as possible.
///
/// Scores of different groups are not comparable. A group without a known loss counts as an average group: its losses
/// are its scores divided by their sum, times what its channels save, times the mean loss per saving.
fn comparable(grouping: &Grouping, scores: &[Vec<f64>], across: &Across) -> Vec<Vec<f64>> {
    let savings = |group: usize| {
        let of = &grouping.groups[group];
        let component = &grouping.components[of.component];
        let all: usize = component.groups.iter().map(|g| grouping.groups[*g].channels.len()).sum();
        let of_step = across.savings.get(of.component).copied().unwrap_or(all as f64 / component.unit.max(1) as f64);
        of_step * component.unit as f64 * of.channels.len() as f64 / all.max(1) as f64
    };
    let known = |group: usize| across.losses.get(group).and_then(Option::as_ref);
    let (mut lost, mut saved) = (0.0, 0.0);
    for group in (0..grouping.groups.len()).filter(|group| grouping.groups[*group].fixed.is_none()) {
        if let Some(losses) = known(group) {
            lost += losses.iter().sum::<f64>();
            saved += savings(group);
        }
    }
    let mean = if saved > 0.0 && lost > 0.0 { lost / saved } else { 1.0 };
    let of = |(group, scores): (usize, &Vec<f64>)| match known(group) {
        Some(losses) => losses.clone(),
        None => {
            let sum = scores.iter().sum::<f64>();
            let is_silent = sum <= NEGLIGIBLE * scores.len() as f64;
            let factor = if is_silent { 0.0 } else { mean * savings(group) / sum };
            scores.iter().map(|score| score * factor).collect()
        }
    };
    scores.iter().enumerate().map(of).collect()
}

/// Repeatedly takes a step in the component with the smallest loss for what it saves, until the requested share of all
/// channels is removed.
pub(super) fn global_steps(grouping: &Grouping, widths: &Widths, scores: &[Vec<f64>], budget: &Budget) -> Vec<usize> {
    let losses = comparable(grouping, scores, &budget.across);
    let mut candidates: Vec<(bool, f64, usize, usize)> = Vec::new();
    let mut wanted = 0.0;
    let largest =
        Budget { ratios: budget.ratios.iter().map(|r| if *r > 0.0 { 1.0 } else { 0.0 }).collect(), ..budget.clone() };
    for (c, component) in grouping.components.iter().enumerate() {
        let limit = steps_for(grouping, widths, c, &largest);
        let groups: Vec<usize> =
            component.groups.iter().copied().filter(|g| grouping.groups[*g].fixed.is_none()).collect();
        let channels: usize = groups.iter().map(|g| grouping.groups[*g].channels.len()).sum();
        wanted += groups.iter().map(|g| grouping.groups[*g].channels.len() as f64 * budget.ratios[*g]).sum::<f64>();
        let unit = component.unit.max(1);
        let removed = channels / unit;
        let orders: Vec<(usize, Vec<usize>)> = groups.iter().map(|g| (*g, order(grouping, *g, &scores[*g]))).collect();
        let saving = budget.across.savings.get(c).copied().unwrap_or(removed as f64);
        let mut cost = 0.0f64;
        for step in 0..limit {
            let mut total = 0.0;
            for (g, order) in &orders {
                let per_step = order.len() / unit;
                let going = &order[step * per_step..(step + 1) * per_step];
                total += going.iter().map(|at| losses[*g][*at]).sum::<f64>();
            }
            // A later step never comes before an earlier one of the same component. A step that saves nothing comes
            // last.
            cost = cost.max(if saving > 0.0 { total / saving } else { f64::INFINITY });
            let is_large = (step + 1) as f64 > LARGE * unit as f64;
            candidates.push((is_large, cost, c, removed));
        }
    }
    candidates.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut steps = vec![0; grouping.components.len()];
    let mut gone = 0.0;
    for (_, _, component, removed) in candidates {
        // Later candidates lose more for what they save; they would only fill up the share.
        if gone + removed as f64 > wanted + 1e-9 {
            break;
        }
        gone += removed as f64;
        steps[component] += 1;
    }
    // Rounding may not allow the number of steps that the ranking arrived at.
    for (steps, component) in steps.iter_mut().zip(&grouping.components) {
        *steps = widths.rounded(grouping, component, *steps);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::couple::group::{ChannelGroup, Component};
    use crate::operator::couple::space::Spaces;
    use crate::select::{Removed, Scope, select};

    /// Builds groups of these sizes, each in its own component with blocks of `unit` channels.
    fn grouping(sizes: &[usize], unit: usize) -> Grouping {
        let group = |(component, channels): (usize, &usize)| ChannelGroup {
            channels: (0..*channels as u32).collect(),
            members: Vec::new(),
            cells: (0..*channels).map(|at| at / unit).collect(),
            component,
            fixed: None,
        };
        let components = (0..sizes.len()).map(|at| Component { groups: vec![at], unit, preferred: Vec::new() });
        Grouping {
            groups: sizes.iter().enumerate().map(group).collect(),
            components: components.collect(),
            spaces: Spaces::default(),
            classes: Vec::new(),
            dropped: Vec::new(),
        }
    }

    fn counts(grouping: &Grouping, scores: &[Vec<f64>], ratio: f64, across: &Across) -> Vec<usize> {
        let budget = Budget {
            ratios: vec![ratio; scores.len()],
            scope: Scope::Global,
            round_to: 1,
            round_heads_to: 0,
            evens_blocks: false,
            max_ratio: 1.0,
            across: across.clone(),
        };
        let removed: Removed = select(grouping, scores, &budget);
        removed.iter().map(|removed| removed.iter().filter(|is_removed| **is_removed).count()).collect()
    }

    #[test]
    fn the_lowest_channels_of_every_block_are_removed_in_turn() {
        let scores = [5.0, 1.0, 3.0, 4.0, 9.0, 2.0, 7.0, 8.0];
        assert_eq!(order(&grouping(&[8], 4), 0, &scores), [1, 5, 2, 6, 3, 7, 0, 4]);
        assert_eq!(order(&grouping(&[8], 8), 0, &scores), [1, 5, 2, 3, 0, 6, 7, 4]);
    }

    #[test]
    fn losses_decide_regardless_of_the_scale_of_scores() {
        let scores = [vec![1.0, 2.0, 3.0, 4.0], vec![100.0, 200.0, 300.0, 400.0]];
        let losses = vec![Some(vec![10.0, 20.0, 30.0, 40.0]), Some(vec![1.0, 2.0, 3.0, 4.0])];
        let across = Across { losses, savings: vec![1.0, 1.0] };
        assert_eq!(counts(&grouping(&[4, 4], 4), &scores, 0.25, &across), [0, 2]);
        // Without losses, scores are compared relative to the mean of their group.
        assert_eq!(counts(&grouping(&[4, 4], 4), &scores, 0.25, &Across::default()), [1, 1]);
    }

    #[test]
    fn at_equal_losses_the_channels_that_save_most_are_removed() {
        let scores = [vec![1.0; 4], vec![1.0; 4]];
        let across = Across { losses: vec![Some(vec![1.0; 4]), Some(vec![1.0; 4])], savings: vec![3.0, 7.0] };
        assert_eq!(counts(&grouping(&[4, 4], 4), &scores, 0.375, &across), [0, 3]);
        // Removing channels without operations saves nothing: they are kept as long as others can be removed.
        let across = Across { savings: vec![0.0, 7.0], ..across };
        assert_eq!(counts(&grouping(&[4, 4], 4), &scores, 0.375, &across), [0, 3]);
    }

    #[test]
    fn a_group_without_a_loss_counts_as_an_average_group() {
        let scores = [vec![1.0, 2.0, 6.0, 7.0], vec![1.0; 4], vec![1.0; 4]];
        // The mean loss is 2: the first two of group 0 have 0.5 and 1, the others 3 and 3.5.
        let losses = vec![None, Some(vec![1.5; 4]), Some(vec![2.5; 4])];
        let across = Across { losses, savings: vec![1.0; 3] };
        let grouping = grouping(&[4, 4, 4], 4);
        assert_eq!(counts(&grouping, &scores, 2.0 / 12.0, &across), [2, 0, 0]);
        assert_eq!(counts(&grouping, &scores, 5.0 / 12.0, &across), [2, 3, 0]);
    }

    #[test]
    fn more_than_80_percent_of_a_group_is_removed_only_if_no_other_group_can_shrink() {
        let scores = [vec![1.0; 10], vec![1.0; 10]];
        let across = Across { losses: vec![Some(vec![0.001; 10]), Some(vec![1.0; 10])], savings: vec![1.0; 2] };
        let grouping = grouping(&[10, 10], 10);
        assert_eq!(counts(&grouping, &scores, 0.5, &across), [8, 2]);
        assert_eq!(counts(&grouping, &scores, 0.8, &across), [8, 8]);
        assert_eq!(counts(&grouping, &scores, 0.85, &across), [9, 8]);
    }
}
