//! # Elementwise operators of one input
//! Activations and arithmetic of one value.
//! Spec: <https://onnx.ai/onnx/operators/>. All opsets.
//!
//! Coupling: every axis passes through.

mod derivative;
mod function;

use std::sync::OnceLock;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::part::{Part, PartCx};
use crate::operator::{CoupleCx, GradientCx, InferCx, LowerCx, OpType, Operator, ReferenceCx, Registration, RuleError};
use function::{Function, TABLE};

fn types_unary() -> &'static [OpType] {
    static TYPES: OnceLock<Vec<OpType>> = OnceLock::new();
    TYPES.get_or_init(|| TABLE.iter().map(|(op_type, _)| *op_type).collect())
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_unary, |node| Ok(Box::new(Unary::parse(node)?)))];

#[derive(Debug)]
struct Unary {
    function: Function,
    /// Whether it is an operator of ONNX Runtime's domain, which the standard may lack in this version.
    is_own: bool,
}

impl Unary {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        Ok(Self { function: Function::parse(node)?, is_own: node.proto.domain == "com.microsoft" })
    }
}

impl Operator for Unary {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?;
        let dtype = if self.function.is_boolean() { DataType::Bool } else { input.dtype };
        let known = match &input.known {
            Some(Known::Floats(values)) => {
                self.function.of_floats().map(|of| Known::Floats(values.iter().copied().map(of).collect()))
            }
            Some(Known::Ints(values)) => match self.function {
                Function::Neg => Some(values.iter().map(|value| &Dim::from(0) - value).collect()),
                Function::Not => values.iter().map(|v| Some(Dim::from(i64::from(v.as_const()? == 0)))).collect(),
                _ => None,
            }
            .map(Known::Ints),
            None => None,
        };
        let fact = Fact { dtype, shape: input.shape.clone(), known: None }.with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let Function::Swish { alpha } = self.function else { return Ok(false) };
        if !self.is_own {
            return Ok(false);
        }
        let x = cx.float(0);
        let scaled = cx.scaled(&x, alpha);
        let sigmoid = cx.add("Sigmoid", &[&scaled], vec![]);
        let y = cx.add("Mul", &[&x, &sigmoid], vec![]);
        cx.emit(0, &y);
        Ok(true)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn takes_angle(&self) -> bool {
        matches!(self.function, Function::Sin | Function::Cos)
    }

    fn part(&self, _cx: &PartCx<'_>) -> Option<Part> {
        match self.function {
            Function::Sigmoid => Some(Part::Sigmoid),
            Function::Swish { alpha: 1.0 } => Some(Part::Silu),
            _ => None,
        }
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let dx = match self.function {
            // The derivative of a step function is zero wherever it exists.
            Function::Ceil | Function::Floor | Function::Round | Function::Sign => return Ok(()),
            Function::Neg => cx.op("Neg", &[&dy]),
            _ => {
                let derivative = derivative::of(self.function, cx)?;
                cx.mul(&dy, &derivative)
            }
        };
        cx.add_gradient(0, dx);
        Ok(())
    }
}
