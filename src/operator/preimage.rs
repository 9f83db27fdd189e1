//! What a constant must be so that a node which reads only constants gives what is wanted.
//!
//! Weights are often stored in another form than a layer reads them: transposed, cast, scaled, quantised, several in one.
//! An operator that moves or scales elements says how its inputs follow from its outputs
//! ([`crate::operator::Operator::preimage`]), without rounding; the stored constant is rounded once, at the end. Whether the
//! network then computes what is wanted is for the caller to check.

use ndarray::{ArrayD, Axis, IxDyn};

use super::{RuleError, axis_index};

/// The inputs and outputs of a node whose inputs are to change.
pub struct PreimageCx<'a> {
    /// What the inputs are now, numbers of any type as float32; `None` where an input is omitted.
    pub(crate) inputs: &'a [Option<ArrayD<f32>>],
    /// What the outputs are to be.
    pub(crate) outputs: &'a [Option<ArrayD<f32>>],
    pub(crate) given: Vec<(usize, ArrayD<f32>)>,
}

impl PreimageCx<'_> {
    /// The number of inputs.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// The number of outputs.
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }

    /// What input `slot` is now.
    ///
    /// # Errors
    /// The node omits it.
    pub fn input(&self, slot: usize) -> Result<&ArrayD<f32>, RuleError> {
        let input = self.inputs.get(slot).and_then(Option::as_ref);
        input.ok_or_else(|| RuleError::unsupported(format!("input {slot} is not given")))
    }

    /// What output `slot` is to be.
    ///
    /// # Errors
    /// The node omits it.
    pub fn wanted(&self, slot: usize) -> Result<ArrayD<f32>, RuleError> {
        let output = self.outputs.get(slot).and_then(Clone::clone);
        output.ok_or_else(|| RuleError::unsupported(format!("output {slot} is not given")))
    }

    /// Input `slot` is to be `value`, which has the shape of what it is now.
    ///
    /// # Errors
    /// It has another shape.
    pub fn give(&mut self, slot: usize, value: ArrayD<f32>) -> Result<(), RuleError> {
        let shape = self.input(slot)?.shape();
        if shape != value.shape() {
            let text = format!("input {slot} has shape {shape:?}, what it should be has {:?}", value.shape());
            return Err(RuleError::unsupported(text));
        }
        self.given.push((slot, value));
        Ok(())
    }

    /// Input 0 has the elements of output 0 in the same order.
    ///
    /// # Errors
    /// They differ in number.
    pub fn same_elements(&mut self) -> Result<(), RuleError> {
        let shape = self.input(0)?.shape().to_vec();
        let elements: Vec<f32> = self.wanted(0)?.iter().copied().collect();
        let value = ArrayD::from_shape_vec(IxDyn(&shape), elements);
        self.give(0, value.map_err(|error| RuleError::unsupported(error.to_string()))?)
    }

    /// The elements of `values` spread over the shape of `like`: one for all, one for every index of `axis`, or, of the
    /// same rank, one for every block of `block` indices of it.
    ///
    /// # Errors
    /// The shapes don't fit.
    pub fn spread(values: &ArrayD<f32>, like: &ArrayD<f32>, axis: i64, block: usize) -> Result<ArrayD<f32>, RuleError> {
        let unfit = || {
            let (values, like) = (values.shape(), like.shape());
            RuleError::unsupported(format!("scales of shape {values:?} don't fit elements of shape {like:?}"))
        };
        if values.len() == 1 {
            let value = values.iter().next().copied().unwrap_or(1.0);
            return Ok(ArrayD::from_elem(like.raw_dim(), value));
        }
        let axis = axis_index(axis, like.ndim())?;
        let size = like.shape()[axis];
        let spread = if values.ndim() == 1 && size == values.len() {
            let mut shape = vec![1; like.ndim()];
            shape[axis] = size;
            let shaped = values.to_shape(IxDyn(&shape)).map_err(|_| unfit())?.into_owned();
            shaped.broadcast(like.raw_dim()).ok_or_else(unfit)?.into_owned()
        } else if values.ndim() == like.ndim() && block > 0 {
            let indices: Vec<usize> = (0..size).map(|at| at / block).collect();
            if indices.last().is_some_and(|last| *last >= values.shape()[axis]) {
                return Err(unfit());
            }
            values.select(Axis(axis), &indices)
        } else {
            return Err(unfit());
        };
        if spread.shape() == like.shape() { Ok(spread) } else { Err(unfit()) }
    }
}
