//! Clean samples to evaluate a network on: images of a folder, or arrays.

mod arrays;

mod images;

pub(super) use arrays::array_dims;
pub use images::list as image_files;

use std::path::Path;

use ndarray::{ArrayD, Axis};
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use super::conditioning::Conditioning;
use super::denoiser::Denoiser;
use super::process::Process;
use super::sampler::{SampleOptions, generate};
use crate::error::Error;

/// The values that data and network use for the same thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranges {
    /// The values of the data; without them bytes have 0 to 255, and floats are those of the network already.
    pub data: Option<(f64, f64)>,
    /// The values that the network was trained on.
    pub sample: (f64, f64),
}

impl Default for Ranges {
    fn default() -> Self {
        Self { data: None, sample: (-1.0, 1.0) }
    }
}

impl Ranges {
    /// Factor and offset from data to network.
    fn affine(&self, is_bytes: bool) -> (f64, f64) {
        let (low, high) = self.sample;
        match (self.data, is_bytes) {
            (Some((from, to)), _) => scale((from, to), (low, high)),
            (None, true) => scale((0.0, 255.0), (low, high)),
            (None, false) => (1.0, 0.0),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let valid = |(low, high): (f64, f64)| low.is_finite() && high.is_finite() && low < high;
        match self.data.into_iter().chain([self.sample]).find(|range| !valid(*range)) {
            Some((low, high)) => Err(Error::usage(format!("expected a range LOW,HIGH, found {low},{high}"))),
            None => Ok(()),
        }
    }
}

fn scale((from, to): (f64, f64), (low, high): (f64, f64)) -> (f64, f64) {
    let factor = (high - low) / (to - from);
    (factor, low - from * factor)
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
    /// Chooses `count` samples at random from a folder of PNG and JPEG files, or from a `.npy`, `.npz` or
    /// `.safetensors` file.
    ///
    /// `dims` is the shape of a batch of the network (its first size does not matter), `name` that of its sample input,
    /// which chooses among several arrays of a file. Images are cropped at their centre and resized where their size
    /// differs. Equal seeds choose equal samples.
    ///
    /// # Errors
    /// The data can't be read, has other sizes than the network takes, or holds fewer samples than asked for.
    pub fn load(
        path: &Path,
        (name, dims): (&str, &[usize]),
        ranges: &Ranges,
        count: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        ranges.check()?;
        let fail = |text: String| Error::unreadable(path, text);
        let sizes = dims.get(1..).filter(|sizes| !sizes.is_empty() && !sizes.contains(&0)).ok_or_else(|| {
            fail(format!("data needs a network whose samples have axes, found input {name:?} of shape {dims:?}"))
        })?;
        if path.is_dir() {
            let files = images::list(path)?;
            let numbers = choose(files.len(), count, seed).map_err(|text| fail(format!("{text} images")))?;
            let mut values = ArrayD::zeros([&[count], sizes].concat());
            let mut resized = 0;
            for (mut row, number) in values.axis_iter_mut(Axis(0)).zip(&numbers) {
                let image = images::read(&files[*number], sizes)?;
                resized += usize::from(image.was_resized);
                let (factor, offset) = ranges.affine(true);
                row.iter_mut().zip(&image.values).for_each(|(out, v)| *out = (f64::from(*v) * factor + offset) as f32);
            }
            let note = if resized > 0 { format!(", {resized} resized to {}", text(sizes)) } else { String::new() };
            let source = format!("{count} of {} images of {}{note}", files.len(), path.display());
            return Ok(Self { values, numbers, total: Some(files.len()), source });
        }
        let array = arrays::read(path, name, sizes)?;
        let numbers = choose(array.count, count, seed).map_err(|text| fail(format!("{text} samples")))?;
        let (factor, offset) = ranges.affine(array.is_bytes);
        let length: usize = sizes.iter().product();
        let values = numbers.iter().flat_map(|number| &array.values[number * length..(number + 1) * length]);
        let values = values.map(|v| (f64::from(*v) * factor + offset) as f32).collect();
        let values =
            ArrayD::from_shape_vec([&[count], sizes].concat(), values).map_err(|error| fail(error.to_string()))?;
        let source = format!("{count} of {} samples of {}", array.count, path.display());
        Ok(Self { values, numbers, total: Some(array.count), source })
    }

    /// The number of samples in a folder of images or an array file; `name` is that of the network's sample input.
    ///
    /// # Errors
    /// The data can't be read.
    pub fn available(path: &Path, name: &str) -> Result<usize, Error> {
        if path.is_dir() {
            return images::list(path).map(|files| files.len());
        }
        Ok(array_dims(path, name)?.first().copied().unwrap_or(0))
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
        let values = generate(denoiser, process, conditioning, options, progress)?;
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

/// `count` of `total` numbers in ascending order, all of them or chosen at random.
fn choose(total: usize, count: usize, seed: u64) -> Result<Vec<usize>, String> {
    if count > total {
        return Err(format!("expected at least {count} (--batch), found {total}"));
    }
    let mut numbers: Vec<usize> = (0..total).collect();
    numbers.shuffle(&mut Pcg64::new(u128::from(seed), 0xda7a));
    numbers.truncate(count);
    numbers.sort_unstable();
    Ok(numbers)
}

/// Sizes as text, `3 x 32 x 32`.
fn text(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}
