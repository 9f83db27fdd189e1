//! Groups that a criterion can't rank: a gradient that is not a number says nothing of a channel.

use crate::couple::group::ChannelGroup;
use crate::error::Error;

use super::{Criterion, GroupReduction, Magnitude, Norm, ScoreCx};

/// The scores of the groups of one grouping, of which some may come from another criterion than was asked for.
#[derive(Debug)]
pub struct GroupScores {
    /// One score per channel of every group that can shrink; none for the others.
    pub scores: Vec<Vec<f64>>,
    /// The criterion that ranks a group instead of the one that was asked for, by group.
    pub fallback: Vec<Option<&'static str>>,
}

/// Scores below this rank channels within their group alone; among all groups they count as zero.
pub const NEGLIGIBLE: f64 = 1e-150;

/// Whether every channel has a finite score.
fn is_finite(scores: &[f64]) -> bool {
    scores.iter().all(|score| score.is_finite())
}

/// Whether a criterion finds that nothing depends on any channel of a group, which would leave the choice to their order.
fn is_silent(scores: &[f64]) -> bool {
    scores.len() > 1 && scores.iter().all(|score| *score == 0.0)
}

/// Scores the groups of a grouping. A group of which a channel has no finite score, or all channels have a score of zero, is
/// ranked by magnitude as a whole, and `warn` is told which one and why.
///
/// # Errors
/// A weight that can't be read; a criterion that ranks no group at all.
pub fn score_groups(
    cx: &ScoreCx<'_>,
    groups: &[ChannelGroup],
    criterion: &dyn Criterion,
    (norm, reduction): (Norm, GroupReduction),
    warn: &mut dyn FnMut(&ChannelGroup, String),
) -> Result<GroupScores, Error> {
    let score = |group: &ChannelGroup| match group.fixed {
        Some(_) => Ok(Vec::new()),
        None => criterion.score(cx, group),
    };
    let mut scores: Vec<Vec<f64>> = groups.iter().map(score).collect::<Result<_, _>>()?;
    let unranked: Vec<usize> =
        (0..groups.len()).filter(|at| !is_finite(&scores[*at]) || is_silent(&scores[*at])).collect();
    let mut fallback = vec![None; groups.len()];
    if unranked.is_empty() {
        return Ok(GroupScores { scores, fallback });
    }
    let name = criterion.name();
    let why = |group: &ChannelGroup| {
        let weight = criterion.not_finite(cx, group);
        weight.map_or_else(String::new, |weight| format!(" (weight {weight:?}, or its gradient, is not finite)"))
    };
    let shrinks = |at: &usize| groups[*at].fixed.is_none();
    if (0..groups.len()).filter(shrinks).all(|at| !is_finite(&scores[at])) {
        let text = format!("{name} ranks no channel group: no score is a finite number{}", why(&groups[unranked[0]]));
        return Err(Error::unmet(text).in_file(cx.model.path()).hint(
            "check what the network was taken for, and the data; a square root or a logarithm at zero has no finite \
             gradient; --criterion magnitude needs none",
        ));
    }
    let of_magnitude: Vec<ChannelGroup> = unranked.iter().map(|at| groups[*at].clone()).collect();
    let magnitude = Magnitude::new(cx, &of_magnitude, norm, reduction)?;
    for at in unranked {
        let (group, own) = (&groups[at], &scores[at]);
        let mut by_magnitude = magnitude.score(cx, group)?;
        let text = if is_silent(own) {
            // Among all groups it still comes first: nothing is lost with it. Equal weights are equal.
            let largest = by_magnitude.iter().copied().fold(0.0, f64::max);
            if largest == 0.0 {
                continue;
            }
            by_magnitude.iter_mut().for_each(|score| *score *= 1e-3 * NEGLIGIBLE / largest);
            format!("scores zero by {name} in all of its {} channels: the loss does not change with them", own.len())
        } else {
            let count = own.iter().filter(|score| !score.is_finite()).count();
            format!("has no finite score by {name} for {count} of its {} channels{}", own.len(), why(group))
        };
        scores[at] = by_magnitude;
        fallback[at] = Some(magnitude.name());
        warn(group, format!("{text}; it is ranked by {}", magnitude.name()));
    }
    Ok(GroupScores { scores, fallback })
}
