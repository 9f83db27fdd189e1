//! The inputs that a network is run on: given arrays, and random ones that match the declarations of the graph.

mod calibration;
mod drawn;
mod given;
mod sizes;
#[cfg(test)]
mod tests;

use drawn::draw_where;
pub use drawn::{random_input, random_inputs};
use given::some_rows;
pub use given::{check_names, check_size, declared};
use sizes::shape_of;
pub use sizes::{affordable_sizes, size_variants};

use std::path::Path;

use crate::analysis::Analysis;
use crate::array::Array;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::macs::memory::Footprint;

/// The purpose of a run, which decides which networks are in memory at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A comparison with its reference.
    Verification,
    /// Timing of original and pruned network in turn.
    Timing,
}

impl Purpose {
    /// Returns the number of bytes that the run needs.
    fn needed(self, footprint: &Footprint) -> u64 {
        match self {
            Self::Verification => footprint.verification(),
            Self::Timing => footprint.run().saturating_mul(2),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Verification => "verification",
            Self::Timing => "timing",
        }
    }
}

/// Reads arrays by the names of a model's inputs, from a file or from the files of a folder as Olive saves them.
///
/// # Errors
/// Fails if an array matches no input, a file can't be read, or a folder has no such files.
pub fn read(model: &Model, path: &Path) -> Result<Vec<(String, Array)>, Error> {
    if path.is_dir() { calibration::read_folder(model, path) } else { given::read(model, path) }
}

/// The options that decide the inputs of a network.
#[derive(Clone, Debug)]
pub struct InputOptions<'a> {
    /// Arrays to use instead of random ones. `None`: all inputs are random.
    pub inputs: Option<&'a [(String, Array)]>,
    /// Sizes of symbolic dimensions.
    pub sizes: &'a Sizes,
    /// The seed of random inputs.
    pub seed: u64,
    /// The purpose of the run.
    pub purpose: Purpose,
}

/// The sizes of symbolic dimensions, and the inputs at these sizes.
pub type Variant = (Sizes, Vec<(String, Array)>);

/// Returns the inputs to run in turn: random ones at different sizes, and the given arrays, whose sizes the random ones
/// follow. If an array has more rows than needed, evenly spread rows are chosen.
///
/// # Errors
/// Fails if a name matches no input of the graph, an input can't be generated, or memory is too small for all variants.
pub fn input_variants(analysis: &Analysis, options: &InputOptions<'_>) -> Result<Vec<Variant>, Error> {
    let given = options.inputs.unwrap_or_default();
    let draw = |(number, sizes): (usize, Sizes)| {
        let drawn_at = options.seed.wrapping_add(number as u64);
        let is_given = |name: &str| given.iter().any(|(own, _)| own == name);
        let mut inputs = draw_where(analysis, &sizes, drawn_at, &|name| !is_given(name))?;
        for (name, array) in given {
            let first = shape_of(analysis, name).and_then(|shape| shape.first());
            let rows = first.and_then(|dim| usize::try_from(dim.eval(&sizes)?).ok());
            inputs.push((name.clone(), some_rows(array, rows)));
        }
        Ok((sizes, inputs))
    };
    affordable_sizes(analysis, options)?.into_iter().map(draw).collect()
}
