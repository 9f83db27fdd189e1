//! # AffineGrid
//! A grid of sampling positions `[N, H, W, 2]` or `[N, D, H, W, 3]` from affine matrices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__AffineGrid.html>. Opsets 20 and later.
//!
//! Coupling: every input is kept.

use crate::graph::dim::Dim;
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_affinegrid() -> &'static [OpType] {
    const { &[onnx("AffineGrid")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_affinegrid, |_| Ok(Box::new(AffineGrid)))];

#[derive(Debug)]
struct AffineGrid;

impl Operator for AffineGrid {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let dtype = cx.input(0)?.dtype;
        let size = cx.ints(1).map(<[Dim]>::to_vec).ok_or(RuleError::UnknownShape)?;
        let [batch, _, image @ ..] = size.as_slice() else {
            return Err(RuleError::invalid(format!("expected a size of 4 or 5 entries, found {}", size.len())));
        };
        let mut shape = vec![batch.clone()];
        shape.extend_from_slice(image);
        shape.push(Dim::from(image.len() as i64));
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("the axis belongs to the affine matrices of AffineGrid");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // A position is `theta [x, y, 1]` with its own coordinates. For matrices with a single 1 in their first row,
        // the operator returns these coordinates, one after the other.
        let (dy, theta, grid) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let (axes, columns) = (theta[1], theta[2]);
        let mut unit = vec![0.0; usize::try_from(columns * axes * columns).unwrap_or(0)];
        for column in 0..columns {
            let at = usize::try_from(column * axes * columns + column).unwrap_or(0);
            unit.iter_mut().skip(at).take(1).for_each(|one| *one = 1.0);
        }
        let unit = cx.floats(&unit, &[columns, axes, columns]);
        let mut size = vec![columns, 1];
        size.extend_from_slice(&grid[1..grid.len() - 1]);
        let size = cx.ints(&size);
        let positions: i64 = grid[1..grid.len() - 1].iter().product();
        let own = cx.same_op(&[&unit, &size]);
        let own = cx.reshape(&own, &[columns, positions, axes]);
        let own = cx.slice(&own, 2, 0, 1, 1);
        let own = cx.reshape(&own, &[columns, positions]);
        let own = cx.matrix_transpose(&own, 2);
        let dy = cx.reshape(&dy, &[grid[0], positions, axes]);
        let dy = cx.matrix_transpose(&dy, 3);
        let by_theta = cx.op("MatMul", &[&dy, &own]);
        cx.add_gradient(0, by_theta);
        Ok(())
    }
}
