//! Values for the inputs other than sample and timestep.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::data::{SampleSource, Samples};
use super::roles::Roles;
use crate::array::{Array, ArrayData, each_type, element_count};
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::inputs::random_input;

/// Conditioning for any number of samples.
#[derive(Clone, Debug, Default)]
pub struct Conditioning {
    inputs: BTreeMap<String, Values>,
}

#[derive(Clone, Debug)]
struct Values {
    array: Array,
    /// Whether there is one row per sample. Otherwise all samples share the array.
    per_sample: bool,
    given: bool,
    /// The data that has a row for each sample, to be used instead of the array. `None`: the array is used.
    beside: Option<Arc<SampleSource>>,
}

/// Number of random rows for an input that is not given. More samples reuse them in turn.
const DRAWN_ROWS: usize = 64;

impl Conditioning {
    /// Takes the values that the user gives, by the names of the inputs, and generates random values for the others.
    ///
    /// A given array may have any number of rows: sample `i` uses row `i` and starts over at the end. Random integers
    /// are valid indices into the table that they index. Random floats are normally distributed. Masks are all true and
    /// self-conditioning inputs are zero: networks that do not use these inputs are fed such values.
    ///
    /// # Errors
    /// A given array has the wrong shape, or no values can be generated for an input.
    pub fn new(
        (model, graph, facts): (&Model, &Graph, &Facts),
        roles: &Roles,
        given: Option<&[(String, Array)]>,
        (sizes, batch): (&Sizes, usize),
        seed: u64,
    ) -> Result<Self, Error> {
        let mut inputs = BTreeMap::new();
        for port in roles.conditioning_ports() {
            let dims = port.dims(&roles.sizes(facts, sizes, batch))?;
            let per_sample = roles.is_batched(port);
            let given = given.into_iter().flatten().find(|(name, _)| *name == port.name);
            let array = match given {
                Some((_, array)) => check(&port.name, array, &dims, per_sample)?.cast(port.element_type),
                None => {
                    let mut rows = dims.clone();
                    if per_sample {
                        rows[0] = DRAWN_ROWS;
                    }
                    neutral(&port.name, port.element_type, &rows)
                        .map_or_else(|| random_input((model, graph, facts), &port.name, &rows, seed), Ok)?
                }
            };
            inputs.insert(port.name.clone(), Values { array, per_sample, given: given.is_some(), beside: None });
        }
        Ok(Self { inputs })
    }

    /// Uses the rows stored with the samples for the inputs that were not given: sample `i` uses row `i`.
    ///
    /// # Errors
    /// The rows have another shape than the network expects.
    pub fn with_rows_of(mut self, data: Arc<SampleSource>) -> Result<Self, Error> {
        for name in data.conditioning_names() {
            let Some(values) = self.inputs.get_mut(name).filter(|values| !values.given && values.per_sample) else {
                continue;
            };
            let found = data.rows(name, &[0])?.dims;
            let expected = &values.array.dims;
            if found.get(1..) != expected.get(1..) {
                let text =
                    format!("array {name:?}: expected rows of shape {:?}, found {:?}", &expected[1..], &found[1..]);
                let error = Error::unreadable(data.path(), text);
                return Err(error.hint("if the shape depends on symbolic sizes, set them with --size NAME=N"));
            }
            (values.given, values.beside) = (true, Some(Arc::clone(&data)));
        }
        Ok(self)
    }

    /// Returns whether the user gave values for this input.
    pub fn is_given(&self, input: &str) -> bool {
        self.inputs.get(input).is_some_and(|values| values.given)
    }

    /// Returns a warning for every given input whose number of rows differs from the number of samples, so that rows
    /// may be paired with the wrong samples. A single row is meant for all samples. With generated samples, any number
    /// of rows is right.
    pub fn unpaired(&self, samples: &Samples) -> Vec<String> {
        let Some(total) = samples.total else { return Vec::new() };
        let rows = |values: &Values| values.array.dims.first().copied().filter(|rows| ![1, total].contains(rows));
        let is_array = |values: &Values| values.given && values.per_sample && values.beside.is_none();
        let given = self.inputs.iter().filter(|(_, values)| is_array(values));
        given
            .filter_map(|(name, values)| {
                let rows = rows(values)?;
                let so = match rows < total {
                    true => format!("sample {rows} uses row 0 again"),
                    false => format!("the last {} rows are not used", rows - total),
                };
                Some(format!(
                    "--inputs: array {name:?} has {rows} rows, but the data has {total} samples: {so}. Give one row \
                     per sample, or a single row for all samples"
                ))
            })
            .collect()
    }

    /// Returns the BLAKE3 digest, in hexadecimal, of the conditioning of these samples. The same images with other
    /// labels have another digest.
    ///
    /// # Errors
    /// Rows can't be read.
    pub fn digest(&self, samples: &[usize]) -> Result<String, Error> {
        let mut hash = blake3::Hasher::new();
        for name in self.inputs.keys() {
            hash.update(name.as_bytes());
            let values = self.rows(name, samples)?.to_f64();
            values.iter().for_each(|value| _ = hash.update(&value.to_le_bytes()));
        }
        Ok(hash.finalize().to_hex().as_str().to_owned())
    }

    /// Returns the values of an input for these samples.
    ///
    /// # Errors
    /// The input has no values, or rows stored with the samples can't be read.
    pub fn rows(&self, input: &str, samples: &[usize]) -> Result<Array, Error> {
        let missing = || Error::usage(format!("there is no conditioning for input {input:?}"));
        let values = self.inputs.get(input).ok_or_else(missing)?;
        if !values.per_sample {
            return Ok(values.array.clone());
        }
        if let Some(data) = &values.beside {
            let numbers: Vec<usize> = samples.iter().map(|sample| sample % data.len().max(1)).collect();
            return Ok(data.rows(input, &numbers)?.cast(values.array.element_type()));
        }
        let rows = values.array.dims.first().copied().filter(|rows| *rows > 0).ok_or_else(missing)?;
        let length = values.array.data.len() / rows;
        let mut dims = values.array.dims.clone();
        dims[0] = samples.len();
        let data = gather(&values.array.data, samples.iter().map(|sample| sample % rows), length);
        Ok(Array { dims, data })
    }
}

/// Gathers the rows of `length` elements with these indices.
pub(super) fn gather(data: &ArrayData, rows: impl Iterator<Item = usize>, length: usize) -> ArrayData {
    fn copy<T: Copy>(values: &[T], rows: impl Iterator<Item = usize>, length: usize) -> Vec<T> {
        rows.flat_map(|row| values[row * length..(row + 1) * length].iter().copied()).collect()
    }
    macro_rules! same_type {
        ($($variant:ident),*) => {
            match data {
                $(ArrayData::$variant(values) => ArrayData::$variant(copy(values, rows, length)),)*
            }
        };
    }
    same_type!(F32, F64, F16, BF16, I64, I32, I16, I8, U8, U16, U32, U64, Bool)
}

/// Returns a given array if its shape fits: any number of rows where there is one per sample.
fn check(name: &str, array: &Array, dims: &[usize], per_sample: bool) -> Result<Array, Error> {
    let skip = usize::from(per_sample);
    let same = array.dims.len() == dims.len() && array.dims.get(skip..) == dims.get(skip..);
    let filled =
        element_count(&array.dims).is_some_and(|count| count > 0 && count == each_type!(&array.data, v => v.len()));
    if same && filled {
        return Ok(array.clone());
    }
    let mut expected: Vec<String> = dims.iter().map(usize::to_string).collect();
    if let Some(first) = expected.first_mut().filter(|_| per_sample) {
        *first = "samples".to_owned();
    }
    Err(Error::usage(format!(
        "--inputs: array {name:?}: expected shape [{}], found {:?}",
        expected.join(", "),
        array.dims
    ))
    .hint("if the shape depends on symbolic sizes, set them with --size NAME=N"))
}

/// Returns the values of inputs for which random ones would be wrong: masks and self-conditioning.
fn neutral(name: &str, element_type: crate::array::ElementType, dims: &[usize]) -> Option<Array> {
    let name = name.to_ascii_lowercase();
    let value = if name.contains("mask") {
        1.0
    } else if name.contains("self_cond") {
        0.0
    } else {
        return None;
    };
    Array::from_f64(element_type, dims.to_vec(), &vec![value; element_count(dims)?]).ok()
}
