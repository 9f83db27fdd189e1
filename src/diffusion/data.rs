//! Clean samples: images of a folder, or arrays.
//!
//! [`SampleSource`] gives any of them by number, read when it is asked for; [`Samples`] are some that are in memory, and
//! [`Loader`] brings batch after batch in an order of its own, for data that does not fit there.

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

/// The sizes of arrays in a file, or in the first of a folder of files.
#[derive(Debug, Default)]
pub(crate) struct ArrayDims {
    /// Those of the array of samples; `None` for images.
    pub(crate) samples: Option<Vec<usize>>,
    /// Those of the arrays beside it that were asked for, by name.
    pub(crate) beside: Vec<(String, Vec<usize>)>,
}

impl ArrayDims {
    /// Reads the headers: of the array of samples for the input of this name, and of those with these names.
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
    /// The samples, one per row; the other sizes are those of the network.
    pub values: ArrayD<f32>,
    /// The number of every sample in its source, which is the row of conditioning that belongs to it.
    pub numbers: Vec<usize>,
    /// The samples of the source, from which these were chosen; `None` where they were drawn, which has no end.
    pub total: Option<usize>,
    /// Where they come from, in words.
    pub source: String,
}

impl Samples {
    /// Chooses `count` samples at random from data as [`SampleSource::open`] takes it.
    ///
    /// `dims` is the shape of a batch of the network (its first size does not matter), `name` that of its sample input,
    /// which chooses among several arrays of a file. Images are cropped at their centre and resized where their size
    /// differs. Equal seeds choose equal samples.
    ///
    /// # Errors
    /// The data can't be read, has other sizes than the network takes, or holds fewer samples than asked for.
    pub fn load(path: &Path, of: (&str, &[usize]), ranges: &Ranges, count: usize, seed: u64) -> Result<Self, Error> {
        // Nothing beside the samples is looked at.
        let options = SourceOptions { inputs: Some(Vec::new()), ..SourceOptions::default() };
        let source = SampleSource::open(path, of, ranges, &options)?;
        let kind = source.kind();
        let numbers =
            choose(source.len(), count, seed).map_err(|text| Error::unreadable(path, format!("{text} {kind}")))?;
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

    /// The number of samples in the data; `name` is that of the network's sample input.
    ///
    /// # Errors
    /// The data can't be read.
    pub fn available(path: &Path, name: &str) -> Result<usize, Error> {
        folder::Found::at(path, name)?.count()
    }

    /// The samples at these places, which may be named more than once.
    pub fn select(&self, places: &[usize]) -> Self {
        let numbers = places.iter().map(|place| self.numbers[*place]).collect();
        Self { values: self.values.select(Axis(0), places), numbers, total: self.total, source: self.source.clone() }
    }

    /// Draws samples from the network itself, for when there is no data.
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
        let source = format!("{count} samples drawn from the network itself by {sampler} ({steps} steps, seed {seed})");
        Ok(Self { values, numbers: (0..*count).collect(), total: None, source })
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// Samples of which all numbers are listed and shuffled, at most: of more, the list would take too much memory.
const MOST_LISTED: usize = 1 << 24;

/// `count` of `total` numbers in ascending order, all of them or chosen at random.
fn choose(total: usize, count: usize, seed: u64) -> Result<Vec<usize>, String> {
    if count > total {
        return Err(format!("expected at least {count} (--batch), found {total}"));
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

/// Sizes as text, `3 x 32 x 32`.
fn text(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}
