//! The value of a network that concatenates the pooled text embedding and the embedding of the sizes. SDXL's original code
//! takes it as the input `y`; the export of diffusers computes it from `text_embeds` and `time_ids`.

use std::collections::HashSet;

use crate::graph::fact::Fact;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, ValueId};

/// Returns the value that concatenates `pooled`, as it is or cast, with values computed from `ids`. It is recognised by its
/// width, which is the sum of theirs.
pub(super) fn joined((_, graph, facts): (&Model, &Graph, &Facts), pooled: &str, ids: &str) -> Option<ValueId> {
    let shape = |value: ValueId| facts.values[value].as_ref().and_then(|fact: &Fact| fact.shape.as_ref());
    let width = |value: ValueId| match shape(value)?.as_slice() {
        [_, width] => width.as_const(),
        _ => None,
    };
    let (pooled, ids) = (graph.value(pooled)?, graph.value(ids)?);
    let (mut relayed, mut of_ids) = (HashSet::from([pooled]), HashSet::from([ids]));
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        if let ([first, rest @ ..], Some(output)) = (inputs.as_slice(), node.output(0)) {
            let others: Vec<i64> = rest.iter().filter_map(|value| width(*value)).collect();
            let is_joint = relayed.contains(first)
                && !rest.is_empty()
                && rest.iter().all(|value| of_ids.contains(value))
                && others.len() == rest.len()
                && width(*first).map(|own| own + others.iter().sum::<i64>()) == width(output)
                && width(output).is_some();
            if is_joint {
                return Some(output);
            }
            // A node that only changes the type. A node that also keeps the type could compute anything.
            let is_cast = rest.is_empty() && shape(*first) == shape(output) && dtypes_differ(facts, *first, output);
            if is_cast && relayed.contains(first) {
                relayed.insert(output);
            }
        }
        if inputs.iter().any(|value| of_ids.contains(value)) {
            of_ids.extend(node.outputs.iter().flatten());
        }
    }
    None
}

/// Whether two values are floats of different types.
fn dtypes_differ(facts: &Facts, a: ValueId, b: ValueId) -> bool {
    match (&facts.values[a], &facts.values[b]) {
        (Some(a), Some(b)) => a.is_float() && b.is_float() && a.dtype != b.dtype,
        _ => false,
    }
}
