//! # QuantizeLinear and DequantizeLinear
//! `y = saturate(round(x / scale) + zero_point)` and back, with one scale or one per index of `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html>. Opsets 10 and later, with blocks (21).
//!
//! Coupling: every axis passes through; a scale per index has the indices of `axis`, a scale per block is removed with
//! whole blocks of it.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::{AttributeProto, DataType, TensorProto, attr_int, attr_tensor};
use crate::operator::couple::layout::Layout;
use crate::operator::couple::space::Shrinks;
use crate::operator::{
    CoupleCx, Dequantization, GradientCx, InferCx, LowerCx, OpType, Operator, PreimageCx, ReferenceCx, Registration,
    RuleError, axis_index, microsoft, onnx,
};

fn types_quantizelinear() -> &'static [OpType] {
    const { &[onnx("QuantizeLinear"), onnx("DequantizeLinear"), microsoft("QuantizeLinear"), microsoft("DequantizeLinear")] }
}

/// The domain of ONNX Runtime's own forms.
const MICROSOFT: &str = "com.microsoft";

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_quantizelinear, |node| Ok(Box::new(QuantizeLinear::parse(node))))];

#[derive(Debug)]
struct QuantizeLinear {
    direction: Direction,
    /// The domain of the operator.
    domain: &'static str,
    axis: i64,
    /// The number of indices along the axis that share a scale; `None` unless every block has its own scale.
    block: Option<usize>,
    /// The element type of the output, if the node states it.
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
            domain: if node.proto.domain == MICROSOFT { MICROSOFT } else { "" },
            axis: node.int("axis", 1),
            block: usize::try_from(node.int("block_size", 0)).ok().filter(|size| *size > 0),
            output_type: named.and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok()),
        }
    }
}

impl QuantizeLinear {
    /// Ties the axes of a scale or zero point per block to those of `x`; along the blocked axis, blocks are removed
    /// whole.
    fn tie_blocks(&self, cx: &mut CoupleCx<'_>, x: &Layout, parameter: &Layout, block: usize) -> Result<(), RuleError> {
        if parameter.rank() != x.rank() {
            return Err(RuleError::unsupported(format!(
                "the scales of its blocks have rank {}, but the quantised value has rank {}",
                parameter.rank(),
                x.rank()
            )));
        }
        let blocked = axis_index(self.axis, x.rank())?;
        for (axis, (whole, entries)) in x.axes.iter().zip(&parameter.axes).enumerate() {
            if axis != blocked {
                cx.tie(whole, entries);
                continue;
            }
            let space = cx.single(whole);
            let size = space.map_or(0, |space| cx.size_of(space));
            match space.filter(|_| size > 0 && size.is_multiple_of(block)) {
                Some(space) => {
                    let digits = cx.digits(space, &[size / block, block], Shrinks::Only(0));
                    cx.tie(&digits[0], entries);
                }
                None => {
                    cx.keep(whole, "every block of this axis has its own scale");
                    cx.keep(entries, "every block of this axis has its own scale");
                }
            }
        }
        Ok(())
    }

    /// Returns scale or zero point in float32, one for every element of input 0; empty if the node omits it. A
    /// DequantizeLinear of ones spreads it along the axis or over blocks, whatever the rank.
    fn spread(&self, cx: &mut LowerCx<'_>, slot: usize) -> String {
        if !cx.has(slot) {
            return String::new();
        }
        let (x, parameter) = (cx.input(0), cx.input(slot));
        let parameter = cx.cast(&parameter, DataType::Float);
        let shape = cx.add("Shape", &[&x], vec![]);
        let one = TensorProto {
            data_type: DataType::Int8 as i32,
            dims: vec![1],
            raw_data: vec![1].into(),
            ..TensorProto::default()
        };
        let ones = cx.add("ConstantOfShape", &[&shape], vec![attr_tensor("value", one)]);
        let is_block_attribute = |attribute: &&AttributeProto| matches!(attribute.name.as_str(), "axis" | "block_size");
        let block_attributes = cx.attributes().iter().filter(is_block_attribute).cloned().collect();
        cx.add_in(self.domain, "DequantizeLinear", &[&ones, &parameter], block_attributes)
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

    fn dequantization(&self) -> Option<Dequantization> {
        let is_to_floats = self.direction == Direction::ToFloats;
        is_to_floats.then_some(Dequantization { axis: self.axis, block: self.block.unwrap_or(1) })
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.quantized_layout(0)?;
        for slot in [1, 2] {
            if !cx.has(slot) {
                continue;
            }
            let parameter = cx.quantized_layout(slot)?;
            let parameter = cx.separate(&parameter);
            if let Some(block) = self.block {
                self.tie_blocks(cx, &x, &parameter, block)?;
            } else if let [entries] = parameter.axes.as_slice()
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

    fn without_rounding(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let (scale, zero_point) = (self.spread(cx, 1), self.spread(cx, 2));
        let x = cx.input(0);
        let mut y = cx.cast(&x, DataType::Float);
        match self.direction {
            Direction::ToIntegers => {
                y = cx.add("Div", &[&y, &scale], vec![]);
                if !zero_point.is_empty() {
                    y = cx.add("Add", &[&y, &zero_point], vec![]);
                }
            }
            Direction::ToFloats => {
                if !zero_point.is_empty() {
                    y = cx.add("Sub", &[&y, &zero_point], vec![]);
                }
                y = cx.add("Mul", &[&y, &scale], vec![]);
            }
        }
        cx.set_output(0, &y);
        Ok(true)
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        let mut value = cx.wanted(0)?;
        let block = self.block.unwrap_or(0);
        let scale = PreimageCx::spread(cx.input(1)?, &value, self.axis, block)?;
        let zero_point = match cx.input(2) {
            Ok(zero_point) => PreimageCx::spread(zero_point, &value, self.axis, block)?,
            Err(_) => ndarray::ArrayD::zeros(value.raw_dim()),
        };
        match self.direction {
            Direction::ToFloats => {
                value /= &scale;
                value += &zero_point;
            }
            Direction::ToIntegers => {
                value -= &zero_point;
                value *= &scale;
            }
        }
        cx.set_input(0, value)
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if self.direction == Direction::ToIntegers || cx.wants(0) {
            return Err(RuleError::unsupported("the derivative of rounding to integers is zero wherever it exists"));
        }
        if self.block.is_some() {
            return Err(RuleError::unsupported("no gradient is implemented for scales per block"));
        }
        // y = (x - zero_point) * scale, with one scale and zero point for all elements or one per index of the axis.
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
        cx.add_gradient(1, sum);
        Ok(())
    }
}
