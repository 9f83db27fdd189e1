//! What is known of all values.

use super::fact::Fact;

/// What inference knows of every value, by [`super::ValueId`].
#[derive(Clone, Debug)]
pub struct Facts {
    /// One entry per value; `None` where not even the element type is known.
    pub values: Vec<Option<Fact>>,
    /// Nodes whose operator is not registered or whose shapes could not be inferred, with the cause.
    pub gaps: Vec<(usize, String)>,
    pub(crate) fresh: usize,
}
