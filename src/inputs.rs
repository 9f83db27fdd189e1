//! What a network is run on: inputs that are given, and random ones from what the graph itself says of them.

mod calibration;
mod drawn;
mod given;
mod sizes;
#[cfg(test)]
mod tests;

use drawn::draw_where;
pub use drawn::{draw_input, draw_inputs};
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

/// What a network is run for, and so what runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A comparison with its reference.
    Verification,
    /// Timing of original and pruned network in turn.
    Timing,
}

impl Purpose {
    /// Bytes that it takes.
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

/// Reads arrays by the names of a model's inputs: those of a file, or of the files of a folder as Olive saves them.
///
/// # Errors
/// What no input takes; a file that can't be read; a folder without such files.
pub fn read(model: &Model, path: &Path) -> Result<Vec<(String, Array)>, Error> {
    if path.is_dir() { calibration::read_folder(model, path) } else { given::read(model, path) }
}

/// What decides the inputs of a network.
#[derive(Clone, Debug)]
pub struct InputOptions<'a> {
    /// Arrays to use instead of random ones.
    pub inputs: Option<&'a [(String, Array)]>,
    /// Sizes of symbolic dimensions.
    pub sizes: &'a Sizes,
    /// The seed of what is drawn.
    pub seed: u64,
    /// What the network is run for.
    pub purpose: Purpose,
}

/// What a network runs on, with the sizes at which inputs were drawn.
pub type Variant = (Sizes, Vec<(String, Array)>);

/// The inputs to try in turn: random ones at different sizes, with those that are given in their place, whose sizes the
/// others follow. Of arrays with more rows than are needed, rows are taken from all over them.
///
/// # Errors
/// A name that is no input of the graph; an input that can't be drawn; too little memory for any of them.
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
