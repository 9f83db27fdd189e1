//! Samples in one file of arrays, or in several files that follow each other.

use super::arrays::ArraysOfFile;
use super::ranges::{Affine, Ranges};
use super::text;
use crate::array::{ArrayData, ElementType};
use crate::error::Error;
use crate::npz::StoredArray;

/// Samples in files of arrays, and the other arrays with a row for each sample.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// The number of the first sample after each shard.
    ends: Vec<usize>,
    /// The names of the other arrays with a row for each sample. All shards have them.
    names: Vec<String>,
}

#[derive(Debug)]
struct Shard {
    samples: StoredArray,
    /// `[channels, height, width]` of the network. Set if the channels of the stored samples come last.
    channels_last: Option<[usize; 3]>,
    affine: Affine,
    /// The other arrays with a row for each sample, in the order of the names.
    others: Vec<StoredArray>,
}

impl Shards {
    /// Takes the samples of these files, each with the index of its array of samples. A sample has the network's
    /// `sizes` without the batch. `inputs` are the names of the other arrays to use. `None`: all that have a row for
    /// each sample.
    ///
    /// # Errors
    /// An array can't be read or has another shape. Another array is missing in some files, differs between files, or
    /// is in `inputs` and has another number of rows.
    pub(super) fn new(
        files: Vec<(ArraysOfFile, usize)>,
        sizes: &[usize],
        ranges: &Ranges,
        inputs: Option<&[String]>,
    ) -> Result<Self, Error> {
        let mut all = Self { shards: Vec::new(), ends: Vec::new(), names: Vec::new() };
        let mut first: Option<ArraysOfFile> = None;
        for (mut file, at) in files {
            // Check the shape before the array is read.
            let dims = file.header(at)?.0.to_vec();
            let channels_last = order(&dims, sizes).ok_or_else(|| {
                let expected = text(sizes);
                let text = format!("expected samples of shape {expected}, found an array of shape {dims:?}");
                Error::unreadable(file.path(), text)
                    .hint("if the network has symbolic sizes, set them with --size NAME=N")
            })?;
            let samples = file.array(at)?;
            let affine = ranges.affine(samples.element_type() == ElementType::U8);
            let (names, others) = beside(&mut file, at, inputs)?;
            match (&first, all.shards.first()) {
                (Some(other), Some(shard)) => {
                    same((other, &all.names, &shard.others), (&file, &names, &others))?;
                }
                _ => all.names = names,
            }
            all.ends.push(all.len() + dims.first().copied().unwrap_or(0));
            all.shards.push(Shard { samples, channels_last, affine, others });
            first.get_or_insert(file);
        }
        Ok(all)
    }

    /// Returns the number of samples.
    pub(super) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the names of the other arrays with a row for each sample.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the shard that holds a sample, and its row there.
    fn place(&self, number: usize) -> Option<(&Shard, usize)> {
        let at = self.ends.partition_point(|end| *end <= number);
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some((self.shards.get(at)?, number - start))
    }

    /// Writes a sample into a row of the network's sizes. Returns whether there is such a sample.
    pub(super) fn read(&self, number: usize, out: &mut [f32]) -> bool {
        let Some((shard, row)) = self.place(number) else { return false };
        let Some(values) = shard.samples.row(row) else { return false };
        let Some([channels, height, width]) = shard.channels_last else {
            shard.affine.apply(&values, out);
            return true;
        };
        let mut by_pixel = vec![0.0; out.len()];
        shard.affine.apply(&values, &mut by_pixel);
        let pixels = height * width;
        out.iter_mut().enumerate().for_each(|(at, out)| *out = by_pixel[at % pixels * channels + at / pixels]);
        true
    }

    /// Returns the shape of a row of another array, and the element type.
    pub(super) fn row_of(&self, name: &str) -> Option<(&[usize], ElementType)> {
        let at = self.names.iter().position(|found| found == name)?;
        let array = self.shards.first()?.others.get(at)?;
        Some((array.row_dims(), array.element_type()))
    }

    /// Returns the row of another array that belongs to a sample.
    pub(super) fn row(&self, name: &str, number: usize) -> Option<ArrayData> {
        let at = self.names.iter().position(|found| found == name)?;
        let (shard, row) = self.place(number)?;
        shard.others.get(at)?.row(row)
    }
}

/// Returns `None` if an array of these dimensions does not hold samples of these sizes. Otherwise returns the network's
/// sizes if the channels come last in the array, as in image libraries, and `Some(None)` if they do not. The axis of a
/// single channel may be missing.
fn order(dims: &[usize], sizes: &[usize]) -> Option<Option<[usize; 3]>> {
    let without_channel = sizes.first() == Some(&1) && dims.len() == sizes.len() && dims.get(1..) == sizes.get(1..);
    if dims.get(1..) == Some(sizes) || without_channel {
        return Some(None);
    }
    match (dims, sizes) {
        (&[_, a, b, c], &[channels, height, width]) if [a, b, c] == [height, width, channels] => {
            Some(Some([channels, height, width]))
        }
        _ => None,
    }
}

/// Returns the other arrays with a row for each sample, by name. `inputs` are the names to use; `None`: all of them.
fn beside(
    file: &mut ArraysOfFile,
    samples: usize,
    inputs: Option<&[String]>,
) -> Result<(Vec<String>, Vec<StoredArray>), Error> {
    let count = file.header(samples)?.0.first().copied().unwrap_or(0);
    let mut names: Vec<(String, usize)> = Vec::new();
    for (at, name) in file.names().into_iter().enumerate().filter(|(at, _)| *at != samples) {
        let is_wanted = inputs.is_some_and(|inputs| inputs.iter().any(|input| input == name));
        if !is_wanted && inputs.is_some() {
            continue;
        }
        match file.header(at) {
            Ok((dims, _)) if dims.first() == Some(&count) => names.push((name.to_owned(), at)),
            Ok((dims, _)) if is_wanted => {
                let rows = dims.first().copied().unwrap_or(0);
                let text = format!("array {name:?}: expected a row for each of the {count} samples, found {rows} rows");
                return Err(Error::unreadable(file.path(), text));
            }
            Err(error) if is_wanted => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    names.sort();
    let arrays = names.iter().map(|(_, at)| file.array(*at)).collect::<Result<_, _>>()?;
    Ok((names.into_iter().map(|(name, _)| name).collect(), arrays))
}

/// The other arrays of one file: the file, their names, and the arrays.
type Beside<'a> = (&'a ArraysOfFile, &'a [String], &'a [StoredArray]);

/// Checks that a file has the same other arrays as the first file.
fn same((first, expected, of_first): Beside<'_>, (file, names, arrays): Beside<'_>) -> Result<(), Error> {
    let other = first.path().display();
    let fail = |text: String| Err(Error::unreadable(file.path(), text));
    if let Some(name) = expected.iter().find(|name| !names.contains(name)) {
        return fail(format!("expected an array {name:?} with a row for each sample as in {other}, found none"));
    }
    if let Some(name) = names.iter().find(|name| !expected.contains(name)) {
        return fail(format!("found an array {name:?} with a row for each sample, which {other} does not have"));
    }
    for ((name, a), b) in names.iter().zip(of_first).zip(arrays) {
        let describe = |array: &StoredArray| format!("rows {:?} of {}", array.row_dims(), array.element_type());
        if describe(a) != describe(b) {
            let (a, b) = (describe(a), describe(b));
            return fail(format!("array {name:?}: expected {a} as in {other}, found {b}"));
        }
    }
    Ok(())
}
