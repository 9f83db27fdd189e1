//! What the pipeline asks of an operator.
//!
//! Everything that is known about an operator stands in one file under `ops/`, as one implementation of
//! [`Operator`]. The framework never names an operator. An operator that is not registered is a barrier: its channels
//! are kept and the run says so.

use thiserror::Error;

use crate::couple::CoupleCx;
use crate::dim::Dim;
use crate::fact::{Fact, Known};
use crate::gradient::GradientCx;
use crate::graph::Node;
use crate::macs::MacsCx;
use crate::onnx::{DataType, GraphProto, NodeProto};
use crate::rewrite::PatchCx;
use crate::verify::reference::ReferenceCx;

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
/// `infer`, `couple` and `reference` have no default: silence must not mean that channels pass through.
pub trait Operator: Sync {
    /// The operators that this implementation covers.
    fn op_types(&self) -> &'static [OpType];

    /// Element types, shapes and known small values of the outputs.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] leaves the outputs to the file's own `value_info`; [`RuleError::Invalid`] refuses
    /// the model.
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError>;

    /// What becomes of the node where it reads nothing but constants.
    fn folding(&self, _node: &Node) -> Folding {
        Folding::Passes
    }

    /// Which indices of the inputs and outputs live or die together.
    ///
    /// # Errors
    /// Any error makes the node a barrier.
    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError>;

    /// Multiply-accumulate operations at the given shapes; zero for operators that only move or compare data.
    fn macs(&self, _node: &Node, _cx: &MacsCx<'_>) -> f64 {
        0.0
    }

    /// Attributes and constants that name a size which shrinks.
    ///
    /// # Errors
    /// The cut can't be expressed; the run fails before anything is written.
    fn patch(&self, _node: &Node, _cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }

    /// Whether `reference` always replaces the node by standard operators, because ONNX Runtime has no kernel for it on
    /// the CPU. The pruned file is then compared with this node in the same form.
    fn is_decomposed(&self, _node: &Node) -> bool {
        false
    }

    /// The node in the reference graph, where removed indices are masked instead of removed.
    ///
    /// # Errors
    /// The node can't be masked; verification fails with this cause.
    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError>;

    /// Whether a constant at input `slot` multiplies channel by channel, as the scale of a norm does.
    fn scales(&self, _node: &Node, _slot: usize) -> bool {
        false
    }

    /// Whether input 0 is an angle; see [`crate::couple::frequencies`].
    fn takes_angle(&self, _node: &Node) -> bool {
        false
    }

    /// The body that runs in every case, where what is `known` of the scalar at an input slot decides; it then takes the
    /// node's place.
    fn decided_body<'n>(&self, _node: &'n NodeProto, _known: &dyn Fn(usize) -> Option<i64>) -> Option<&'n GraphProto> {
        None
    }

    /// Whether its work is sums of products (a convolution, a matrix product), which devices compute fastest from factors
    /// in half precision; see [`crate::gradient::precision`].
    fn sums_products(&self) -> bool {
        false
    }

    /// Whether outputs of integers stand for floating point numbers, as those of QuantizeLinear do: a gradient would
    /// have to pass the node. Other integers (indices, sizes) are taken not to change with a weight.
    fn quantizes(&self, _node: &Node) -> bool {
        false
    }

    /// The gradients of the loss by the inputs, from those by the outputs.
    ///
    /// # Errors
    /// The operator has no gradient in this form; a run that needs one fails and names the node.
    fn gradient(&self, _node: &Node, _cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        Err(RuleError::unsupported("the operator has no gradient"))
    }
}

/// The rules of an operator, if it is registered.
pub fn find(domain: &str, op_type: &str) -> Option<&'static dyn Operator> {
    use std::collections::HashMap;
    use std::sync::OnceLock;
    static BY_NAME: OnceLock<HashMap<(&'static str, &'static str), &'static dyn Operator>> = OnceLock::new();
    let by_name = BY_NAME.get_or_init(|| {
        let types = |op: &&'static dyn Operator| op.op_types().iter().map(|t| (t.domain, t.name)).collect::<Vec<_>>();
        crate::ops::all().flat_map(|op| types(&op).into_iter().map(move |name| (name, op))).collect()
    });
    let domain = if domain == "ai.onnx" { "" } else { domain };
    by_name.get(&(domain, op_type)).copied()
}

/// What shape inference offers to an operator.
pub struct InferCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) inputs: Vec<Option<&'a Fact>>,
    pub(crate) outputs: Vec<Option<Fact>>,
    pub(crate) fresh: &'a mut usize,
}

impl InferCx<'_> {
    /// The fact of input `slot`.
    ///
    /// # Errors
    /// The node has no such input.
    pub fn input(&self, slot: usize) -> Result<&Fact, RuleError> {
        self.optional(slot).ok_or_else(|| match self.node.input(slot) {
            // The input is there, but nothing is known of it.
            Some(_) => RuleError::UnknownShape,
            None => RuleError::invalid(format!("input {slot} is missing")),
        })
    }

    /// The fact of an optional input.
    pub fn optional(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    /// The number of inputs, omitted ones counted.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// The shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if its rank is not known.
    pub fn shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.input(slot)?.shape.clone().ok_or(RuleError::UnknownShape)
    }

    /// Requires that input `slot`, if it is there, is a vector, of `size` elements where that is given.
    ///
    /// # Errors
    /// It has another rank or size.
    pub fn expect_vector(&self, slot: usize, size: Option<&Dim>) -> Result<(), RuleError> {
        let Some(shape) = self.optional(slot).and_then(|fact| fact.shape.as_ref()) else { return Ok(()) };
        let [found] = shape.as_slice() else {
            return Err(RuleError::invalid(format!("input {slot} must have rank 1, found {}", shape.len())));
        };
        match (size.and_then(Dim::as_const), found.as_const()) {
            (Some(size), Some(found)) if size != found => {
                Err(RuleError::invalid(format!("input {slot} must have {size} elements, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// The known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.optional(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// The known floats of input `slot`.
    pub fn floats(&self, slot: usize) -> Option<&[f64]> {
        match self.optional(slot)?.known.as_ref()? {
            Known::Floats(values) => Some(values),
            Known::Ints(_) => None,
        }
    }

    /// Integers that an opset gives as attribute and a later one as input `slot`: `Ok(None)` if neither is there.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the input is there but its elements are not known.
    pub fn ints_of(&self, attribute: &str, slot: usize) -> Result<Option<Vec<Dim>>, RuleError> {
        if let Some(values) = self.node.proto.ints(attribute) {
            return Ok(Some(values.iter().copied().map(Dim::from).collect()));
        }
        match self.optional(slot) {
            None => Ok(None),
            Some(_) => self.ints(slot).map(|values| Some(values.to_vec())).ok_or(RuleError::UnknownShape),
        }
    }

    /// Sets the fact of output `slot`; ignored where the node omits that output.
    pub fn set(&mut self, slot: usize, fact: Fact) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(fact);
        }
    }

    /// Sets output `slot` by type and shape.
    pub fn set_shape(&mut self, slot: usize, dtype: DataType, shape: Vec<Dim>) {
        self.set(slot, Fact::new(dtype, shape));
    }

    /// A size that nothing is known of, equal only to itself.
    pub fn fresh(&mut self) -> Dim {
        *self.fresh += 1;
        Dim::symbol(&format!("?{}", self.fresh))
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
