//! The adaptive rule: gradients stop when the set of channels to remove no longer changes.

use super::super::choice::selection;
use super::super::options::PruneOptions;
use crate::analysis::Analysis;
use crate::error::Error;
use crate::gradient::accumulate::Visited;
use crate::runtime::Runtime;
use crate::select::Removed;

/// Number of timesteps between two checks of the selection.
pub(super) const EVERY: usize = 10;
/// Number of consecutive checks without a change that end the run.
const CHECKS: usize = 3;

/// The selection at the last checks.
pub(super) struct Settling {
    options: PruneOptions,
    sample_elements: f64,
    last: Option<Vec<Removed>>,
    unchanged: usize,
}

impl Settling {
    pub(super) fn new(options: PruneOptions, sample_elements: f64) -> Self {
        Self { options, sample_elements, last: None, unchanged: 0 }
    }

    /// Returns whether the channels that the cut would remove have been the same for [`CHECKS`] checks in a row.
    ///
    /// # Errors
    /// Fails if the cut can't be made.
    pub(super) fn is_settled(
        &mut self,
        analysis: &Analysis,
        runtime: &Runtime,
        visited: &mut Visited<'_>,
    ) -> Result<bool, Error> {
        if visited.kept() == 0 || !visited.visited().is_multiple_of(EVERY) {
            return Ok(false);
        }
        let found = selection(analysis, &self.options, (visited.sum()?, self.sample_elements), Some(runtime))?;
        self.unchanged = if self.last.as_ref() == Some(&found) { self.unchanged + 1 } else { 0 };
        self.last = Some(found);
        Ok(self.unchanged == CHECKS)
    }
}
