//! Which constants a node that takes only constants needs, for its outputs to have wanted values.
//!
//! Weights are often stored in another form than a layer uses: transposed, cast, scaled, quantised, several in one
//! tensor. An operator that moves or scales elements computes its inputs from its outputs
//! ([`crate::operator::Operator::preimage`]), without rounding; the stored constant is rounded once, at the end. The
//! caller checks whether the network then computes the wanted values.

use ndarray::{ArrayD, Axis, IxDyn};

use super::{RuleError, axis_index};

/// The inputs and outputs of a node whose inputs are to change.
pub struct PreimageCx<'a> {
    /// The present inputs, numbers of any type as float32; `None` if an input is omitted.
    pub(crate) inputs: &'a [Option<ArrayD<f32>>],
    /// The wanted outputs.
    pub(crate) outputs: &'a [Option<ArrayD<f32>>],
    pub(crate) given: Vec<(usize, ArrayD<f32>)>,
}

impl PreimageCx<'_> {
    /// Returns the number of inputs.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// Returns the number of outputs.
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }

    /// Returns the present input `slot`.
    ///
    /// # Errors
    /// The node omits it.
    pub fn input(&self, slot: usize) -> Result<&ArrayD<f32>, RuleError> {
        let input = self.inputs.get(slot).and_then(Option::as_ref);
        input.ok_or_else(|| RuleError::unsupported(format!("the node omits input {slot}")))
    }

    /// Returns the wanted output `slot`.
    ///
    /// # Errors
    /// The node omits it.
    pub fn wanted(&self, slot: usize) -> Result<ArrayD<f32>, RuleError> {
        let output = self.outputs.get(slot).and_then(Clone::clone);
        output.ok_or_else(|| RuleError::unsupported(format!("the node omits output {slot}")))
    }

    /// Sets input `slot` to `value`, which must have the shape of the present input.
    ///
    /// # Errors
    /// It has another shape.
    pub fn set_input(&mut self, slot: usize, value: ArrayD<f32>) -> Result<(), RuleError> {
        let shape = self.input(slot)?.shape();
        if shape != value.shape() {
            let text = format!("input {slot} has shape {shape:?}, but the wanted value has shape {:?}", value.shape());
            return Err(RuleError::unsupported(text));
        }
        self.given.push((slot, value));
        Ok(())
    }

    /// Sets input 0 to the elements of output 0, in the same order.
    ///
    /// # Errors
    /// The numbers of elements differ.
    pub fn same_elements(&mut self) -> Result<(), RuleError> {
        let shape = self.input(0)?.shape().to_vec();
        let elements: Vec<f32> = self.wanted(0)?.iter().copied().collect();
        let value = ArrayD::from_shape_vec(IxDyn(&shape), elements);
        self.set_input(0, value.map_err(|error| RuleError::unsupported(error.to_string()))?)
    }

    /// Spreads `values` over the shape of `like`: one value for all elements, one for every index of `axis`, or, if
    /// the ranks are equal, one for every block of `block` indices of `axis`.
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
