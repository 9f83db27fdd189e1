//! # Slice
//! Selects `start..end` in steps along some axes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Slice.html>. All opsets (inputs instead of attributes from 10).
//!
//! Coupling: the output holds some of the input's indices; starts and ends are patched to the new positions of the
//! kept ones. With a step of n, n neighbouring indices are removed together, so that the step is unchanged.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, static_shape, take_along};
use crate::operator::couple::grid::{Grid, GridCx, Positions};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::axis_size;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_slice() -> &'static [OpType] {
    const { &[onnx("Slice")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_slice, |node| Ok(Box::new(Slice::parse(node))))];

#[derive(Debug)]
struct Slice {
    /// Limits and axes as attributes; `None` if they are inputs.
    starts: Option<Vec<i64>>,
    ends: Option<Vec<i64>>,
    axes: Option<Vec<i64>>,
    has_axes_input: bool,
    has_steps_input: bool,
}

/// A slice along one axis, as the node states it.
struct Span {
    axis: usize,
    start: Option<Dim>,
    end: Option<Dim>,
    step: Option<i64>,
}

/// A slice along one axis of static size, clamped as specified.
struct Clamped {
    start: i64,
    count: i64,
    step: i64,
}

impl Clamped {
    /// Lists the selected indices, in order.
    fn positions(&self) -> impl Iterator<Item = i64> {
        let (start, step) = (self.start, self.step);
        (0..self.count).map(move |at| start + at * step)
    }
}

impl Span {
    fn clamp(&self, size: i64) -> Option<Clamped> {
        let (start, end) = (self.start.as_ref()?.as_const()?, self.end.as_ref()?.as_const()?);
        let step = self.step.filter(|step| *step != 0 && *step > i64::MIN)?;
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let start = from_end(start).clamp(if step > 0 { 0 } else { 0.min(size - 1) }, high.max(0));
        // An end far below zero means the very beginning, for a backward slice.
        let end = from_end(end).clamp(low, size);
        let distance = if step > 0 { end - start } else { start - end };
        let count = distance.saturating_add(step.abs() - 1).div_euclid(step.abs()).max(0);
        Some(Clamped { start, count, step })
    }

    /// Whether the slice selects the whole axis, whatever its size.
    fn is_whole(&self) -> bool {
        let starts_at_zero = self.start.as_ref().is_some_and(|start| start.is(0));
        let ends_late = self.end.as_ref().and_then(Dim::as_const).is_some_and(|end| end >= LATE);
        starts_at_zero && ends_late && self.step == Some(1)
    }
}

type Ints<'a> = &'a dyn Fn(usize) -> Option<Vec<Dim>>;

impl Slice {
    fn parse(node: &Node) -> Self {
        let attribute = |name: &str| node.proto.ints(name).map(<[i64]>::to_vec);
        Self {
            starts: attribute("starts"),
            ends: attribute("ends"),
            axes: attribute("axes"),
            has_axes_input: node.input(3).is_some(),
            has_steps_input: node.input(4).is_some(),
        }
    }

    /// Returns the spans over a value of rank `rank`. `ints` returns the known integers of an input; `count` is the
    /// number of spans if neither limits nor axes are known.
    fn spans(&self, rank: usize, ints: Ints<'_>, count: Option<usize>) -> Result<Vec<Span>, RuleError> {
        let given = |attribute: &Option<Vec<i64>>, slot: usize| match attribute {
            Some(values) => Some(values.iter().copied().map(Dim::from).collect::<Vec<_>>()),
            None => ints(slot),
        };
        let (starts, ends, axes) = (given(&self.starts, 1), given(&self.ends, 2), given(&self.axes, 3));
        if axes.is_none() && self.has_axes_input {
            return Err(RuleError::UnknownShape);
        }
        let steps = ints(4);
        let count = starts.as_ref().or(ends.as_ref()).or(axes.as_ref()).map(Vec::len).or(count);
        let count = count.ok_or(RuleError::UnknownShape)?;
        (0..count)
            .map(|at| {
                let axis = match &axes {
                    Some(axes) => axes.get(at).and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?,
                    None => at as i64,
                };
                let step = match &steps {
                    Some(steps) => steps.get(at).and_then(Dim::as_const),
                    None if self.has_steps_input => None,
                    None => Some(1),
                };
                let pick = |values: &Option<Vec<Dim>>| values.as_ref().and_then(|values| values.get(at).cloned());
                Ok(Span { axis: axis_index(axis, rank)?, start: pick(&starts), end: pick(&ends), step })
            })
            .collect()
    }
}

impl Operator for Slice {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let (dtype, known) = (cx.input(0)?.dtype, cx.input(0)?.known.clone());
        let length = |slot: usize| {
            let size = cx.optional(slot)?.shape.as_ref()?.first()?.as_const()?;
            usize::try_from(size).ok()
        };
        let spans = self.spans(shape.len(), &|slot| cx.ints(slot).map(<[Dim]>::to_vec), length(1))?;
        let mut result = known;
        for span in spans {
            if span.is_whole() {
                continue;
            }
            let clamped = shape[span.axis].as_const().and_then(|size| span.clamp(size));
            if let Some(clamped) = &clamped {
                let sizes = static_shape(&shape);
                result = result.zip(sizes).and_then(|(known, sizes)| take(&known, &sizes, span.axis, clamped));
                shape[span.axis] = Dim::from(clamped.count);
                continue;
            }
            result = None;
            let size = shape[span.axis].clone();
            if let Some(end) =
                span.end.as_ref().filter(|end| end.as_const().is_some_and(|end| (1..LATE).contains(&end)))
            {
                cx.reaches(&size, end);
            }
            shape[span.axis] = symbolic(&span, &size).unwrap_or_else(|| cx.fresh());
        }
        cx.set(0, Fact::new(dtype, shape).with_known(result));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        let mut column = cx.column(0)?;
        let shape = cx.shape(0)?;
        for span in self.spans(shape.len(), &|slot| cx.ints(slot).map(<[Dim]>::to_vec), None).ok()? {
            if column.axis != Some(span.axis) || span.is_whole() {
                continue;
            }
            let at = span.clamp(shape[span.axis].as_const()?)?;
            column.positions = match column.positions {
                Positions::Run { start, step, .. } => Positions::Run {
                    start: start.checked_add(at.start.checked_mul(step)?)?,
                    step: step.checked_mul(at.step)?,
                    count: Dim::from(at.count),
                },
                Positions::List(positions) => {
                    let pick = |position: i64| positions.get(usize::try_from(position).ok()?).copied();
                    Positions::List(at.positions().map(pick).collect::<Option<_>>()?)
                }
            };
        }
        Some(vec![column])
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        let spans = self.spans(layout.rank(), &|slot| cx.ints(slot).map(<[Dim]>::to_vec), None)?;
        let mut axes = layout.axes.clone();
        for span in spans {
            let axis = axes[span.axis].clone();
            if span.is_whole() {
                continue;
            }
            let size = axis_size(&axis);
            let clamped = size.and_then(|size| span.clamp(size as i64));
            axes[span.axis] = match (size, clamped) {
                (Some(size), Some(at)) if at.step == 1 && at.start == 0 && at.count == size as i64 => axis,
                (Some(size), Some(at)) => match cx.single(&axis) {
                    Some(space) => {
                        let part = cx.new_space(at.count as usize)?;
                        at.positions().enumerate().for_each(|(i, index)| cx.unite(space, index as usize, part, i));
                        let apart = if at.count > 1 { at.step.unsigned_abs() } else { 1 };
                        let stride = usize::try_from(apart).unwrap_or(1).max(1);
                        for index in at.positions().map(|index| index as usize) {
                            let start = index - index % stride;
                            let run = start..start.saturating_add(stride).min(size);
                            run.for_each(|other| cx.unite(space, index, space, other));
                        }
                        if at.count == 1 {
                            cx.keep_range(part, 0..1, "Slice selects only this index");
                        }
                        cx.whole(part)
                    }
                    None => fixed_axis(&shape[span.axis]),
                },
                _ => {
                    cx.keep(&axis, "the range that Slice selects along this axis is not known");
                    fixed_axis(&shape[span.axis])
                }
            };
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let rank = cx.rank(0);
        let spans = self.spans(rank, &|slot| cx.old_ints(slot), None)?;
        let (mut starts, mut ends, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_cut = false;
        for span in &spans {
            let kept = cx.kept_input(0, span.axis);
            let clamped = cx.old_size(0, span.axis).and_then(|size| span.clamp(size));
            let limits = match (kept, clamped) {
                (Some(kept), Some(at)) if !span.is_whole() => {
                    let left =
                        |position: i64| kept.binary_search(&(usize::try_from(position).ok()?)).ok().map(|at| at as i64);
                    let positions: Vec<i64> = at.positions().filter_map(left).collect();
                    let before = kept.iter().filter(|index| (**index as i64) < at.start).count() as i64;
                    let limits = progression(&positions, before, at.step, kept.len() as i64);
                    Some(limits.ok_or_else(|| RuleError::unsupported("the kept indices are not evenly spaced"))?)
                }
                _ => None,
            };
            // Limits along an axis that does not shrink are kept, even if they are computed from a size that shrinks.
            let stays = |limit: &Option<Dim>| limit.as_ref().and_then(Dim::as_const).filter(|_| limits.is_none());
            is_cut |= limits.is_some();
            starts.push(limits.map(|(start, _, _)| start).or_else(|| stays(&span.start)));
            ends.push(limits.map(|(_, end, _)| end).or_else(|| stays(&span.end)));
            steps.push(limits.map(|(_, _, step)| step));
        }
        if !is_cut && self.starts.is_some() {
            return Ok(());
        }
        if self.has_steps_input && is_cut {
            cx.set_input_ints(4, &steps)?;
        }
        if let Some(old_starts) = &self.starts {
            let merge = |old: &[i64], new: &[Option<i64>]| -> Vec<i64> {
                old.iter().zip(new).map(|(old, new)| new.unwrap_or(*old)).collect()
            };
            cx.set_ints("starts", &merge(old_starts, &starts));
            cx.set_ints("ends", &merge(self.ends.as_deref().unwrap_or_default(), &ends));
            return Ok(());
        }
        cx.set_input_ints(1, &starts)?;
        cx.set_input_ints(2, &ends)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (mut dx, shape) = (cx.dy()?, cx.shape(0)?);
        let spans = self.spans(shape.len(), &|slot| cx.known_ints(slot), None)?;
        let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
        for span in spans {
            let size = shape[span.axis];
            let clamped = if span.is_whole() { continue } else { span.clamp(size).ok_or(RuleError::UnknownShape)? };
            if clamped.step == 1 {
                before[span.axis] = clamped.start;
                after[span.axis] = size - clamped.start - clamped.count;
            } else {
                // Row i of the map is the slice of the i-th unit vector.
                let mut rows = vec![0.0; usize::try_from(size * clamped.count).unwrap_or(0)];
                for at in 0..clamped.count {
                    rows[((clamped.start + at * clamped.step) * clamped.count + at) as usize] = 1.0;
                }
                let matrix = cx.floats(&rows, &[size, clamped.count]);
                dx = cx.along_axis(&dx, span.axis, shape.len(), &matrix);
            }
        }
        let dx = cx.pad(&dx, &before, &after);
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Returns start, end and step of a slice that selects these positions of an axis of `size` indices; `None` if they
/// are not evenly spaced. If there are no positions, the slice starts at `before`.
fn progression(positions: &[i64], before: i64, step: i64, size: i64) -> Option<(i64, i64, i64)> {
    let (first, last) = match positions {
        [] => return Some((before, before, step)),
        [only] => (*only, *only),
        [first, .., last] => (*first, *last),
    };
    let step = positions.get(1).map_or(step.signum(), |second| second - first);
    let is_even = positions.windows(2).all(|pair| pair[1] - pair[0] == step);
    // An end before the first index counts from the end, unless it is far below zero.
    let end = if step > 0 {
        last + 1
    } else if last > 0 {
        last - 1
    } else {
        -size - 1
    };
    is_even.then_some((first, end, step))
}

fn take(known: &Known, sizes: &[usize], axis: usize, at: &Clamped) -> Option<Known> {
    let indices: Option<Vec<usize>> = at.positions().map(|position| usize::try_from(position).ok()).collect();
    take_along(known, sizes, axis, &indices?)
}

/// Ends from this value on are not sizes: they stand for the end of the axis.
const LATE: i64 = i32::MAX as i64;

/// Returns the size of a slice of an axis of symbolic size; `None` if it is not known.
fn symbolic(span: &Span, size: &Dim) -> Option<Dim> {
    let (start, end) = (span.start.as_ref()?, span.end.as_ref()?);
    if span.step != Some(1) {
        let step = span.step.filter(|step| *step > 1)?;
        let late = end.as_const().is_some_and(|end| end >= LATE) || end == size;
        return (start.is(0) && late).then(|| size.ceil_div(&Dim::from(step))).flatten();
    }
    let is_negative = |dim: &Dim| dim.as_const().is_some_and(|value| value < 0);
    let late = end.as_const().is_some_and(|end| end >= LATE);
    let start = if is_negative(start) { size + start } else { start.clone() };
    let end = if late {
        size.clone()
    } else if is_negative(end) {
        size + end
    } else {
        end.clone()
    };
    // Limits beyond the axis would be clamped; symbolic limits are assumed to lie within.
    Some(&end - &start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(size: i64, start: i64, end: i64, step: i64) -> Option<Vec<i64>> {
        let span = Span { axis: 0, start: Some(start.into()), end: Some(end.into()), step: Some(step) };
        span.clamp(size).map(|at| at.positions().collect())
    }

    #[test]
    fn limits_are_clamped_as_the_specification_says() {
        assert_eq!(indices(5, 1, i64::MAX, 1), Some(vec![1, 2, 3, 4]));
        assert_eq!(indices(5, -2, i64::from(i32::MAX), 1), Some(vec![3, 4]));
        assert_eq!(indices(5, -100, -3, 1), Some(vec![0, 1]));
        assert_eq!(indices(5, 1, 5, 2), Some(vec![1, 3]));
        assert_eq!(indices(5, 4, 2, 1), Some(vec![]));
        assert_eq!(indices(5, -1, i64::MIN, -1), Some(vec![4, 3, 2, 1, 0]));
        assert_eq!(indices(5, i64::MAX, 0, -2), Some(vec![4, 2]));
        assert_eq!(indices(5, 3, -1, -1), Some(vec![]));
        assert_eq!(indices(0, 0, i64::MAX, 1), Some(vec![]));
        assert_eq!(indices(0, -1, i64::MIN, -1), Some(vec![]));
    }

    #[test]
    fn hostile_steps_do_not_panic() {
        assert_eq!(indices(5, 0, 5, 0), None);
        assert_eq!(indices(5, 0, 5, i64::MIN), None);
        assert_eq!(indices(5, 0, 5, i64::MAX), Some(vec![0]));
        assert_eq!(indices(5, 4, i64::MIN, -i64::MAX), Some(vec![4]));
    }

    #[test]
    fn symbolic_sizes_follow_the_limits() {
        let size = Dim::symbol("L");
        let span = |start: i64, end: i64, step| Span {
            axis: 0,
            start: Some(start.into()),
            end: Some(end.into()),
            step: Some(step),
        };
        assert_eq!(symbolic(&span(1, i64::MAX, 1), &size), Some(&size - &Dim::from(1)));
        assert_eq!(symbolic(&span(0, -1, 1), &size), Some(&size - &Dim::from(1)));
        assert_eq!(symbolic(&span(-2, i64::MAX, 1), &size), Some(Dim::from(2)));
        assert_eq!(symbolic(&span(0, i64::MAX, 2), &size), (&size + &Dim::from(1)).floor_div(&Dim::from(2)));
        assert_eq!(symbolic(&span(0, i64::MAX, -1), &size), None);
    }
}
