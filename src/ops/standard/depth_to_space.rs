//! # DepthToSpace and SpaceToDepth
//! Moves blocks of channels to blocks of pixels, and back.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DepthToSpace.html>. All opsets.
//!
//! Coupling: the deep axis is a product of the shallow one and the positions in a block, which are kept: `[block,
//! block, C]` in DCR mode and for SpaceToDepth, `[C, block, block]` in CRD mode.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::{Shrinks, axis_size, new_axis_size};
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_depthtospace() -> &'static [OpType] {
    const { &[onnx("DepthToSpace"), onnx("SpaceToDepth")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_depthtospace, |node| Ok(Box::new(DepthToSpace::parse(node)?)))];

#[derive(Debug)]
struct DepthToSpace {
    /// The side length of a block of pixels.
    block: i64,
    order: Order,
}

/// The direction, and which digit of the deep axis is the outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Channels to blocks of pixels; the positions in a block are the outer digit.
    PositionsFirst,
    /// Channels to blocks of pixels; the shallow channels are the outer digit.
    ChannelsFirst,
    /// Blocks of pixels to channels; the positions in a block are the outer digit.
    Deepening,
}

impl DepthToSpace {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let block = node.int("blocksize", 1);
        if !(1..1 << 15).contains(&block) {
            return Err(RuleError::invalid(format!("expected a blocksize of 1 to 32767, found {block}")));
        }
        let order = match (node.proto.op_type.as_str(), node.proto.string("mode")) {
            ("SpaceToDepth", _) => Order::Deepening,
            (_, Some("CRD")) => Order::ChannelsFirst,
            _ => Order::PositionsFirst,
        };
        Ok(Self { block, order })
    }

    fn is_deepening(&self) -> bool {
        self.order == Order::Deepening
    }
}

impl Operator for DepthToSpace {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let [n, c, h, w] = shape.as_slice() else {
            return Err(RuleError::invalid(format!("X must have rank 4, found {}", shape.len())));
        };
        let block = Dim::from(self.block);
        let area = &block * &block;
        let fail = || {
            RuleError::invalid(format!(
                "{} can't be divided into blocks of this blocksize",
                if self.is_deepening() { "the image size" } else { "the number of channels" }
            ))
        };
        let sizes = if self.is_deepening() {
            let side = |size: &Dim| size.floor_div(&block).ok_or_else(fail);
            vec![n.clone(), c * &area, side(h)?, side(w)?]
        } else {
            vec![n.clone(), c.div_exact(&area).ok_or_else(fail)?, h * &block, w * &block]
        };
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, sizes));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        x.axes.iter().skip(2).for_each(|axis| cx.keep(axis, "the axis is a spatial axis"));
        let area = usize::try_from(self.block * self.block).unwrap_or(1);
        let is_crd = self.order == Order::ChannelsFirst;
        let channels = if self.is_deepening() {
            let whole = new_axis_size(&shape[1]);
            match axis_size(&x.axes[1]).filter(|size| *size > 1 && whole.is_some() && whole == area.checked_mul(*size))
            {
                Some(size) => {
                    let deep = cx.new_space(area * size)?;
                    let digits = cx.digits(deep, &[area, size], Shrinks::Only(1));
                    cx.tie(&digits[1], &x.axes[1]);
                    cx.whole(deep)
                }
                None => {
                    cx.keep(&x.axes[1], "SpaceToDepth moves these channels to an axis of unknown size");
                    fixed_axis(&shape[1])
                }
            }
        } else {
            match (axis_size(&x.axes[1]), cx.single(&x.axes[1])) {
                (Some(size), Some(deep)) if is_crd => {
                    cx.digits(deep, &[size / area, area], Shrinks::Only(0)).swap_remove(0)
                }
                (Some(size), Some(deep)) => cx.digits(deep, &[area, size / area], Shrinks::Only(1)).swap_remove(1),
                _ => fixed_axis(&shape[1]),
            }
        };
        let mut axes = vec![x.axes[0].clone(), channels];
        axes.extend(shape.iter().skip(2).map(fixed_axis));
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape, out) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let b = self.block;
        let (split, perm): (Vec<i64>, Vec<usize>) = match self.order {
            // Y is [N, (b, b, C), H / b, W / b].
            Order::Deepening => (vec![out[0], b, b, shape[1], out[2], out[3]], vec![0, 3, 4, 1, 5, 2]),
            Order::ChannelsFirst => (vec![out[0], out[1], shape[2], b, shape[3], b], vec![0, 1, 3, 5, 2, 4]),
            Order::PositionsFirst => (vec![out[0], out[1], shape[2], b, shape[3], b], vec![0, 3, 5, 1, 2, 4]),
        };
        let dx = cx.reshape(&dy, &split);
        let dx = cx.transpose(&dx, &perm);
        let dx = cx.reshape(&dx, &shape);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
