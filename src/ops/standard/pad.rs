//! # Pad
//! Extends axes by a constant, by reflection or by their edges.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Pad.html>. All opsets (`pads` is an input from 11, `axes` from 18).
//!
//! Coupling: an axis that is not padded passes through. The old indices of a padded axis are a span of the new ones,
//! and the padding is kept. Modes other than a constant repeat indices, so the axis is kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::{attr_ints, attr_string};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::{axis_size, new_axis_size};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_pad() -> &'static [OpType] {
    const { &[onnx("Pad")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_pad, |node| Ok(Box::new(Pad::parse(node))))];

#[derive(Debug)]
struct Pad {
    mode: Mode,
    /// The padding before all axes, then after them, as an attribute; `None` if it is an input.
    pads: Option<Vec<i64>>,
    has_pads_input: bool,
    has_axes_input: bool,
}

/// What fills the padding.
#[derive(Debug)]
enum Mode {
    /// One value.
    Constant,
    /// Values of the input, in the mode of this name.
    Own(String),
}

impl Pad {
    fn parse(node: &Node) -> Self {
        Self {
            mode: match node.proto.string("mode") {
                None | Some("constant") => Mode::Constant,
                Some(name) => Mode::Own(name.to_owned()),
            },
            pads: node.proto.ints("pads").map(<[i64]>::to_vec),
            has_pads_input: node.proto.input.len() > 1,
            has_axes_input: node.input(3).is_some(),
        }
    }

    /// Returns the padding before and after every axis; `None` if it is not known. `pads` and `axes` are the known
    /// integers of the inputs of that name.
    fn of_axes(
        &self,
        rank: usize,
        pads: Option<&[Dim]>,
        axes: Option<&[Dim]>,
    ) -> Result<Option<Vec<(Dim, Dim)>>, RuleError> {
        let attribute = self.pads.as_ref().map(|pads| pads.iter().copied().map(Dim::from).collect());
        let Some(pads): Option<Vec<Dim>> = attribute.or_else(|| pads.map(<[Dim]>::to_vec)) else {
            return Ok(None);
        };
        let mut result = vec![(Dim::from(0), Dim::from(0)); rank];
        let axes = match axes {
            Some(axes) => axes
                .iter()
                .map(|axis| axis_index(axis.as_const().ok_or(RuleError::UnknownShape)?, rank))
                .collect::<Result<Vec<_>, _>>()?,
            None if self.has_axes_input => return Ok(None),
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(RuleError::invalid(format!(
                "expected {} pads, two per axis, found {}",
                2 * axes.len(),
                pads.len()
            )));
        }
        for (at, axis) in axes.iter().enumerate() {
            result[*axis] = (pads[at].clone(), pads[at + axes.len()].clone());
        }
        Ok(Some(result))
    }

    /// Pads the rows of a matrix in the mode of this name.
    fn padded_rows(&self, cx: &mut GradientCx<'_>, mode: &str, matrix: &str, before: i64, after: i64) -> String {
        let mode = attr_string("mode", mode);
        let pads = [0, before, 0, after];
        if self.pads.is_some() {
            return cx.op_with("Pad", &[matrix], vec![mode, attr_ints("pads", &pads)]);
        }
        let pads = cx.ints(&pads);
        cx.op_with("Pad", &[matrix, &pads], vec![mode])
    }
}

/// Computes a mask after padding, where `pad` pads the removed positions with zeros: the padding is kept. If only
/// `axis` is padded, the padding is kept where anything along that axis is, so that a removed channel remains removed.
fn padded_mask(
    cx: &mut ReferenceCx<'_>,
    mask: &str,
    axis: Option<usize>,
    pad: impl FnOnce(&mut ReferenceCx<'_>, &str) -> String,
) -> String {
    let one = cx.floats(&[1.0], &[]);
    let removed = cx.add("Sub", &[&one, mask], vec![]);
    let removed = pad(cx, &removed);
    let padded = cx.add("Sub", &[&one, &removed], vec![]);
    let Some(axis) = axis else { return padded };
    let any = cx.reduce("ReduceMax", mask, &[axis as i64]);
    cx.add("Mul", &[&padded, &any], vec![])
}

impl Operator for Pad {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        let given = self.of_axes(shape.len(), cx.ints(1), cx.ints(3))?;
        let sizes = match given {
            Some(pads) => shape.iter().zip(&pads).map(|(size, (before, after))| &(size + before) + after).collect(),
            None => shape.iter().map(|_| cx.fresh()).collect(),
        };
        cx.set(0, Fact::new(dtype, sizes));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        let given = self.of_axes(layout.rank(), cx.ints(1), cx.ints(3))?;
        let given = given.ok_or_else(|| RuleError::unsupported("the padding is computed at run time"))?;
        let is_constant_mode = matches!(self.mode, Mode::Constant);
        let mut axes = Vec::new();
        for ((axis, size), (before, after)) in layout.axes.iter().zip(&shape).zip(&given) {
            if before.is(0) && after.is(0) {
                axes.push(axis.clone());
                continue;
            }
            let numbers = (axis_size(axis), before.as_const(), after.as_const(), new_axis_size(size));
            axes.push(match numbers {
                (Some(len), Some(before), Some(after), Some(total))
                    if is_constant_mode
                        && before >= 0
                        && after >= 0
                        && before.saturating_add(after) == (total - len.min(total)) as i64 =>
                {
                    match cx.single(axis) {
                        Some(space) => {
                            let before = before as usize;
                            let padded = cx.new_space(total)?;
                            (0..len).for_each(|i| cx.unite(space, i, padded, before + i));
                            cx.keep_range(padded, 0..before, "the index is padding");
                            cx.keep_range(padded, before + len..total, "the index is padding");
                            cx.whole(padded)
                        }
                        None => fixed_axis(size),
                    }
                }
                _ => {
                    cx.keep(axis, "Pad crops this axis, or extends it by its own values or by an unknown number");
                    fixed_axis(size)
                }
            });
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The padding is kept: its mask is one. The edge and reflection modes pad the mask correctly.
        if let Mode::Own(_) = self.mode {
            cx.moves(&[0]);
            return Ok(());
        }
        let rank = cx.rank(0)?;
        let (pads, axes) = (cx.known_ints(1), cx.known_ints(3));
        let known = self.of_axes(rank, pads.as_deref(), axes.as_deref())?;
        let is_padded = |(_, (before, after)): &(usize, &(Dim, Dim))| !(before.is(0) && after.is(0));
        let padded_axes: Option<Vec<usize>> =
            known.as_ref().map(|pads| pads.iter().enumerate().filter(is_padded).map(|(axis, _)| axis).collect());
        let as_const = |(before, after): &(Dim, Dim)| Some((before.as_const()?, after.as_const()?));
        let known: Option<Vec<(i64, i64)>> = known.and_then(|pads| pads.iter().map(as_const).collect());
        let mut mask = cx.full_mask(0);
        let Some(known) = known else {
            let axis = padded_axes.and_then(|axes| <[usize; 1]>::try_from(axes).ok()).map(|[axis]| axis);
            let mask = padded_mask(cx, &mask, axis, |cx, removed| {
                let zero = cx.floats(&[0.0], &[]);
                let attributes = self.pads.iter().map(|pads| attr_ints("pads", pads)).collect();
                let (pads, axes) = (cx.input(1), cx.input(3));
                if self.has_axes_input {
                    cx.add("Pad", &[removed, &pads, &zero, &axes], attributes)
                } else if self.has_pads_input {
                    cx.add("Pad", &[removed, &pads, &zero], attributes)
                } else {
                    cx.add("Pad", &[removed], attributes)
                }
            });
            cx.set_mask(0, mask);
            return Ok(());
        };
        for (axis, (before, after)) in known.into_iter().enumerate().filter(|(_, pads)| *pads != (0, 0)) {
            let mut pads = vec![0; 2 * rank];
            (pads[axis], pads[rank + axis]) = (before, after);
            mask = padded_mask(cx, &mask, Some(axis), |cx, removed| {
                if cx.opset() >= 11 {
                    let pads = cx.ints(&pads, &[2 * rank as i64]);
                    cx.add("Pad", &[removed, &pads], vec![])
                } else {
                    cx.add("Pad", &[removed], vec![attr_ints("pads", &pads)])
                }
            });
        }
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let (pads, axes) = (cx.known_ints(1), cx.known_ints(3));
        let given = self.of_axes(shape.len(), pads.as_deref(), axes.as_deref())?.ok_or(RuleError::UnknownShape)?;
        let mut dx = dy;
        for (axis, (before, after)) in given.iter().enumerate() {
            let before = before.as_const().ok_or(RuleError::UnknownShape)?;
            let after = after.as_const().ok_or(RuleError::UnknownShape)?;
            let padded = shape[axis] + before + after;
            if before == 0 && after == 0 {
                continue;
            }
            match &self.mode {
                Mode::Constant => {
                    let (start, end) = (before.max(0), padded - after.max(0));
                    dx = cx.slice(&dx, axis, start, end, 1);
                    // Negative padding removes elements, which get no gradient.
                    let mut cut = (vec![0; shape.len()], vec![0; shape.len()]);
                    (cut.0[axis], cut.1[axis]) = ((-before).max(0), (-after).max(0));
                    dx = cx.pad(&dx, &cut.0, &cut.1);
                }
                Mode::Own(mode) => {
                    // Row i of the map is the padded i-th unit vector, computed by a Pad along one axis.
                    let identity = cx.identity(shape[axis], &[shape[axis], shape[axis]]);
                    let rows = self.padded_rows(cx, mode, &identity, before, after);
                    dx = cx.along_axis(&dx, axis, shape.len(), &rows);
                }
            }
        }
        cx.add_gradient(0, dx);
        Ok(())
    }
}
