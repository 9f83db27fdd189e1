//! # Fused activations of ONNX Runtime
//! BiasGelu, FastGelu, Gelu and BiasAdd: an elementwise function of a sum.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. BiasAdd has no CPU kernel; its CUDA kernel takes 320,
//! 640 and 1280 channels.
//!
//! Coupling: the bias is broadcast to X (and to the skip connection of BiasAdd).

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::infer::InferCx;
use crate::operator::kernel::KernelCx;
use crate::operator::lower::LowerCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_gelu() -> &'static [OpType] {
    const { &[microsoft("BiasGelu"), microsoft("Gelu")] }
}

fn types_fast_gelu() -> &'static [OpType] {
    const { &[microsoft("FastGelu")] }
}

fn types_bias_add() -> &'static [OpType] {
    const { &[microsoft("BiasAdd")] }
}

pub(super) static RULES: &[Registration] = &[
    Registration::new(types_gelu, |node| BiasActivation::parse(node, Function::Gelu)),
    Registration::new(types_fast_gelu, |node| BiasActivation::parse(node, Function::GeluByTanh)),
    Registration::new(types_bias_add, |node| BiasActivation::parse(node, Function::None)),
];

/// The numbers of channels for which the CUDA kernel of BiasAdd is compiled
/// (`onnxruntime/contrib_ops/cuda/diffusion/bias_add.cc`).
const BIAS_ADD_WIDTHS: [i64; 3] = [320, 640, 1280];

/// The function applied to the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    None,
    Gelu,
    /// GELU, approximated with a tanh.
    GeluByTanh,
}

#[derive(Debug)]
struct BiasActivation {
    function: Function,
    /// All inputs, which are summed.
    slots: Vec<usize>,
}

impl BiasActivation {
    fn parse(node: &Node, function: Function) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self { function, slots: (0..node.inputs.len()).collect() }))
    }
}

impl Operator for BiasActivation {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.broadcast(&self.slots)?;
        cx.set(0, layout);
        Ok(())
    }

    fn lacks_cpu_kernel(&self) -> bool {
        self.function == Function::None
    }

    fn kernel_takes(&self, cx: &KernelCx<'_>) -> bool {
        self.function != Function::None || cx.size(0, None).is_none_or(|width| BIAS_ADD_WIDTHS.contains(&width))
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        let sum = cx.sum_of(&self.slots);
        let y = match self.function {
            Function::None => sum,
            Function::Gelu => cx.gelu(&sum),
            Function::GeluByTanh => cx.gelu_by_tanh(&sum),
        };
        cx.emit(0, &y);
        Ok(true)
    }
}
