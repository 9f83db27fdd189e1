//! # Col2Im
//! Adds up the columns `[N, C * block, L]` to an image `[N, C, ...]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Col2Im.html>. Opsets 18 and later.
//!
//! Coupling: axis 1 of the input is a product of the channels of the image and the positions in a block; the positions
//! are kept.

use crate::graph::Node;
use crate::graph::dim::{Dim, product};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::{Shrinks, axis_size};
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_col2im() -> &'static [OpType] {
    const { &[onnx("Col2Im")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_col2im, |node| Ok(Box::new(Col2Im::parse(node))))];

#[derive(Debug)]
struct Col2Im {
    strides: Option<Vec<i64>>,
    dilations: Option<Vec<i64>>,
    /// The padding before every spatial axis, then after every one.
    pads: Option<Vec<i64>>,
}

impl Col2Im {
    fn parse(node: &Node) -> Self {
        let listed = |name: &str| node.proto.ints(name).map(<[i64]>::to_vec);
        Self { strides: listed("strides"), dilations: listed("dilations"), pads: listed("pads") }
    }
}

impl Operator for Col2Im {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, x) = (cx.input(0)?.dtype, cx.shape(0)?);
        let [batch, deep, _] = x.as_slice() else {
            return Err(RuleError::invalid(format!("the columns must have rank 3, found {}", x.len())));
        };
        let image = cx.ints(1).map(<[Dim]>::to_vec).ok_or(RuleError::UnknownShape)?;
        let block = cx.ints(2).map(<[Dim]>::to_vec).ok_or(RuleError::UnknownShape)?;
        let channels = deep.div_exact(&product(&block));
        if let (None, Some(deep)) = (&channels, deep.as_const()) {
            return Err(RuleError::invalid(format!("expected a multiple of the block size on axis 1, found {deep}")));
        }
        let mut shape = vec![batch.clone(), channels.unwrap_or_else(|| cx.fresh())];
        shape.extend(image);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?.axes;
        let shape = cx.output_shape(0)?;
        cx.keep(&x[2], "the axis holds the blocks of an image");
        let size = axis_size(&x[1]);
        let channels = shape[1].as_const().and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let channels = match (cx.single(&x[1]), size, channels) {
            (Some(deep), Some(size), Some(channels)) if size.is_multiple_of(channels) => {
                cx.digits(deep, &[channels, size / channels], Shrinks::Only(0)).swap_remove(0)
            }
            (Some(_), ..) => return Err(RuleError::UnknownShape),
            (None, ..) => fixed_axis(&shape[1]),
        };
        let mut axes = vec![x[0].clone(), channels];
        axes.extend(shape[2..].iter().map(fixed_axis));
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if cx.mask(0).is_none() {
            return Ok(());
        }
        let shape = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let block = cx.known_ints(2).ok_or(RuleError::UnknownShape)?;
        let channels = shape.get(1).and_then(|deep| deep.div_exact(&product(&block))).and_then(|size| size.as_const());
        let channels = channels.ok_or(RuleError::UnknownShape)?;
        let x = cx.zeroed(0);
        cx.emit(&[(0, x)]);
        // Channels are masked whole: [N, C * block, L] to [N, C, 1, ...].
        let full = cx.full_mask(0);
        let target = cx.ints(&[0, channels, -1], &[3]);
        let full = cx.add("Reshape", &[&full, &target], vec![]);
        let full = cx.reduce("ReduceMax", &full, &[2]);
        let mut target = vec![0, 0];
        target.resize(cx.output_rank(0)?, 1);
        let target = cx.ints(&target, &[target.len() as i64]);
        let full = cx.add("Reshape", &[&full, &target], vec![]);
        cx.set_mask(0, full);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape, image) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let ints = |values: Option<Vec<Dim>>| values?.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>();
        let block = ints(cx.known_ints(2)).ok_or(RuleError::UnknownShape)?;
        let spatial = block.len();
        let listed = |values: &Option<Vec<i64>>, default: i64, count: usize| match values {
            Some(values) if values.len() == count => values.clone(),
            _ => vec![default; count],
        };
        let (strides, dilations) = (listed(&self.strides, 1, spatial), listed(&self.dilations, 1, spatial));
        let pads = listed(&self.pads, 0, 2 * spatial);
        let (before, after) = pads.split_at(spatial);
        let padded = cx.pad(&dy, &[&[0, 0], before].concat(), &[&[0, 0], after].concat());
        // Every row of the columns is a slice of the image: one slice for each position in the block.
        let positions: i64 = block.iter().product();
        let mut parts = Vec::new();
        for position in 0..positions {
            let mut rest = position;
            let mut part = padded.clone();
            for axis in (0..spatial).rev() {
                let start = (rest % block[axis]) * dilations[axis];
                rest /= block[axis];
                let whole = image[axis + 2] + before[axis] + after[axis];
                let steps = (whole - dilations[axis] * (block[axis] - 1) - 1) / strides[axis];
                part = cx.slice(&part, axis + 2, start, start + steps * strides[axis] + 1, strides[axis]);
            }
            parts.push(cx.reshape(&part, &[image[0], image[1], 1, shape[2]]));
        }
        let columns = cx.concat(&parts, 2);
        let dx = cx.reshape(&columns, &shape);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
