//! Two plans as one: the cut of a file that was cut before, in terms of the first original.

use std::collections::{BTreeMap, HashMap};

use super::{GroupPlan, Plan, TensorPlan};
use crate::analysis::Analysis;
use crate::error::Error;
use crate::graph::fact::static_shape;

/// What a reader of a constant keeps: first output of the node, and input slot.
type Readers<'p> = HashMap<(&'p str, usize), &'p TensorPlan>;

fn readers(plan: &Plan) -> Readers<'_> {
    let mut all = Readers::new();
    for tensor in &plan.tensors {
        all.extend(tensor.readers.iter().map(|(output, slot)| ((output.as_str(), *slot), tensor)));
    }
    all
}

/// The kept indices in the original: `first` keeps some of it, `second` some of those.
fn indices(first: Option<&Vec<usize>>, second: &[usize]) -> Option<Vec<usize>> {
    match first {
        Some(first) => second.iter().map(|at| first.get(*at).copied()).collect(),
        None => Some(second.to_vec()),
    }
}

impl Plan {
    /// The plan that does at once what this one and then `second`, a plan for the file that this one describes, do. Of
    /// `original`, for which this plan was made. Weights that have changed are not its matter.
    ///
    /// Both cuts name a reader of a constant by the first output of its node, which cuts leave as it is. Groups keep what
    /// both keep; they have no scores, since those of two cuts are not comparable.
    ///
    /// # Errors
    /// The plans group channels in different ways; the second names a node that the original lacks: the first cut wrote a
    /// fused node in other operators.
    pub fn then(&self, second: &Plan, original: &Analysis) -> Result<Plan, Error> {
        if (self.attention, self.norm_groups) != (second.attention, second.norm_groups) {
            let text = "two cuts with other choices of attention or norm groups have no plan in common";
            return Err(Error::usage(text).hint("give the --attention and --norm-groups of the first cut"));
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
                "the two cuts have no plan in common: input {slot} of node {output:?} of the second is no constant of the \
                 original"
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

/// The groups of the first cut with what both keep of them; those that the second groups in another way are left out.
fn groups(first: &[GroupPlan], second: &[GroupPlan]) -> Vec<GroupPlan> {
    let mut rest: Vec<&GroupPlan> = second.iter().collect();
    let mut composed = Vec::new();
    for group in first {
        // Groups of one name differ in their members.
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
