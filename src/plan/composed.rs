//! Composes two plans: a cut of a file that was itself cut, in terms of the first original.

use std::collections::{BTreeMap, HashMap};

use super::{GroupPlan, Plan, TensorPlan};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::fact::static_shape;

/// The entry of the plan for every reader of a constant: first output of the node, and input slot.
type Readers<'p> = HashMap<(&'p str, usize), &'p TensorPlan>;

fn readers(plan: &Plan) -> Readers<'_> {
    let mut all = Readers::new();
    for tensor in &plan.tensors {
        all.extend(tensor.readers.iter().map(|(output, slot)| ((output.as_str(), *slot), tensor)));
    }
    all
}

/// Returns the kept indices of the original: `first` keeps some of its indices, `second` some of those that `first`
/// keeps.
fn indices(first: Option<&Vec<usize>>, second: &[usize]) -> Option<Vec<usize>> {
    match first {
        Some(first) => second.iter().map(|at| first.get(*at).copied()).collect(),
        None => Some(second.to_vec()),
    }
}

impl Plan {
    /// Returns the plan that does in one step what this plan and then `second` do. `second` is a plan for the file that
    /// this plan describes, `original` the network for which this plan was made. Changed weights are not taken over.
    ///
    /// Both plans identify a reader of a constant by the first output of its node, which a cut does not rename. A group
    /// keeps the channels that both plans keep. It has no scores, since those of two cuts are not comparable.
    ///
    /// # Errors
    /// Fails if the plans were made with different `--attention` or `--norm-groups`, or if the second names a node that
    /// the original lacks because the first cut wrote a fused node in standard operators.
    pub fn then(&self, second: &Plan, original: &Analysis) -> Result<Plan, Error> {
        if (self.attention, self.norm_groups) != (second.attention, second.norm_groups) {
            let text = "two cuts with different --attention or --norm-groups can't be combined into one plan";
            return Err(Error::usage(text).hint("use the --attention and --norm-groups of the first cut"));
        }
        let mut tensors: BTreeMap<(String, BTreeMap<usize, Vec<usize>>), TensorPlan> = BTreeMap::new();
        let mut add = |tensor: &str, dims: &[i64], keep: BTreeMap<usize, Vec<usize>>, reader: (&str, usize)| {
            let entry = tensors.entry((tensor.to_owned(), keep.clone())).or_insert_with(|| TensorPlan {
                tensor: tensor.to_owned(),
                dims: dims.to_vec(),
                keep,
                readers: Vec::new(),
            });
            entry.readers.push((reader.0.to_owned(), reader.1));
        };
        let (before, after) = (readers(self), readers(second));
        let unread = |output: &str, slot: usize| {
            let text = format!(
                "two cuts can't be combined into one plan: input {slot} of node {output:?} of the second cut is not a \
                 constant of the original"
            );
            Error::unsupported(text).in_file(original.model.path())
        };
        // In the order of the original's nodes.
        for node in &original.graph.nodes {
            let output = node.proto.first_output();
            for (slot, value) in node.inputs.iter().enumerate() {
                let Some(value) = *value else { continue };
                let reader = (output, slot);
                let (first, second) = (before.get(&reader), after.get(&reader));
                let Some(second) = second else {
                    if let Some(first) = first {
                        add(&first.tensor, &first.dims, first.keep.clone(), reader);
                    }
                    continue;
                };
                let mut keep = first.map(|first| first.keep.clone()).unwrap_or_default();
                for (axis, kept) in &second.keep {
                    let of_first = first.and_then(|first| first.keep.get(axis));
                    let kept = indices(of_first, kept).ok_or_else(|| unread(output, slot))?;
                    keep.insert(*axis, kept);
                }
                match first {
                    Some(first) => add(&first.tensor, &first.dims, keep, reader),
                    None => {
                        let fact = original.facts.values[value].as_ref();
                        let sizes = fact.and_then(|fact| static_shape(fact.shape.as_ref()?));
                        let sizes = sizes.ok_or_else(|| unread(output, slot))?;
                        let dims: Vec<i64> =
                            sizes.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
                        add(&original.graph.values[value].name, &dims, keep, reader);
                    }
                }
            }
        }
        let is_new_bias = |output: &str, slot: usize| {
            let biases = self.changed.iter().flat_map(|changed| &changed.biases);
            biases.into_iter().any(|bias| bias.node == output && bias.slot == slot)
        };
        for (output, slot) in after.keys() {
            let node = original.graph.value(output).and_then(|value| original.graph.values[value].producer);
            let is_read = node.is_some_and(|(node, _)| original.graph.nodes[node].input(*slot).is_some());
            if !is_read && !is_new_bias(output, *slot) {
                return Err(unread(output, *slot));
            }
        }
        Ok(Plan {
            schema: self.schema,
            tool: second.tool.clone(),
            input_digest: self.input_digest.clone(),
            options: second.options.clone(),
            ratio: 1.0 - (1.0 - self.ratio) * (1.0 - second.ratio),
            criterion: second.criterion.clone(),
            attention: self.attention,
            norm_groups: self.norm_groups,
            tensors: tensors.into_values().collect(),
            groups: groups(&self.groups, &second.groups),
            changed: None,
            refit: None,
        })
    }
}

/// Returns the groups of the first cut with the channels that both keep. Groups that the second cut forms differently
/// are left out.
fn groups(first: &[GroupPlan], second: &[GroupPlan]) -> Vec<GroupPlan> {
    let mut rest: Vec<&GroupPlan> = second.iter().collect();
    let mut composed = Vec::new();
    for group in first {
        // Groups of the same name differ in their members.
        let is_same = |other: &&GroupPlan| {
            let places = |of: &GroupPlan| -> Vec<(usize, String)> {
                of.members.iter().map(|member| (member.axis, member.role.clone())).collect()
            };
            other.name == group.name && other.channels == group.kept.len() && places(other) == places(group)
        };
        let Some(at) = rest.iter().position(is_same) else { continue };
        let second = rest.remove(at);
        let Some(kept) = indices(Some(&group.kept), &second.kept) else { continue };
        let reason = if kept.len() < group.channels { None } else { second.reason.clone() };
        let criterion = second.criterion.clone();
        composed.push(GroupPlan { kept, scores: Vec::new(), criterion, reason, ..group.clone() });
    }
    composed
}
