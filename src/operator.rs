//! What the pipeline asks of an operator.
//!
//! Everything that is known about an operator stands in one file under `ops/`, as one implementation of
//! [`Operator`]. The framework never names an operator. An operator that is not registered is a barrier: its channels
//! are kept and the run says so.

pub mod couple;

pub mod gradient;

pub mod infer;

pub mod kernel;

pub mod linear;

pub mod lower;

pub mod macs;

pub mod part;

pub mod patch;

pub mod preimage;

pub mod reference;

pub mod sequence;

use thiserror::Error;

use crate::graph::dim::Dim;
use crate::graph::{Graph, Node, NodeId};
use crate::onnx::GraphProto;
use couple::grid::{Grid, GridCx};

pub use couple::CoupleCx;
pub use gradient::GradientCx;
pub use infer::InferCx;
pub use kernel::KernelCx;
pub use linear::{Linear, LinearCx};
pub use lower::LowerCx;
pub use macs::MacsCx;
pub use part::{Part, PartCx};
pub use patch::PatchCx;
pub use preimage::PreimageCx;
pub use reference::ReferenceCx;
pub use sequence::SequenceCx;

/// Why a rule could not be applied. Rules give the bare cause; the stage that called them adds file, node, operator
/// and input shapes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// An input's rank or a size that the rule needs is not known; the node becomes a barrier.
    #[error("needs a shape that is not known")]
    UnknownShape,
    /// The node contradicts the operator's specification.
    #[error("{0}")]
    Invalid(String),
    /// The node is valid, but this form of it is not supported; the node becomes a barrier.
    #[error("{0}")]
    Unsupported(String),
}

impl RuleError {
    /// The node contradicts the operator's specification.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// This form of the node is not supported.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::Unsupported(text.into())
    }
}

/// The name of an operator: domain (empty for the standard one) and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpType {
    /// Domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// Operator type.
    pub name: &'static str,
}

/// A standard operator.
pub const fn onnx(name: &'static str) -> OpType {
    OpType { domain: "", name }
}

/// An operator of ONNX Runtime's own domain.
pub const fn microsoft(name: &'static str) -> OpType {
    OpType { domain: "com.microsoft", name }
}

/// How quantised numbers and their scales go together, where there is more than one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dequantization {
    /// The axis along which scales differ; counted from the end where negative.
    pub axis: i64,
    /// Indices along the axis that share a scale.
    pub block: usize,
}

/// What of a node is quantised where it computes in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// The input slot of the activations.
    pub data: usize,
    /// The input slot of the weight.
    pub weight: usize,
    /// The axis of the weight along which its outputs lie: each has a scale of its own.
    pub channels: usize,
    /// The input slot of the bias, a vector along the outputs.
    pub bias: usize,
}

/// What becomes of a node that reads nothing but constants ([`crate::fold`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folding {
    /// It is never computed ahead: its output differs from run to run.
    Never,
    /// It moves elements or treats each by itself, so that indices can be removed from what it reads.
    Passes,
    /// What it makes of one index depends on the others: it is computed ahead, and indices are removed from the result.
    Mixes,
}

/// The rules of an operator, in the order of the pipeline.
///
/// Silence never means that channels pass through: `infer` has no default, without `couple` the node is a barrier, and
/// without `lower` or `reference` verification fails.
pub trait Operator: std::fmt::Debug + Send + Sync {
    /// Element types, shapes and known small values of the outputs.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] leaves the outputs to the file's own `value_info`; [`RuleError::Invalid`] refuses
    /// the model.
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError>;

    /// What becomes of the node where it reads nothing but constants.
    fn folding(&self) -> Folding {
        Folding::Passes
    }

    /// Which indices of the inputs and outputs live or die together. Operators of which only the shapes are known leave it
    /// out.
    ///
    /// # Errors
    /// Any error makes the node a barrier.
    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("which channels depend on which is not known of this operator"))
    }

    /// The integers of output 0 as a grid of indices, where they are one.
    fn grid(&self, _cx: &GridCx<'_>) -> Option<Grid> {
        None
    }

    /// Whether the outputs follow from the sizes of the inputs alone, as a Shape's does. Its inputs may shrink; where it is
    /// an output of the network, or computes one, they stay.
    fn reads_sizes_alone(&self) -> bool {
        false
    }

    /// Multiply-accumulate operations at the given shapes; zero for operators that only move or compare data.
    fn macs(&self, _cx: &MacsCx<'_>) -> f64 {
        0.0
    }

    /// Attributes and constants that name a size which shrinks.
    ///
    /// # Errors
    /// The cut can't be expressed; the run fails before anything is written.
    fn patch(&self, _cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    /// The standard operators as one of which a cut may write the node ([`PatchCx::replace`]).
    fn replacements(&self) -> &'static [&'static str] {
        &[]
    }

    /// Writes the node in standard operators ([`crate::lower`]); `false` if it is one. The reference and gradients see
    /// what it is lowered to, so that a fused operator needs no rules for them.
    ///
    /// # Errors
    /// This form of the node can't be lowered; it stays as it is.
    fn lower(&self, _cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        Ok(false)
    }

    /// Whether ONNX Runtime has no kernel for it on the CPU; it runs there only lowered.
    fn lacks_cpu_kernel(&self) -> bool {
        false
    }

    /// Whether the kernel that ONNX Runtime has for it on a GPU takes these sizes, as far as they are known. A node that no
    /// longer fits its kernel after a cut is written in standard operators.
    fn kernel_takes(&self, _cx: &KernelCx<'_>) -> bool {
        true
    }

    /// The node in the reference graph, where removed indices are masked instead of removed. Operators that are lowered
    /// have none.
    ///
    /// # Errors
    /// The node can't be masked; verification fails with this cause.
    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator has no masked form"))
    }

    /// Whether a constant at input `slot` multiplies channel by channel, as the scale of a norm does.
    fn scales(&self, _slot: usize) -> bool {
        false
    }

    /// Whether input 0 is an angle; see [`crate::couple::frequencies`].
    fn takes_angle(&self) -> bool {
        false
    }

    /// The body that runs in every case, where what is `known` of the scalar at an input slot decides; it then takes the
    /// node's place.
    fn decided_body(&self, _known: &dyn Fn(usize) -> Option<i64>) -> Option<&GraphProto> {
        None
    }

    /// What the outputs of a node that makes, changes or reads sequences stand for: tensors and lists of tensors. Where it
    /// is known, they take the node's place.
    ///
    /// # Errors
    /// It is not known before the network runs; the node stays as it is.
    fn in_tensors(&self, _cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("it reads a sequence"))
    }

    /// Whether outputs of integers stand for floating point numbers, as those of QuantizeLinear do: a gradient would
    /// have to pass the node. Other integers (indices, sizes) are taken not to change with a weight.
    fn quantizes(&self) -> bool {
        false
    }

    /// Of an operator that makes floating point numbers of quantised ones, `(x - zero_point) * scale` with the inputs 0, 2
    /// and 1, which indices of input 0 have a scale of their own.
    fn dequantization(&self) -> Option<Dequantization> {
        None
    }

    /// Writes the node in standard operators that compute the same in float32 without rounding to integers; `false` if it
    /// does not round. Verification compares networks with quantised activations in this form as well.
    ///
    /// # Errors
    /// This form of the node can't be written so; it stays as it is.
    fn without_rounding(&self, _cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        Ok(false)
    }

    /// The gradients of the loss by the inputs, from those by the outputs.
    ///
    /// # Errors
    /// The operator has no gradient in this form; a run that needs one fails and names the node.
    fn gradient(&self, _cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator has no gradient"))
    }

    /// The node as a linear map of one input by a constant weight, which a refit can change.
    fn linear(&self, _cx: &LinearCx<'_>) -> Option<Linear> {
        None
    }

    /// What of the node is quantised where it computes in integers, for a weight of this rank; `None` where runtimes have no
    /// such form of it.
    fn quantized(&self, _weight_rank: usize) -> Option<Quantized> {
        None
    }

    /// What the inputs of a node that reads only constants must be, so that its outputs are what is wanted.
    ///
    /// # Errors
    /// The operator does not merely move or scale elements.
    fn preimage(&self, _cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("what it computes can't be taken back"))
    }

    /// What the node is to the choice of kernels: a part of a pattern that one computes.
    fn part(&self, _cx: &PartCx<'_>) -> Option<Part> {
        None
    }
}

/// How a node becomes an operator.
type Parse = fn(&Node) -> Result<Box<dyn Operator>, RuleError>;

/// An entry of the registry: the operators that one implementation covers, and how it parses a node.
pub struct Registration {
    op_types: fn() -> &'static [OpType],
    parse: Parse,
    sums_products: bool,
    handles_sequences: bool,
}

impl Registration {
    /// Operators whose nodes `parse` reads once. It fails with [`RuleError::Invalid`] where the node contradicts its
    /// specification, and with another error where this form of it is a barrier.
    pub const fn new(op_types: fn() -> &'static [OpType], parse: Parse) -> Self {
        Self { op_types, parse, sums_products: false, handles_sequences: false }
    }

    /// The same, of operators whose work is sums of products (a convolution, a matrix product), which devices compute
    /// fastest from factors in half precision; see [`crate::gradient::precision`].
    #[must_use]
    pub const fn summing_products(self) -> Self {
        Self { sums_products: true, ..self }
    }

    /// The same, of operators that make, change or read sequences ([`Operator::in_tensors`]).
    #[must_use]
    pub const fn of_sequences(self) -> Self {
        Self { handles_sequences: true, ..self }
    }

    /// Whether the operators make, change or read sequences.
    pub fn handles_sequences(&self) -> bool {
        self.handles_sequences
    }

    /// Whether the operators' work is sums of products.
    pub fn sums_products(&self) -> bool {
        self.sums_products
    }

    /// The operators that the implementation covers.
    pub fn op_types(&self) -> &'static [OpType] {
        (self.op_types)()
    }

    /// The operator of a node.
    ///
    /// # Errors
    /// The node contradicts its specification, or has a form that is not supported.
    pub fn parse(&self, node: &Node) -> Result<Box<dyn Operator>, RuleError> {
        (self.parse)(node)
    }
}

/// The operators of all nodes of a graph, parsed once.
#[derive(Debug)]
pub struct Operators {
    by_node: Vec<Result<Box<dyn Operator>, RuleError>>,
}

impl Operators {
    /// Parses every node with `parse`.
    pub fn parse(graph: &Graph, parse: impl Fn(&Node) -> Result<Box<dyn Operator>, RuleError>) -> Self {
        Self { by_node: graph.nodes.iter().map(parse).collect() }
    }

    /// The operator of a node.
    ///
    /// # Errors
    /// It is not known, or the node could not be parsed.
    pub fn of(&self, node: NodeId) -> Result<&dyn Operator, RuleError> {
        match self.by_node.get(node) {
            Some(Ok(operator)) => Ok(operator.as_ref()),
            Some(Err(cause)) => Err(cause.clone()),
            None => Err(RuleError::unsupported("the node is not one of this graph")),
        }
    }

    /// The operator of a node, if it is known and could be parsed.
    pub fn get(&self, node: NodeId) -> Option<&dyn Operator> {
        self.by_node.get(node)?.as_ref().ok().map(Box::as_ref)
    }
}

/// An axis attribute counted from the end where negative.
///
/// # Errors
/// The axis does not exist.
pub fn axis_index(axis: i64, rank: usize) -> Result<usize, RuleError> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_front = if axis < 0 { axis + signed } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|axis| *axis < rank)
        .ok_or_else(|| RuleError::invalid(format!("axis {axis} does not exist in a value of rank {rank}")))
}

/// The shape that numpy broadcasting gives; symbolic sizes that differ are taken to agree at run time.
///
/// # Errors
/// Two static sizes differ and neither is one.
pub fn broadcast(shapes: &[Vec<Dim>]) -> Result<Vec<Dim>, RuleError> {
    let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
    let mut result = vec![Dim::from(1); rank];
    for shape in shapes {
        for (target, size) in result[rank - shape.len()..].iter_mut().zip(shape) {
            if size.is(1) || target == size {
                continue;
            }
            match (target.as_const(), size.as_const()) {
                (Some(1), _) | (None, Some(_)) => *target = size.clone(),
                (Some(a), Some(b)) => {
                    return Err(RuleError::invalid(format!("sizes {a} and {b} do not broadcast")));
                }
                _ => {}
            }
        }
    }
    Ok(result)
}
