//! Describes a cut as a plan.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::choice::Scored;
use super::options::{CutOptions, PruneOptions, ScoreOptions, Target};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::digest::DigestKind;
use crate::onnx::tool_name;
use crate::plan::{GroupPlan, MemberPlan, Plan, SCHEMA, tensor_plans};
use crate::rewrite::Rewritten;
use crate::select::Removed;

/// Returns the plan of a cut.
///
/// # Errors
/// Fails if the model file can't be read again for its digest.
pub(super) fn make_plan(
    analysis: &Analysis,
    options: &PruneOptions,
    (criterion, ratio): (&str, f64),
    scored: &[Scored],
    removed: &[Removed],
    rewritten: &Rewritten,
) -> Result<Plan, Error> {
    let mut groups = Vec::new();
    for (scored, removed) in scored.iter().zip(removed) {
        for (at, (group, removed)) in scored.grouping.groups.iter().zip(removed).enumerate() {
            if scored.done[at] {
                continue;
            }
            let is_kept_by_user = options.cut.keep.iter().any(|pattern| analysis.matches(&group.members, pattern));
            let reason = match &group.fixed {
                Some(reason) => Some(format!("{} (node {:?})", reason.text, reason.node)),
                None if is_kept_by_user => Some("kept by --keep".to_owned()),
                None if group.channels.len() == 1 => {
                    Some("all its indices depend on each other: there is only one channel".to_owned())
                }
                None if removed.iter().all(|removed| !removed) => {
                    let unit = scored.grouping.components[group.component].unit;
                    Some(match options.cut.round_to {
                        0 | 1 => format!("the ratio is too small to remove a channel from every block of {unit}"),
                        multiple => {
                            format!("no smaller size that is a multiple of {multiple} is possible at this ratio")
                        }
                    })
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
                scores: scored.scores[at].clone(),
                criterion: scored.fallback[at].map(str::to_owned),
                members: members.collect(),
                reason,
            });
        }
    }
    let dims_of = |value: usize| {
        let tensor = analysis.constant(value);
        tensor.map_or_else(Vec::new, |tensor| tensor.dims.clone())
    };
    Ok(Plan {
        schema: SCHEMA,
        tool: tool_name(),
        input_digest: analysis.model.digest(DigestKind::default()),
        criterion: criterion.to_owned(),
        attention: options.score.attention,
        norm_groups: options.score.norm_groups,
        ratio,
        options: options_record(options),
        tensors: tensor_plans(&analysis.graph, &dims_of, &rewritten.slices),
        groups,
        changed: None,
        refit: None,
    })
}

/// Returns the options of a cut in the form of the plan.
fn options_record(options: &PruneOptions) -> BTreeMap<String, Value> {
    // Destructured field by field, so that a new option can't be forgotten here.
    let ScoreOptions {
        criterion,
        attention,
        norm_groups,
        norm,
        reduction,
        members,
        reference,
        seed,
        sizes,
        // Callers add these to the record as needed.
        gradients: _,
        // These follow from the scope.
        task: _,
        compares_groups: _,
    } = &options.score;
    let CutOptions { target, scope, round_to, round_heads_to, evens_norm_groups, max_ratio, keep, ratio_for } =
        &options.cut;
    let target = match target {
        Target::Ratio(ratio) => ("ratio", json!(ratio)),
        Target::Macs(share) => ("target-macs", json!(share)),
        Target::Params(share) => ("target-params", json!(share)),
    };
    let keep: Vec<&str> = keep.iter().map(regex::Regex::as_str).collect();
    let ratio_for: Vec<String> = ratio_for.iter().map(|(pattern, ratio)| format!("{pattern}={ratio}")).collect();
    let sizes: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
    let record = [
        target,
        ("scope", json!(scope)),
        ("round-to", json!(round_to)),
        ("max-ratio", json!(max_ratio)),
        ("keep", json!(keep)),
        ("ratio-for", json!(ratio_for)),
        ("norm-groups", json!(norm_groups)),
        ("attention", json!(attention)),
        ("criterion", json!(criterion)),
        ("norm", json!(norm)),
        ("group-reduction", json!(reduction)),
        ("seed", json!(seed)),
        ("size", json!(sizes)),
        ("members", json!(members)),
        ("reference", json!(reference)),
    ];
    let mut record: BTreeMap<String, Value> = record.map(|(name, value)| (name.to_owned(), value)).into();
    if *round_heads_to > 0 {
        record.insert("round-heads-to".to_owned(), json!(round_heads_to));
    }
    if *evens_norm_groups {
        record.insert("evens-norm-groups".to_owned(), json!(true));
    }
    record
}
