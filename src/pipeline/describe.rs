//! Writes a cut down as a plan.

use super::options::PruneOptions;
use super::{Analysis, Scored, tool_name};
use crate::error::Error;
use crate::plan::{GroupPlan, MemberPlan, Plan, SCHEMA, options_record, tensor_plans};
use crate::rewrite::Rewritten;
use crate::select::Removed;

/// The plan of a cut.
///
/// # Errors
/// The model file cannot be read again for its digest.
pub(super) fn make_plan(
    analysis: &Analysis<'_>,
    options: &PruneOptions,
    (criterion, ratio): (&str, f64),
    scored: &[Scored],
    removed: &[Removed],
    rewritten: &Rewritten,
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
        criterion: criterion.to_owned(),
        attention: options.attention,
        norm_groups: options.norm_groups,
        ratio,
        options: options_record(options),
        tensors: tensor_plans(&analysis.graph, &dims_of, &rewritten.slices),
        groups,
    })
}
