//! # QuantizeLinear and DequantizeLinear
//! `y = saturate(round(x / scale) + zero_point)` and back, with one scale or one per index of `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>. Opsets 10 and later; blocked forms (21) stay.
//!
//! Coupling: every axis passes through; a scale per index is coupled to `axis`.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::{DataType, attr_int};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, microsoft, onnx,
};

fn types_quantizelinear() -> &'static [OpType] {
    const { &[onnx("QuantizeLinear"), onnx("DequantizeLinear"), microsoft("QuantizeLinear"), microsoft("DequantizeLinear")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_quantizelinear, |node| Ok(Box::new(QuantizeLinear::parse(node))))];

#[derive(Debug)]
struct QuantizeLinear {
    direction: Direction,
    axis: i64,
    /// Whether every block along the axis has a scale of its own.
    is_blocked: bool,
    /// The element type of the output, where the node names it.
    output_type: Option<DataType>,
}

#[derive(Debug, PartialEq, Eq)]
enum Direction {
    ToIntegers,
    ToFloats,
}

impl QuantizeLinear {
    fn parse(node: &Node) -> Self {
        let named = node.proto.int("output_dtype").filter(|to| *to != 0);
        Self {
            direction: match node.proto.op_type.as_str() {
                "DequantizeLinear" => Direction::ToFloats,
                _ => Direction::ToIntegers,
            },
            axis: node.int("axis", 1),
            is_blocked: node.int("block_size", 0) != 0,
            output_type: named.and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok()),
        }
    }
}

impl Operator for QuantizeLinear {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let dtype = match self.direction {
            Direction::ToFloats => cx.input(1)?.dtype,
            Direction::ToIntegers => cx.optional(2).map_or(DataType::Uint8, |zero_point| zero_point.dtype),
        };
        cx.set(0, Fact::new(self.output_type.unwrap_or(dtype), shape));
        Ok(())
    }

    fn quantizes(&self) -> bool {
        true
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if self.is_blocked {
            return Err(RuleError::unsupported("it is quantised in blocks"));
        }
        let x = cx.layout(0)?;
        for slot in [1, 2] {
            if !cx.has(slot) {
                continue;
            }
            let parameter = cx.separated(slot)?;
            if let [entries] = parameter.axes.as_slice()
                && !entries.is_empty()
            {
                let axis = axis_index(self.axis, x.rank())?;
                cx.tie(&x.axes[axis], entries);
            }
        }
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if self.direction == Direction::ToIntegers || cx.wants(0) {
            return Err(RuleError::unsupported("rounding to integers has no slope"));
        }
        if self.is_blocked {
            return Err(RuleError::unsupported("it is quantised in blocks"));
        }
        // y = (x - zero_point) * scale, with a scale and a zero point for all or per index of the axis.
        let (dy, x, scale) = (cx.dy()?, cx.shape(0)?, cx.shape(1)?);
        let axis = if scale.is_empty() { None } else { Some(axis_index(self.axis, x.len())?) };
        let float = || vec![attr_int("to", DataType::Float as i64)];
        let mut steps = cx.op_with("Cast", &[&cx.input(0)], float());
        if !cx.input(2).is_empty() {
            let target: Vec<i64> = (0..x.len()).map(|at| if axis == Some(at) { x[at] } else { 1 }).collect();
            let zero_point = cx.op_with("Cast", &[&cx.input(2)], float());
            let zero_point = cx.reshape(&zero_point, &target);
            steps = cx.op("Sub", &[&steps, &zero_point]);
        }
        let product = cx.mul(&dy, &steps);
        let others: Vec<usize> = (0..x.len()).filter(|at| axis != Some(*at)).collect();
        let sum = cx.reduce_sum(&product, &others, false);
        let sum = cx.reshape(&sum, &scale);
        cx.give(1, sum);
        Ok(())
    }
}
