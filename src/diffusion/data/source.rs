//! Clean samples by number, read on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::dropped::replace_dropped;
use super::folder::Found;
use super::images;
use super::ranges::Ranges;
use super::shards::Shards;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::npz::from_bytes;

/// The settings of reading samples.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Maximum number of unreadable images that are skipped. One more is an error. Arrays are never skipped.
    pub most_unreadable: usize,
    /// The names of the network's other inputs. Only arrays with these names are used as conditioning, and each must
    /// have a row for every sample. `None`: all arrays that have a row for every sample are used.
    pub inputs: Option<Vec<String>>,
    /// The empty conditioning, by the name of the input: one row, with or without a first axis of size 1. Inputs
    /// without it get zeros, see [`SampleSource::rows_with_dropped`].
    pub empty: Vec<(String, Array)>,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { most_unreadable: 16, inputs: None, empty: Vec::new() }
    }
}

/// Clean samples, `x_0`, on disk, accessed by number, in the value range and shape of the network.
///
/// Threads may read at the same time. Data may be larger than memory: images are decoded on demand, and only the rows
/// of arrays that are needed are read.
#[derive(Debug)]
pub struct SampleSource {
    path: PathBuf,
    /// The shape of a sample.
    sizes: Vec<usize>,
    ranges: Ranges,
    form: Form,
    most_unreadable: usize,
    empty: BTreeMap<String, Array>,
    /// Images that could not be read, with the reasons. They are not tried again.
    unreadable: Mutex<BTreeMap<usize, String>>,
}

#[derive(Debug)]
enum Form {
    Images(Vec<PathBuf>),
    Arrays(Shards),
}

impl SampleSource {
    /// Opens clean samples at a path. `name` is the name of the network's sample input, `dims` the shape of its batch,
    /// whose first size is ignored.
    ///
    /// - A folder of PNG and JPEG files, including subfolders, numbered in the order of their paths. Images are cropped
    ///   at the centre to the network's aspect ratio and resized where their size differs.
    /// - A `.npy` file, which is mapped into memory. Elements are floats or bytes (other numbers are used unchanged).
    ///   The axis of a single channel may be missing, and channels may come last. Arrays in column-major (Fortran)
    ///   order are read completely.
    /// - A `.npz` or `.safetensors` file, mapped as well. Compressed members of an archive are unpacked into memory, if
    ///   there is enough. The samples are the array that has the name of the input, the only one of floats or bytes, or
    ///   one with a usual name ("samples", "images", "latents"). Other arrays with as many rows are conditioning: row
    ///   `i` belongs to sample `i`.
    /// - A folder of such files as shards, in the order of their paths. The numbers continue from one to the next.
    ///
    /// # Errors
    /// The data can't be read, has another shape than the network expects, or holds no samples, or a range is invalid.
    pub fn open(
        path: &Path,
        (name, dims): (&str, &[usize]),
        ranges: &Ranges,
        options: &SourceOptions,
    ) -> Result<Self, Error> {
        ranges.check()?;
        let fail = |text: String| Error::unreadable(path, text);
        let sizes = dims.get(1..).filter(|sizes| !sizes.is_empty() && !sizes.contains(&0)).ok_or_else(|| {
            fail(format!("expected samples with axes of positive size, found input {name:?} of shape {dims:?}"))
        })?;
        let form = match Found::at(path, name)? {
            Found::Images(files) => {
                images::check(sizes).map_err(|error| error.in_file(files.first().map_or(path, PathBuf::as_path)))?;
                Form::Images(files)
            }
            Found::Arrays(files) => Form::Arrays(Shards::new(files, sizes, ranges, options.inputs.as_deref())?),
        };
        let mut source = Self {
            path: path.to_owned(),
            sizes: sizes.to_vec(),
            ranges: *ranges,
            form,
            most_unreadable: options.most_unreadable,
            empty: BTreeMap::new(),
            unreadable: Mutex::default(),
        };
        if source.is_empty() {
            return Err(fail("expected samples, found none".to_owned()));
        }
        for (name, array) in &options.empty {
            if let Some(row) = source.row_of(name) {
                let row = as_row(name, array, row)?;
                source.empty.insert(name.clone(), row);
            }
        }
        Ok(source)
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Images(files) => files.len(),
            Form::Arrays(shards) => shards.len(),
        }
    }

    /// Returns whether there are no samples. [`SampleSource::open`] refuses such data.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the shape of a sample: that of the network's input without the batch.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Returns the path of the samples.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file of an image. `None` if the samples are arrays.
    pub fn image(&self, number: usize) -> Option<&Path> {
        match &self.form {
            Form::Images(files) => files.get(number).map(PathBuf::as_path),
            Form::Arrays(_) => None,
        }
    }

    /// Returns the kind of the samples for messages: "images" or "samples".
    pub(super) fn kind(&self) -> &'static str {
        match self.form {
            Form::Images(_) => "images",
            Form::Arrays(_) => "samples",
        }
    }

    /// Describes the samples for messages, such as `50000 images of data/train`.
    pub fn describe(&self) -> String {
        format!("{} {} of {}", self.len(), self.kind(), self.path.display())
    }

    /// Reads a sample into `out`, which has `sizes().iter().product()` values. Returns whether an image was resized.
    ///
    /// # Errors
    /// There is no such sample, it can't be read, or it has elements that are not finite.
    pub fn read(&self, number: usize, out: &mut [f32]) -> Result<bool, Error> {
        let expected: usize = self.sizes.iter().product();
        if out.len() != expected {
            let text = format!("expected a row of {expected} values for a sample, found {}", out.len());
            return Err(Error::usage(text).in_file(&self.path));
        }
        match &self.form {
            Form::Images(files) => {
                let file = files.get(number).ok_or_else(|| self.missing(number))?;
                let image = images::read(file, &self.sizes)?;
                self.ranges.affine(true).apply(&ArrayData::U8(image.values), out);
                Ok(image.was_resized)
            }
            Form::Arrays(shards) if !shards.read(number, out) => Err(self.missing(number)),
            Form::Arrays(_) if out.iter().any(|value| !value.is_finite()) => {
                let text = format!("sample {number} (counted from 0) has elements that are not finite");
                Err(Error::unreadable(&self.path, text).hint("remove the sample from the data"))
            }
            Form::Arrays(_) => Ok(false),
        }
    }

    fn missing(&self, number: usize) -> Error {
        Error::unreadable(&self.path, format!("expected a sample number below {}, found {number}", self.len()))
    }

    /// Reads the first readable sample of `candidates` and returns its number. Adds unreadable images to `met`.
    ///
    /// # Errors
    /// `met` has more images than may be skipped, no candidate can be read, or an array can't be read.
    pub(super) fn read_first(
        &self,
        candidates: impl Iterator<Item = usize>,
        out: &mut [f32],
        met: &mut BTreeMap<usize, String>,
    ) -> Result<usize, Error> {
        let known = || self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        for number in candidates {
            let before = known().get(&number).cloned();
            let reason = match before {
                Some(reason) => reason,
                None => match self.read(number, out) {
                    Ok(_) => return Ok(number),
                    Err(error) if matches!(self.form, Form::Arrays(_)) => return Err(error),
                    Err(error) => error.to_string(),
                },
            };
            known().insert(number, reason.clone());
            met.insert(number, reason);
            self.check_unreadable(met)?;
        }
        Err(Error::unreadable(&self.path, format!("expected {} that can be read, found none", self.kind())))
    }

    /// Checks that the number of unreadable images is within the limit.
    ///
    /// # Errors
    /// There are more. The error lists all of them.
    pub(super) fn check_unreadable(&self, met: &BTreeMap<usize, String>) -> Result<(), Error> {
        refuse_more_unreadable(&self.path, self.most_unreadable, met.values())
    }

    /// Returns the names of the arrays that hold a row of conditioning for each sample, sorted.
    pub fn conditioning_names(&self) -> &[String] {
        match &self.form {
            Form::Images(_) => &[],
            Form::Arrays(shards) => shards.names(),
        }
    }

    /// Returns the shape and element type of a row of conditioning.
    fn row_of(&self, name: &str) -> Option<(&[usize], ElementType)> {
        match &self.form {
            Form::Images(_) => None,
            Form::Arrays(shards) => shards.row_of(name),
        }
    }

    /// Returns the rows of conditioning that belong to these samples, in the element type of the file.
    ///
    /// # Errors
    /// There is no such array or no such sample.
    pub fn rows(&self, name: &str, numbers: &[usize]) -> Result<Array, Error> {
        let (Form::Arrays(shards), Some((dims, element_type))) = (&self.form, self.row_of(name)) else {
            let found = self.conditioning_names().join(", ");
            let text = format!("expected an array {name:?} with a row for each sample, found [{found}]");
            return Err(Error::unreadable(&self.path, text));
        };
        let mut bytes = Vec::new();
        for number in numbers {
            shards.row(name, *number).ok_or_else(|| self.missing(*number))?.append_bytes(&mut bytes);
        }
        let data = from_bytes(element_type, &bytes);
        Array::new([&[numbers.len()], dims].concat(), data)
            .map_err(|error| Error::unreadable(&self.path, format!("array {name:?}: {error}")))
    }

    /// Returns [`SampleSource::rows`] with empty conditioning in the rows of dropped samples.
    ///
    /// Empty conditioning is the row in [`SourceOptions::empty`], or zeros. Masks (arrays with "mask" in their names)
    /// keep their rows unless such a row is given: many networks are undefined if everything is masked.
    ///
    /// # Errors
    /// As [`SampleSource::rows`].
    pub fn rows_with_dropped(&self, name: &str, numbers: &[usize], dropped: &[bool]) -> Result<Array, Error> {
        let mut rows = self.rows(name, numbers)?;
        replace_dropped(name, &mut rows, dropped, self.empty.get(name));
        Ok(rows)
    }
}

/// Returns an error if more than `most` images of a folder can't be read. `reasons` has one entry for each, with its
/// name.
///
/// # Errors
/// See above.
pub fn refuse_more_unreadable<'r>(
    folder: &Path,
    most: usize,
    reasons: impl ExactSizeIterator<Item = &'r String>,
) -> Result<(), Error> {
    let found = reasons.len();
    if found <= most {
        return Ok(());
    }
    let list: String = reasons.map(|reason| format!("\n  {reason}")).collect();
    let text = format!("expected at most {most} images that can't be read, found {found}:{list}");
    Err(Error::unreadable(folder, text).hint("remove or repair these files"))
}

/// Checks an array of empty conditioning and returns it as a row.
fn as_row(name: &str, array: &Array, (dims, element_type): (&[usize], ElementType)) -> Result<Array, Error> {
    let without_batch = array.dims.first() == Some(&1) && array.dims.get(1..) == Some(dims);
    let length: usize = dims.iter().product();
    if (array.dims != dims && !without_batch) || array.data.len() != length {
        let text =
            format!("--empty-conditioning: array {name:?}: expected one row of shape {dims:?}, found {:?}", array.dims);
        return Err(Error::usage(text));
    }
    let row = Array { dims: dims.to_vec(), data: array.data.clone() };
    Ok(row.cast(element_type))
}

#[cfg(test)]
mod tests;
