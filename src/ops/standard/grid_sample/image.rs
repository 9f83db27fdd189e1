//! What operators that sample an image `[N, C, H, W]` at computed places have in common.

use crate::operator::couple::layout::Layout;
use crate::operator::{CoupleCx, GradientCx, ReferenceCx, RuleError};

/// Couples axis 1 of X and Y; all else stays, that of the inputs that give places too.
pub(in crate::ops::standard) fn couple(cx: &mut CoupleCx<'_>, input_count: usize) -> Result<(), RuleError> {
    let x = cx.separated(0)?.axes;
    for (at, axis) in x.iter().enumerate().filter(|(at, _)| *at != 1) {
        cx.keep(axis, if at == 0 { "is chosen by places" } else { "is a spatial axis" });
    }
    for slot in 1..input_count {
        let places = cx.separated(slot)?;
        places.axes.iter().for_each(|axis| cx.keep(axis, "gives places in an image"));
    }
    let mut y = Layout::fixed(&cx.output_shape(0)?);
    y.axes[1].clone_from(&x[1]);
    cx.set(0, y);
    Ok(())
}

/// The mask of Y.
pub(in crate::ops::standard) fn reference(cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
    if let Some(mask) = cx.mask(0) {
        // Channels are masked as a whole.
        let rank = cx.rank(0)? as i64;
        let axes: Vec<i64> = (0..rank).filter(|axis| *axis != 1).collect();
        let mask = cx.reduce("ReduceMax", &mask, &axes);
        cx.set_mask(0, mask);
    }
    Ok(())
}

/// Only the image has a gradient, not the places.
pub(in crate::ops::standard) fn require_constant_places(
    cx: &GradientCx<'_>,
    input_count: usize,
) -> Result<(), RuleError> {
    if (1..input_count).any(|slot| cx.wants(slot)) {
        return Err(RuleError::unsupported("its places depend on a weight"));
    }
    Ok(())
}

/// An image `[1, pixels, H, W]` of which every channel is a unit image, one at one of the pixels: the operators are
/// linear in the image, and tell by it themselves what they make of every pixel. `x` is the shape of X.
pub(in crate::ops::standard) fn unit_images(cx: &mut GradientCx<'_>, x: &[i64]) -> String {
    let pixels: i64 = x[2..].iter().product();
    let mut shape = vec![1, pixels];
    shape.extend_from_slice(&x[2..]);
    cx.identity(pixels, &shape)
}

/// The gradient by the pixels of every image that was sampled, `[samplings, C, pixels]`. `sampled` is what the operator
/// makes of the unit images; `x` and `y` are the shapes of X and Y.
pub(in crate::ops::standard) fn by_pixels(
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
