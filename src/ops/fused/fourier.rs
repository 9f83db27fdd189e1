//! # Rfft and Irfft
//! Fourier transforms of real values over the last axes; complex numbers are pairs on a last axis of two.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_fourie() -> &'static [OpType] {
    const { &[microsoft("Rfft"), microsoft("Irfft")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_fourie, |node| Ok(Box::new(Fourier::parse(node))))];

#[derive(Debug)]
struct Fourier {
    is_inverse: bool,
    is_onesided: bool,
}

impl Fourier {
    fn parse(node: &Node) -> Self {
        Self { is_inverse: node.proto.op_type == "Irfft", is_onesided: node.int("onesided", 0) != 0 }
    }
}

impl Operator for Fourier {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if self.is_inverse {
            shape.pop();
        }
        let (one, two) = (Dim::from(1), Dim::from(2));
        let size = shape.last_mut().ok_or_else(|| RuleError::invalid("a scalar has no transform"))?;
        if self.is_onesided {
            *size = match self.is_inverse {
                true => &(&*size - &one) * &two,
                false => &size.floor_div(&two).ok_or(RuleError::UnknownShape)? + &one,
            };
        }
        if !self.is_inverse {
            shape.push(two);
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
