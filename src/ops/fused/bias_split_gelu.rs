//! # BiasSplitGelu
//! `Y = left * gelu(right)` where left and right are the halves of `X + bias` along the last axis.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. It has no CPU kernel; its CUDA kernel takes halves of
//! 1280, 2560 and 5120.
//!
//! Coupling: index i of Y is index i of both halves of X and of the bias.

use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::Shrinks;
use crate::operator::infer::InferCx;
use crate::operator::kernel::KernelCx;
use crate::operator::lower::LowerCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_biassplitgelu() -> &'static [OpType] {
    const { &[microsoft("BiasSplitGelu")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_biassplitgelu, |_node| Ok(Box::new(BiasSplitGelu)))];

/// The sizes of X along the last axis for which the CUDA kernel is compiled
/// (`onnxruntime/contrib_ops/cuda/diffusion/bias_split_gelu.cc`).
const WIDTHS: [i64; 3] = [2560, 5120, 10240];

#[derive(Debug)]
struct BiasSplitGelu;

impl Operator for BiasSplitGelu {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let Some(last) = shape.last_mut() else {
            return Err(RuleError::invalid("a scalar can't be halved"));
        };
        let whole = last.clone();
        let half = whole.div_exact(&Dim::from(2));
        *last = match (half, whole.as_const()) {
            (Some(half), _) => half,
            (None, Some(size)) => return Err(RuleError::invalid(format!("{size} channels can't be halved"))),
            (None, None) => cx.fresh(),
        };
        cx.expect_vector(1, Some(&whole))?;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut axes = cx.separated(0)?.axes;
        let bias = cx.separated(1)?.axes;
        let output = cx.output_shape(0)?;
        let (Some(x), Some(half), [bias]) = (axes.pop(), output.last(), bias.as_slice()) else {
            return Err(RuleError::UnknownShape);
        };
        let tied = cx.tie(&x, bias);
        let size = half.as_const().and_then(|size| usize::try_from(size).ok());
        axes.push(match (cx.single(&tied), size) {
            (Some(space), Some(size)) => cx.digits(space, &[2, size], Shrinks::Only(1)).swap_remove(1),
            (Some(_), None) => return Err(RuleError::UnknownShape),
            (None, _) => fixed_axis(half),
        });
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn lacks_cpu_kernel(&self) -> bool {
        true
    }

    fn kernel_takes(&self, cx: &KernelCx<'_>) -> bool {
        cx.size(0, None).is_none_or(|width| WIDTHS.contains(&width))
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let last = cx.rank(0)?.saturating_sub(1) as i64;
        let half = cx.size(0, None)? / 2;
        let sum = cx.sum_of(&[0, 1]);
        let (left, right) = (cx.span(&sum, last, 0, half), cx.span(&sum, last, half, 2 * half));
        let right = cx.gelu(&right);
        let y = cx.add("Mul", &[&left, &right], vec![]);
        cx.emit(0, &y);
        Ok(true)
    }
}
