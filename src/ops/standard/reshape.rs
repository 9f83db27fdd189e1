//! # Reshape
//! Gives a tensor a new shape without moving elements.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Reshape.html>. Opsets 5 and later (`allowzero` from 14).
//!
//! Coupling: axes are divided into digits and joined into products; see [`crate::operator::couple::layout`].

use crate::graph::Node;
use crate::graph::dim::{Dim, product};
use crate::graph::fact::Fact;
use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::couple::layout::{Layout, Piece, reshape};
use crate::operator::part::{Part, PartCx};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, PreimageCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_reshape() -> &'static [OpType] {
    const { &[onnx("Reshape")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_reshape, |node| Ok(Box::new(Reshape::parse(node))))];

#[derive(Debug)]
struct Reshape {
    /// Whether a target size of zero means zero, not the size of the input.
    keeps_zero: bool,
}

impl Reshape {
    fn parse(node: &Node) -> Self {
        Self { keeps_zero: node.int("allowzero", 0) != 0 }
    }
}

impl Operator for Reshape {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let fact = cx.input(0)?;
        let (dtype, known) = (fact.dtype, fact.known.clone());
        let input = fact.shape.clone();
        let Some(target) = cx.ints(1).map(<[Dim]>::to_vec) else {
            // The number of target sizes is the rank, even if the sizes are not known.
            let count = cx.shape(1)?.first().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
            let shape = (0..count.clamp(0, 64)).map(|_| cx.fresh()).collect();
            cx.set(0, Fact::new(dtype, shape));
            return Ok(());
        };
        let mut shape = Vec::new();
        let mut open = None;
        for (at, size) in target.iter().enumerate() {
            if size.is(-1) {
                open = Some(at);
                shape.push(Dim::from(1));
            } else if size.is(0) && !self.keeps_zero {
                let from = input.as_ref().and_then(|shape| shape.get(at)).ok_or(RuleError::UnknownShape)?;
                shape.push(from.clone());
            } else {
                shape.push(size.clone());
            }
        }
        if let Some(at) = open {
            let rest = input.as_ref().and_then(|input| product(input).div_exact(&product(&shape)));
            if let (None, [_, columns], Some([.., last])) = (&rest, shape.as_slice(), input.as_deref())
                && at == 0
                && last.as_const().is_none()
            {
                // Rows of a matrix, as before a Gemm: the number of columns is most likely the size of the last axis.
                cx.meet(last, columns);
            }
            shape[at] = rest.unwrap_or_else(|| cx.fresh());
        } else if let Some(input) = &input
            && let (from, to) = (product(input), product(&shape))
            && !cx.equal(&from, &to)
        {
            let text = format!("a value of {from} elements can't be reshaped to one of {to}");
            return Err(RuleError::invalid(text));
        }
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        cx.reshaped()
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let shape = cx.output_shape(0)?;
        let axes = reshape(&layout.axes, &shape).ok_or_else(|| {
            let list = |sizes: Vec<Dim>| sizes.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
            let old = layout.axes.iter().map(|axis| product(&axis.iter().map(Piece::size).collect::<Vec<_>>()));
            let (old, new) = (list(old.collect()), list(shape.clone()));
            let unknown = if new.contains('?') { "; sizes with ? are not known before a run" } else { "" };
            RuleError::unsupported(format!("the new sizes [{new}] do not divide the old ones [{old}] evenly{unknown}"))
        })?;
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        patch_target(cx, 1)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn part(&self, _cx: &PartCx<'_>) -> Option<Part> {
        Some(Part::Reshape)
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        cx.same_elements()
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = cx.reshape(&dy, &shape);
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Patches the sizes at input `slot` of a Reshape or similar operator, if they shrink.
pub(super) fn patch_target(cx: &mut PatchCx<'_>, slot: usize) -> Result<(), RuleError> {
    let Some(old) = cx.old_ints(slot) else {
        return Ok(());
    };
    let computed = cx.new_ints(slot);
    let mut sizes: Vec<Option<i64>> = Vec::new();
    let mut unsettled = Vec::new();
    for (axis, size) in old.iter().enumerate() {
        let expected = cx.new_output_dim(0, axis);
        sizes.push(match (size.as_const(), &expected) {
            // -1 and 0 follow the input automatically.
            (Some(size), Some(expected)) if size > 0 => expected.as_const(),
            (Some(_), _) | (_, None) => None,
            (None, Some(expected)) => {
                let found = computed.as_ref().and_then(|computed| computed.get(axis));
                // The two can only be compared if the pieces of the axis express its size as the shape arithmetic
                // does.
                let is_comparable = cx.whole_output_dim(0, axis).as_ref() == Some(size);
                if is_comparable && found.is_some_and(|found| found != expected) {
                    unsettled.push(axis);
                }
                None
            }
        });
    }
    // A size that is computed at run time from one that shrank, such as batch times heads, is inferred from the
    // others.
    match unsettled.as_slice() {
        [] => {}
        [axis] => {
            for (at, size) in old.iter().enumerate() {
                if size.is(-1) {
                    let expected = cx.new_output_dim(0, at).and_then(|size| size.as_const());
                    let text = "two sizes of a shape are computed at run time and shrink";
                    sizes[at] = Some(expected.ok_or_else(|| RuleError::unsupported(text))?);
                }
            }
            sizes[*axis] = Some(-1);
        }
        _ => {
            return Err(RuleError::unsupported("two sizes of a shape are computed at run time and shrink"));
        }
    }
    cx.set_input_ints(slot, &sizes)
}
