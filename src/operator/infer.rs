//! The interface of shape inference to an operator.

use super::RuleError;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::{Equation, Relation};
use crate::onnx::{DataType, GraphProto};

/// The interface of shape inference to an operator.
pub struct InferCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) inputs: Vec<Option<&'a Fact>>,
    pub(crate) outputs: Vec<Option<Fact>>,
    pub(crate) fresh: &'a mut usize,
    pub(crate) equations: &'a mut Vec<Equation>,
    pub(crate) run_body: &'a mut RunBody<'a>,
}

/// Infers the outputs of a body; see [`InferCx::body`].
pub(crate) type RunBody<'a> =
    dyn FnMut(&GraphProto, Vec<Option<Fact>>, &mut usize) -> Result<Vec<Option<Fact>>, RuleError> + 'a;

impl InferCx<'_> {
    /// Returns the fact of input `slot`.
    ///
    /// # Errors
    /// The node has no such input, or nothing is known of it.
    pub fn input(&self, slot: usize) -> Result<&Fact, RuleError> {
        self.optional(slot).ok_or_else(|| match self.node.input(slot) {
            // The node has the input, but nothing is known of it.
            Some(_) => RuleError::UnknownShape,
            None => RuleError::invalid(format!("input {slot} is missing")),
        })
    }

    /// Returns the fact of an optional input.
    pub fn optional(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Returns the number of inputs, including omitted ones.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// Returns the shape of input `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if its rank is not known.
    pub fn shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.input(slot)?.shape.clone().ok_or(RuleError::UnknownShape)
    }

    /// Requires that input `slot`, if present, is a vector, with `size` elements if that is given.
    ///
    /// # Errors
    /// It has another rank or size.
    pub fn expect_vector(&mut self, slot: usize, size: Option<&Dim>) -> Result<(), RuleError> {
        let Some(shape) = self.optional(slot).and_then(|fact| fact.shape.as_ref()) else { return Ok(()) };
        let [found] = shape.as_slice() else {
            return Err(RuleError::invalid(format!("input {slot} must have rank 1, found {}", shape.len())));
        };
        let found = found.clone();
        match size {
            Some(size) if !self.equal(size, &found) => {
                Err(RuleError::invalid(format!("input {slot} must have {size} elements, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// Records that the network only runs if two sizes are equal, such as the input channels of a convolution and
    /// those of its weight: symbolic sizes of the network's inputs follow from it. Returns whether they can be equal.
    pub fn equal(&mut self, a: &Dim, b: &Dim) -> bool {
        match (a.as_const(), b.as_const()) {
            (Some(a), Some(b)) => a == b,
            _ => {
                self.note(a, b, Relation::Equal);
                true
            }
        }
    }

    /// Computes the shape after numpy broadcasting, as [`super::broadcast`] does. Sizes that meet are assumed to be
    /// equal unless something else determines them.
    ///
    /// # Errors
    /// Two static sizes differ and neither is one.
    pub fn broadcast(&mut self, shapes: &[Vec<Dim>]) -> Result<Vec<Dim>, RuleError> {
        let result = super::broadcast(shapes)?;
        for shape in shapes {
            for (whole, size) in result[result.len() - shape.len()..].iter().zip(shape) {
                self.meet(size, whole);
            }
        }
        Ok(result)
    }

    /// Records that two sizes meet. One of them may be one: numpy broadcasting then repeats it.
    pub fn meet(&mut self, a: &Dim, b: &Dim) {
        self.note(a, b, Relation::Broadcast);
    }

    /// Records that a node reads the first `least` indices of an axis of size `size`.
    pub fn reaches(&mut self, size: &Dim, least: &Dim) {
        self.note(size, least, Relation::Reaches);
    }

    fn note(&mut self, a: &Dim, b: &Dim, relation: Relation) {
        let says_nothing = a == b || relation != Relation::Equal && (a.is(1) || b.is(1));
        if !says_nothing && (a.as_const().is_none() || b.as_const().is_none()) {
            self.equations.push(Equation { a: a.clone(), b: b.clone(), node: self.node.id, relation });
        }
    }

    /// Infers the facts of the outputs of a graph in an attribute of the node, from the facts of its own inputs. The
    /// graph also sees the values around the node.
    ///
    /// # Errors
    /// A node of the body contradicts its specification, or bodies are nested or repeated without bound.
    pub fn body(&mut self, body: &GraphProto, inputs: Vec<Option<Fact>>) -> Result<Vec<Option<Fact>>, RuleError> {
        (self.run_body)(body, inputs, self.fresh)
    }

    /// Returns the known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.optional(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// Returns the known floats of input `slot`.
    pub fn floats(&self, slot: usize) -> Option<&[f64]> {
        match self.optional(slot)?.known.as_ref()? {
            Known::Floats(values) => Some(values),
            Known::Ints(_) => None,
        }
    }

    /// Sets the fact of output `slot`; does nothing if the node omits that output.
    pub fn set(&mut self, slot: usize, fact: Fact) {
        if let Some(output) = self.outputs.get_mut(slot) {
            *output = Some(fact);
        }
    }

    /// Sets element type and shape of output `slot`.
    pub fn set_shape(&mut self, slot: usize, dtype: DataType, shape: Vec<Dim>) {
        self.set(slot, Fact::new(dtype, shape));
    }

    /// Makes a size of which nothing is known, equal only to itself.
    pub fn fresh(&mut self) -> Dim {
        *self.fresh += 1;
        Dim::symbol(&format!("?{}", self.fresh))
    }
}
