//! Groups that a criterion can't rank: a NaN or infinite gradient does not rank a channel.

use crate::couple::group::ChannelGroup;
use crate::error::Error;

use super::{Criterion, GroupReduction, Magnitude, Norm, ScoreCx};

/// The scores of the groups of one grouping. Some may come from a criterion other than the requested one.
#[derive(Debug)]
pub struct GroupScores {
    /// One score per channel of every group that can shrink. Empty for other groups.
    pub scores: Vec<Vec<f64>>,
    /// By group, the criterion that ranks it instead of the requested one. `None`: the requested one.
    pub fallback: Vec<Option<&'static str>>,
}

/// Scores below this only rank channels within their group. In comparisons between groups they count as zero.
pub const NEGLIGIBLE: f64 = 1e-150;

/// Returns whether every channel has a finite score.
fn is_finite(scores: &[f64]) -> bool {
    scores.iter().all(|score| score.is_finite())
}

/// Returns whether all channels score zero, so that only their position would decide.
fn is_silent(scores: &[f64]) -> bool {
    scores.len() > 1 && scores.iter().all(|score| *score == 0.0)
}

/// Scores the groups of a grouping. If a channel of a group has no finite score, or all of them score zero, the whole
/// group is ranked by magnitude. `warn` receives the group and the reason.
///
/// # Errors
/// Fails if a weight can't be read, or if the criterion ranks no group at all.
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
        let text = format!(
            "{name} can't rank any channel group: no group has finite scores for all channels{}",
            why(&groups[unranked[0]])
        );
        return Err(Error::unmet(text).in_file(cx.model.path()).hint(
            "check the data and the process that was chosen for the network; a square root or a logarithm at zero has no \
             finite gradient; --criterion magnitude needs no gradients",
        ));
    }
    let of_magnitude: Vec<ChannelGroup> = unranked.iter().map(|at| groups[*at].clone()).collect();
    let magnitude = Magnitude::new(cx, &of_magnitude, norm, reduction)?;
    for at in unranked {
        let (group, own) = (&groups[at], &scores[at]);
        let mut by_magnitude = magnitude.score(cx, group)?;
        let text = if is_silent(own) {
            // In comparisons between groups it still comes first: removing it costs nothing. If all weights are zero,
            // order decides.
            let largest = by_magnitude.iter().copied().fold(0.0, f64::max);
            if largest == 0.0 {
                continue;
            }
            by_magnitude.iter_mut().for_each(|score| *score *= 1e-3 * NEGLIGIBLE / largest);
            format!("all {} of its channels have a {name} score of zero: the loss does not depend on them", own.len())
        } else {
            let count = own.iter().filter(|score| !score.is_finite()).count();
            format!("{count} of its {} channels have no finite {name} score{}", own.len(), why(group))
        };
        scores[at] = by_magnitude;
        fallback[at] = Some(magnitude.name());
        warn(group, format!("{text}; it is ranked by {} instead", magnitude.name()));
    }
    Ok(GroupScores { scores, fallback })
}
