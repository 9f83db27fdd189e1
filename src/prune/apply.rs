//! Repeats the cut that a plan describes.

use std::collections::BTreeSet;

use crate::analysis::Analysis;
use crate::error::Error;
use crate::operator::couple::kept::Kept;
use crate::plan::{Plan, kept_axes};
use crate::rewrite::{Rewritten, rewrite};
use crate::runtime::Runtime;

/// Repeats the cut of a plan; `path` names the plan in messages.
///
/// # Errors
/// Fails if the plan belongs to another model or contradicts its coupling.
pub fn apply(
    analysis: &Analysis,
    plan: &Plan,
    path: &std::path::Path,
    runtime: Option<&Runtime>,
) -> Result<(Kept, Rewritten), Error> {
    plan.check_input(&analysis.model, path)?;
    let reads = kept_axes(plan, analysis, path)?;
    let read: BTreeSet<usize> =
        reads.keys().filter_map(|reader| analysis.graph.nodes[reader.node].input(reader.slot)).collect();
    analysis.fold.evaluate(&analysis.model, &analysis.graph, runtime, &|value| read.contains(&value))?;
    let spaces = &analysis.coupling.spaces;
    // The uses of a space in the plan decide what is removed. Spaces without a constant follow those united with them.
    let mut dead = vec![false; spaces.element_count()];
    for weight in &analysis.coupling.uses {
        let Some(kept) = reads.get(&weight.reader()) else {
            continue;
        };
        for (axis, indices) in kept {
            let Some(space) = weight.axes.get(*axis).copied().flatten() else {
                continue;
            };
            let space = &spaces.all()[space];
            let kept: BTreeSet<usize> = indices.iter().copied().collect();
            (0..space.len).filter(|at| !kept.contains(at)).for_each(|at| dead[space.start + at] = true);
        }
    }
    let mut kept: Option<Kept> = None;
    for grouping in analysis.groupings(plan.attention, plan.norm_groups) {
        // A class is removed if all of its indices in constants are.
        let mut alive: BTreeSet<u32> = BTreeSet::new();
        let mut constants: BTreeSet<u32> = BTreeSet::new();
        for weight in &analysis.coupling.uses {
            for space in weight.axes.iter().flatten() {
                let space = &spaces.all()[*space];
                let elements = space.start..space.start + space.len;
                for (class, dead) in grouping.classes[elements.clone()].iter().zip(&dead[elements]) {
                    constants.insert(*class);
                    if !dead {
                        alive.insert(*class);
                    }
                }
            }
        }
        let pass =
            Kept::without(spaces, &grouping.classes, &|class| constants.contains(&class) && !alive.contains(&class));
        kept = Some(match kept {
            None => pass,
            Some(other) => other.and(&pass),
        });
    }
    let kept = kept.ok_or_else(|| Error::unreadable(path, "the plan has no attention option"))?;
    let rewritten = rewrite(analysis, &kept)?;
    let again = rewritten.slices.reads();
    let is_same =
        again.len() == reads.len() && again.iter().all(|(reader, _, slices)| reads.get(reader) == Some(slices));
    if !is_same {
        return Err(Error::unreadable(path, "the plan removes indices of channels that it keeps")
            .hint("a plan must remove whole channels: restore the plan that the tool wrote, kept indices can't be edited by hand"));
    }
    Ok((kept, rewritten))
}
