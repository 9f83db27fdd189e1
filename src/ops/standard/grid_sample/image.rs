//! The common part of operators that sample an image `[N, C, H, W]` at computed positions.

use crate::operator::couple::layout::Layout;
use crate::operator::{CoupleCx, GradientCx, ReferenceCx, RuleError};

/// Couples axis 1 of X and Y; everything else is kept, including the inputs that hold positions.
pub(in crate::ops::standard) fn couple(cx: &mut CoupleCx<'_>, input_count: usize) -> Result<(), RuleError> {
    let x = cx.separated(0)?.axes;
    for (at, axis) in x.iter().enumerate().filter(|(at, _)| *at != 1) {
        cx.keep(axis, if at == 0 { "the axis is the batch of a sampled image" } else { "the axis is a spatial axis" });
    }
    for slot in 1..input_count {
        let positions = cx.separated(slot)?;
        positions
            .axes
            .iter()
            .for_each(|axis| cx.keep(axis, "the axis belongs to the positions at which an image is sampled"));
    }
    let mut y = Layout::fixed(&cx.output_shape(0)?);
    y.axes[1].clone_from(&x[1]);
    cx.set(0, y);
    Ok(())
}

/// Sets the mask of Y.
pub(in crate::ops::standard) fn reference(cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
    if let Some(mask) = cx.mask(0) {
        // Channels are masked whole.
        let rank = cx.rank(0)? as i64;
        let axes: Vec<i64> = (0..rank).filter(|axis| *axis != 1).collect();
        let mask = cx.reduce("ReduceMax", &mask, &axes);
        cx.set_mask(0, mask);
    }
    Ok(())
}

/// Refuses positions that depend on a weight: only the image has a gradient.
pub(in crate::ops::standard) fn require_constant_positions(
    cx: &GradientCx<'_>,
    input_count: usize,
) -> Result<(), RuleError> {
    if (1..input_count).any(|slot| cx.wants(slot)) {
        return Err(RuleError::unsupported("the sampling positions depend on a weight"));
    }
    Ok(())
}

/// Makes an image `[1, pixels, H, W]` in which every channel is a unit image, one at one of the pixels. The operators
/// are linear in the image, so their result for it states the effect of every pixel. `x` is the shape of X.
pub(in crate::ops::standard) fn unit_images(cx: &mut GradientCx<'_>, x: &[i64]) -> String {
    let pixels: i64 = x[2..].iter().product();
    let mut shape = vec![1, pixels];
    shape.extend_from_slice(&x[2..]);
    cx.identity(pixels, &shape)
}

/// Computes the gradient with respect to the pixels of every sampled image, `[samplings, C, pixels]`. `sampled` is the
/// result of the operator for the unit images; `x` and `y` are the shapes of X and Y.
pub(in crate::ops::standard) fn pixel_gradient(
    cx: &mut GradientCx<'_>,
    dy: &str,
    sampled: &str,
    x: &[i64],
    y: &[i64],
) -> String {
    let (pixels, samples): (i64, i64) = (x[2..].iter().product(), y[2..].iter().product());
    let rows = cx.reshape(sampled, &[y[0], pixels, samples]);
    let rows = cx.matrix_transpose(&rows, 3);
    let dy = cx.reshape(dy, &[y[0], y[1], samples]);
    cx.op("MatMul", &[&dy, &rows])
}
