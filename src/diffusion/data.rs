//! Clean samples: images in a folder, or arrays.
//!
//! [`SampleSource`] reads single samples by number, on demand. [`Samples`] are held in memory. [`Loader`] reads batch
//! after batch in a random order, for data that does not fit into memory.

mod arrays;

mod captions;

mod dropped;

mod folder;

mod images;

mod loader;

mod order;

mod ranges;

mod shards;

mod source;

pub use captions::captions;
pub use dropped::replace_dropped;
pub use folder::{image_files, sample_files};
pub use loader::{Batch, Loader, LoaderOptions};
pub use order::SampleOrder;
pub use ranges::Ranges;
pub use source::{SampleSource, SourceOptions, refuse_more_unreadable};

use std::path::Path;

use ndarray::{ArrayD, Axis};
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use super::conditioning::Conditioning;
use super::denoiser::Denoiser;
use super::process::Process;
use super::sampler::{SampleOptions, generate};
use crate::collective::Alone;
use crate::error::Error;

/// The shapes of the arrays in a file, or in the first file of a folder.
#[derive(Debug, Default)]
pub(crate) struct ArrayDims {
    /// The shape of the array of samples. `None`: the data are images.
    pub(crate) samples: Option<Vec<usize>>,
    /// The shapes of the other arrays that were requested, by name.
    pub(crate) beside: Vec<(String, Vec<usize>)>,
}

impl ArrayDims {
    /// Reads array headers: that of the samples, for the input called `input`, and those of the arrays with these
    /// names.
    ///
    /// # Errors
    /// The data can't be read.
    pub(crate) fn read(path: &Path, input: &str, names: &[&str]) -> Result<Self, Error> {
        let found = folder::Found::at(path, input)?;
        let dims_of = |name: &&str| Ok(found.dims_of(name)?.map(|dims| ((*name).to_owned(), dims)));
        let beside = names.iter().filter_map(|name| dims_of(name).transpose()).collect::<Result<_, Error>>()?;
        Ok(Self { samples: found.dims()?, beside })
    }
}

/// Clean samples, `x_0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// The samples, one per row. The other sizes are those of the network.
    pub values: ArrayD<f32>,
    /// The number of every sample in its source: the row of conditioning that belongs to it.
    pub numbers: Vec<usize>,
    /// The number of samples in the source. `None`: the samples were generated, in any number.
    pub total: Option<usize>,
    /// The origin of the samples, for messages.
    pub source: String,
}

impl Samples {
    /// Chooses `count` random samples from data in the form that [`SampleSource::open`] accepts.
    ///
    /// `of` holds the name of the network's sample input, which chooses among several arrays of a file, and the shape
    /// of a batch, whose first size is ignored. Images are cropped at the centre and resized where their size differs.
    /// Equal seeds choose equal samples.
    ///
    /// # Errors
    /// The data can't be read, has other sizes than the network expects, or holds fewer samples than requested.
    pub fn load(path: &Path, of: (&str, &[usize]), ranges: &Ranges, count: usize, seed: u64) -> Result<Self, Error> {
        // Other arrays in the data are not needed.
        let options = SourceOptions { inputs: Some(Vec::new()), ..SourceOptions::default() };
        let source = SampleSource::open(path, of, ranges, &options)?;
        let kind = source.kind();
        let numbers = choose(source.len(), count, seed)
            .map_err(|text| Error::unreadable(path, format!("{text} {kind}")).hint(FEWER))?;
        let mut values = ArrayD::zeros([&[count], source.sizes()].concat());
        let mut resized = 0;
        for (mut row, number) in values.axis_iter_mut(Axis(0)).zip(&numbers) {
            let row = row.as_slice_mut().unwrap_or_default();
            resized += usize::from(source.read(*number, row)?);
        }
        let note = match resized {
            0 => String::new(),
            _ => format!(", {resized} resized to {}", text(source.sizes())),
        };
        let source_text = format!("{count} of {} {kind} of {}{note}", source.len(), path.display());
        Ok(Self { values, numbers, total: Some(source.len()), source: source_text })
    }

    /// Returns the number of samples in the data. `name` is the name of the network's sample input.
    ///
    /// # Errors
    /// The data can't be read.
    pub fn available(path: &Path, name: &str) -> Result<usize, Error> {
        folder::Found::at(path, name)?.count()
    }

    /// Returns the samples at these indices, which may repeat.
    pub fn select(&self, places: &[usize]) -> Self {
        let numbers = places.iter().map(|place| self.numbers[*place]).collect();
        Self { values: self.values.select(Axis(0), places), numbers, total: self.total, source: self.source.clone() }
    }

    /// Generates samples with the network itself, for use without data.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn from_network(
        denoiser: &mut Denoiser,
        process: &Process,
        conditioning: &Conditioning,
        options: &SampleOptions,
        progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let values = generate(denoiser, process, conditioning, options, &Alone, progress)?;
        let SampleOptions { count, steps, seed, sampler, .. } = options;
        let sampler = sampler.describe();
        let source =
            format!("{count} samples generated by the network itself with {sampler} ({steps} steps, seed {seed})");
        Ok(Self { values, numbers: (0..*count).collect(), total: None, source })
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Returns whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// Maximum number of samples for which all numbers are listed and shuffled: beyond it, the list would take too much
/// memory.
const MOST_LISTED: usize = 1 << 24;

/// The remedy if there are too few samples.
const FEWER: &str = "give more samples, or use fewer: --count, or --batch for gradients";

/// Returns `count` random numbers below `total`, or all of them, in ascending order.
fn choose(total: usize, count: usize, seed: u64) -> Result<Vec<usize>, String> {
    if count > total {
        return Err(format!("expected at least {count}, found {total}"));
    }
    let mut numbers: Vec<usize> = if total > MOST_LISTED {
        SampleOrder::new(seed, total).numbers(0..count as u64)
    } else {
        let mut numbers: Vec<usize> = (0..total).collect();
        numbers.shuffle(&mut Pcg64::new(u128::from(seed), 0xda7a));
        numbers.truncate(count);
        numbers
    };
    numbers.sort_unstable();
    Ok(numbers)
}

/// Formats sizes, such as `3 x 32 x 32`.
fn text(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}
