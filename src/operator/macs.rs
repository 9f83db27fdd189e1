//! The interface of counting to an operator.

/// The interface of counting to an operator: concrete shapes.
pub struct MacsCx<'a> {
    pub(crate) inputs: Vec<Option<&'a [i64]>>,
    pub(crate) outputs: Vec<Option<&'a [i64]>>,
}

impl MacsCx<'_> {
    /// Returns the shape of input `slot`; `None` if not known.
    pub fn input(&self, slot: usize) -> Option<&[i64]> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Returns the shape of output `slot`; `None` if not known.
    pub fn output(&self, slot: usize) -> Option<&[i64]> {
        self.outputs.get(slot).copied().flatten()
    }

    /// Returns the number of elements of output `slot`; zero if not known.
    pub fn output_elements(&self, slot: usize) -> f64 {
        self.output(slot).map_or(0.0, elements)
    }
}

/// Returns the number of elements of a shape.
pub fn elements(shape: &[i64]) -> f64 {
    shape.iter().map(|size| *size as f64).product()
}
