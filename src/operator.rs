//! What the pipeline asks of an operator.
//!
//! One file under `ops/` holds everything that is known about an operator, as one implementation of [`Operator`]. The
//! framework never names an operator. An operator that is not registered is a barrier: its channels are kept and the
//! run reports it.

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

/// Why a rule could not be applied. A rule states the cause alone; the stage that called it adds file, node, operator
/// and input shapes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// The rule needs the rank or a size of an input, and it is not known; the node becomes a barrier.
    #[error("a shape or size that its rule needs is not known")]
    UnknownShape,
    /// The node contradicts the operator's specification.
    #[error("{0}")]
    Invalid(String),
    /// The node is valid, but this form of it is not supported; the node becomes a barrier.
    #[error("{0}")]
    Unsupported(String),
}

impl RuleError {
    /// Makes the error of a node that contradicts the operator's specification.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// Makes the error of a node whose form is valid but not supported.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::Unsupported(text.into())
    }
}

/// The name of an operator: its domain and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpType {
    /// The domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// The operator type.
    pub name: &'static str,
}

/// Names an operator of the ONNX standard.
pub const fn onnx(name: &'static str) -> OpType {
    OpType { domain: "", name }
}

/// Names an operator of ONNX Runtime's own domain.
pub const fn microsoft(name: &'static str) -> OpType {
    OpType { domain: "com.microsoft", name }
}

/// Which scale belongs to which quantised number, where there is more than one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dequantization {
    /// The axis along which the scales differ; negative: counted from the end.
    pub axis: i64,
    /// The number of neighbouring indices along the axis that share a scale.
    pub block: usize,
}

/// The inputs that a node quantises when it computes in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// The input slot of the activations.
    pub data: usize,
    /// The input slot of the weight.
    pub weight: usize,
    /// The axis of the weight that holds its output channels: each has a scale of its own.
    pub channels: usize,
    /// The input slot of the bias, a vector over the output channels.
    pub bias: usize,
}

/// How folding treats a node that takes only constants as input ([`crate::fold`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folding {
    /// It is never computed ahead of time: its output differs from run to run.
    Never,
    /// It moves elements or treats each on its own, so that indices can be removed from its inputs.
    Passes,
    /// Its result at one index depends on the other indices: it is computed ahead of time, and indices are removed
    /// from the result.
    Mixes,
}

/// The rules of an operator, in the order of the pipeline.
///
/// A missing rule never lets channels pass through unseen: `infer` has no default, a node without `couple` is a
/// barrier, and verification fails without `lower` or `reference`.
pub trait Operator: std::fmt::Debug + Send + Sync {
    /// Infers element types, shapes and known small values of the outputs.
    ///
    /// # Errors
    /// After [`RuleError::UnknownShape`], the outputs have the shapes that the file's `value_info` states.
    /// [`RuleError::Invalid`] refuses the model.
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError>;

    /// Returns how folding treats the node when it takes only constants as input.
    fn folding(&self) -> Folding {
        Folding::Passes
    }

    /// States which indices of the inputs and outputs must be removed together. Operators of which only the shapes are
    /// known omit it.
    ///
    /// # Errors
    /// Any error makes the node a barrier.
    fn couple(&self, _cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("no coupling rule is known for this operator"))
    }

    /// Returns the integers of output 0 as a grid of indices; `None` where they are no grid.
    fn grid(&self, _cx: &GridCx<'_>) -> Option<Grid> {
        None
    }

    /// Whether the outputs follow from the sizes of the inputs alone, as those of Shape do. The inputs may shrink,
    /// unless the result is an output of the network or computes one: then they are kept.
    fn reads_sizes_alone(&self) -> bool {
        false
    }

    /// Counts multiply-accumulate operations at the given shapes; zero for operators that only move or compare data.
    fn macs(&self, _cx: &MacsCx<'_>) -> f64 {
        0.0
    }

    /// Rewrites attributes and constants that state a size which shrinks.
    ///
    /// # Errors
    /// The cut can't be expressed; the run fails before anything is written.
    fn patch(&self, _cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    /// The standard operators with which a cut may replace the node ([`PatchCx::replace`]).
    fn replacements(&self) -> &'static [&'static str] {
        &[]
    }

    /// Writes the node in standard operators ([`crate::lower`]); returns `false` if it is one. The reference and the
    /// gradients use the lowered form, so that a fused operator needs no rules for them.
    ///
    /// # Errors
    /// This form of the node can't be lowered; it remains unchanged.
    fn lower(&self, _cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        Ok(false)
    }

    /// Whether ONNX Runtime has no CPU kernel for it; on the CPU, it runs only when lowered.
    fn lacks_cpu_kernel(&self) -> bool {
        false
    }

    /// Whether ONNX Runtime's GPU kernel for it accepts these sizes, as far as they are known. A node that no longer
    /// fits its kernel after a cut is written in standard operators.
    fn kernel_takes(&self, _cx: &KernelCx<'_>) -> bool {
        true
    }

    /// Writes the node into the reference graph, where removed indices are masked instead of removed. Operators that
    /// are lowered need no such rule.
    ///
    /// # Errors
    /// The node can't be masked; verification fails with this cause.
    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator has no masked form"))
    }

    /// Whether a constant at input `slot` multiplies each channel, as the scale of a norm does.
    fn scales(&self, _slot: usize) -> bool {
        false
    }

    /// Whether input 0 is an angle; see [`crate::couple::frequencies`].
    fn takes_angle(&self) -> bool {
        false
    }

    /// Returns the body that runs in every case, if the scalar at an input slot decides that and `known` has its
    /// value. The body then replaces the node.
    fn decided_body(&self, _known: &dyn Fn(usize) -> Option<i64>) -> Option<&GraphProto> {
        None
    }

    /// States which tensors and lists of tensors the outputs of a node that builds, changes or reads sequences stand
    /// for. Where they are known, they replace the node.
    ///
    /// # Errors
    /// They are not known before the network runs; the node remains unchanged.
    fn in_tensors(&self, _cx: &mut SequenceCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the node takes a sequence as input"))
    }

    /// Whether integer outputs stand for floating point numbers, as those of QuantizeLinear do: a gradient would have
    /// to pass through the node. Other integers (indices, sizes) are assumed not to change with a weight.
    fn quantizes(&self) -> bool {
        false
    }

    /// For an operator that turns quantised numbers into floating point ones, `(x - zero_point) * scale` with inputs
    /// 0, 2 and 1: which indices of input 0 share a scale. `None` for other operators.
    fn dequantization(&self) -> Option<Dequantization> {
        None
    }

    /// Writes the node in standard operators that compute the same in float32, without rounding to integers; returns
    /// `false` if the node does not round. Verification also compares networks with quantised activations in this
    /// form.
    ///
    /// # Errors
    /// This form of the node can't be written without rounding; it remains unchanged.
    fn without_rounding(&self, _cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        Ok(false)
    }

    /// Computes the gradients of the loss with respect to the inputs, from those with respect to the outputs.
    ///
    /// # Errors
    /// The operator has no gradient in this form; a run that needs one fails and names the node.
    fn gradient(&self, _cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator has no gradient"))
    }

    /// Describes the node as a linear map of one input by a constant weight, which a refit can change; `None` if it is
    /// none.
    fn linear(&self, _cx: &LinearCx<'_>) -> Option<Linear> {
        None
    }

    /// Returns which inputs the node quantises when it computes in integers, for a weight of this rank; `None` if
    /// runtimes have no integer form of it.
    fn quantized(&self, _weight_rank: usize) -> Option<Quantized> {
        None
    }

    /// Computes which inputs a node that takes only constants needs, for its outputs to have the wanted values.
    ///
    /// # Errors
    /// The operator does not merely move or scale elements.
    fn preimage(&self, _cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator can't be inverted"))
    }

    /// Describes the node as a part of a pattern that one kernel computes; `None` if it is none.
    fn part(&self, _cx: &PartCx<'_>) -> Option<Part> {
        None
    }
}

/// The function that parses a node into an operator.
type Parse = fn(&Node) -> Result<Box<dyn Operator>, RuleError>;

/// An entry of the registry: the operators that one implementation covers, and how a node of theirs is parsed.
pub struct Registration {
    op_types: fn() -> &'static [OpType],
    parse: Parse,
    sums_products: bool,
    handles_sequences: bool,
}

impl Registration {
    /// Registers operators whose nodes `parse` reads, each once. It fails with [`RuleError::Invalid`] if the node
    /// contradicts its specification, and with another error if this form of the node is a barrier.
    pub const fn new(op_types: fn() -> &'static [OpType], parse: Parse) -> Self {
        Self { op_types, parse, sums_products: false, handles_sequences: false }
    }

    /// Marks operators that compute sums of products (a convolution, a matrix product), which devices compute fastest
    /// from factors in half precision; see [`crate::gradient::precision`].
    #[must_use]
    pub const fn summing_products(self) -> Self {
        Self { sums_products: true, ..self }
    }

    /// Marks operators that build, change or read sequences ([`Operator::in_tensors`]).
    #[must_use]
    pub const fn of_sequences(self) -> Self {
        Self { handles_sequences: true, ..self }
    }

    /// Whether the operators build, change or read sequences.
    pub fn handles_sequences(&self) -> bool {
        self.handles_sequences
    }

    /// Whether the operators compute sums of products.
    pub fn sums_products(&self) -> bool {
        self.sums_products
    }

    /// Returns the operators that the implementation covers.
    pub fn op_types(&self) -> &'static [OpType] {
        (self.op_types)()
    }

    /// Parses a node into its operator.
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
    /// Parses every node of a graph with `parse`.
    pub fn parse(graph: &Graph, parse: impl Fn(&Node) -> Result<Box<dyn Operator>, RuleError>) -> Self {
        Self { by_node: graph.nodes.iter().map(parse).collect() }
    }

    /// Returns the operator of a node.
    ///
    /// # Errors
    /// The operator is not known, or the node could not be parsed.
    pub fn of(&self, node: NodeId) -> Result<&dyn Operator, RuleError> {
        match self.by_node.get(node) {
            Some(Ok(operator)) => Ok(operator.as_ref()),
            Some(Err(cause)) => Err(cause.clone()),
            None => Err(RuleError::unsupported("the node is not one of this graph")),
        }
    }

    /// Returns the operator of a node; `None` if it is not known or could not be parsed.
    pub fn get(&self, node: NodeId) -> Option<&dyn Operator> {
        self.by_node.get(node)?.as_ref().ok().map(Box::as_ref)
    }
}

/// Returns the index of an axis, which an attribute may count from the end with a negative number.
///
/// # Errors
/// The axis does not exist.
pub fn axis_index(axis: i64, rank: usize) -> Result<usize, RuleError> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let from_front = if axis < 0 { axis + signed } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|axis| *axis < rank)
        .ok_or_else(|| RuleError::invalid(format!("axis {axis} does not exist in a tensor of rank {rank}")))
}

/// Computes the shape after numpy broadcasting. Symbolic sizes that differ are assumed to be equal at run time.
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
                    return Err(RuleError::invalid(format!("sizes {a} and {b} can't be broadcast: neither is 1")));
                }
                _ => {}
            }
        }
    }
    Ok(result)
}
