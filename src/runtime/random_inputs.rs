//! Random inputs for a model, generated from the declarations of the graph's inputs.
//!
//! The values depend only on the seed and the input's name (and its type, shape and range). Adding an input, or changing
//! the order, does not change the values of the others.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use sha2::{Digest, Sha256};

use crate::array::{Array, ArrayData, ElementType, element_count};
use crate::runtime::IoInfo;

/// The declared size of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputDim {
    /// A fixed size.
    Fixed(i64),
    /// A size with a name; axes of the same name have the same size.
    Symbol(String),
    /// A size that is not declared.
    Unknown,
}

/// The properties of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// The input's name.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// The sizes of its axes.
    pub dims: Vec<InputDim>,
    /// Minimum and maximum value. `None`: the default for the input.
    pub range: Option<(f64, f64)>,
}

impl From<&IoInfo> for InputSpec {
    fn from(info: &IoInfo) -> Self {
        let dims = info.dims.iter().zip(&info.symbols).map(|(dim, symbol)| match (dim, symbol) {
            (Some(size), _) => InputDim::Fixed(*size),
            (None, Some(symbol)) => InputDim::Symbol(symbol.clone()),
            (None, None) => InputDim::Unknown,
        });
        Self { name: info.name.clone(), element_type: info.element_type, dims: dims.collect(), range: None }
    }
}

/// The reason why inputs can't be generated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DrawError {
    /// A size is negative, or the array would be too large for memory.
    #[error("input {name:?} cannot have the sizes {dims:?}")]
    Size {
        /// The input.
        name: String,
        /// Its sizes.
        dims: Vec<i64>,
    },
    /// The range is empty, not finite, or contains no integer although the input has integers.
    #[error("input {name:?} of type {element_type} cannot have values from {low} to {high}")]
    Range {
        /// The input.
        name: String,
        /// The type of its elements.
        element_type: ElementType,
        /// The lower end.
        low: f64,
        /// The upper end.
        high: f64,
    },
}

/// Maximum number of elements of an input. More can only come from a wrong size.
const ELEMENT_LIMIT: usize = 1 << 31;

/// Generates one array for each input.
///
/// Floats are normally distributed, or uniform in the range if one is given. An input whose name is that of a timestep
/// (see [`is_time_step`]) gets integers from 0 to 999, also in a float type, since networks with float timesteps expect
/// the same scale. A noise level `sigma` in a float type is uniform from 0.01 to 80. A mask is 0 or 1 in any type:
/// networks multiply what it excludes by the most negative number. Other integers are 0 or 1, and booleans are mixed.
/// `sizes` contains sizes for symbols; others get [`default_size`].
pub fn draw(specs: &[InputSpec], sizes: &BTreeMap<String, i64>, seed: u64) -> Result<Vec<(String, Array)>, DrawError> {
    specs.iter().map(|spec| Ok((spec.name.clone(), draw_one(spec, sizes, seed)?))).collect()
}

/// Generates the array for one input.
fn draw_one(spec: &InputSpec, sizes: &BTreeMap<String, i64>, seed: u64) -> Result<Array, DrawError> {
    let declared: Vec<i64> = spec
        .dims
        .iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            InputDim::Fixed(size) => *size,
            InputDim::Symbol(symbol) => sizes.get(symbol).copied().unwrap_or_else(|| default_size(symbol)),
            InputDim::Unknown => default_size_of_axis(axis, spec.dims.len()),
        })
        .collect();
    let size_error = || DrawError::Size { name: spec.name.clone(), dims: declared.clone() };
    let dims: Vec<usize> =
        declared.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().map_err(|_| size_error())?;
    let count = element_count(&dims).filter(|&count| count <= ELEMENT_LIMIT).ok_or_else(size_error)?;
    let values = values(spec, count, &mut generator(seed, &spec.name))?;
    Ok(Array { dims, data: ArrayData::from_f64(spec.element_type, &values) })
}

/// Generates the values of an input.
fn values(spec: &InputSpec, count: usize, random: &mut Pcg64) -> Result<Vec<f64>, DrawError> {
    let kind = spec.element_type;
    let range = spec.range.or_else(|| default_range(&spec.name, kind));
    let Some((low, high)) = range else {
        return Ok(StandardNormal.sample_iter(random).take(count).collect());
    };
    let range_error = || DrawError::Range { name: spec.name.clone(), element_type: kind, low, high };
    if !(low.is_finite() && high.is_finite() && low <= high) {
        return Err(range_error());
    }
    // Unless the caller gives a range, a timestep or a mask is an integer in any type.
    let is_whole = is_time_step(&spec.name) || is_mask(&spec.name);
    if kind.is_float() && (spec.range.is_some() || !is_whole) {
        return Ok((0..count).map(|_| random.random_range(low..=high)).collect());
    }
    let (first, last) = (low.ceil() as i64, high.floor() as i64);
    if first > last {
        return Err(range_error());
    }
    Ok((0..count).map(|_| random.random_range(first..=last) as f64).collect())
}

/// Returns the range of an input for which the caller gives none. `None`: floats are normally distributed.
fn default_range(name: &str, kind: ElementType) -> Option<(f64, f64)> {
    match kind.is_float() {
        _ if kind == ElementType::Bool => Some((0.0, 1.0)),
        // The eight-bit types can't represent all timesteps.
        false if is_time_step(name) && kind.byte_count() == 1 => Some((0.0, 99.0)),
        _ if is_time_step(name) => Some((0.0, 999.0)),
        true if is_noise_level(name) => Some((0.01, 80.0)),
        false if is_noise_level(name) => Some((0.0, 99.0)),
        true if is_mask(name) => Some((0.0, 1.0)),
        true => None,
        false => Some((0.0, 1.0)),
    }
}

/// Whether an input of this name is the timestep of a diffusion process.
pub fn is_time_step(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    name.contains("timestep")
        || words.iter().any(|word| matches!(*word, "t" | "ts" | "time" | "times" | "step" | "steps"))
        // Stable Diffusion XL's "time_ids" are sizes of images, not times.
        && !words.contains(&"ids")
}

/// Whether an input of this name is a mask.
fn is_mask(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| matches!(word, "mask" | "masks"))
}

/// Whether an input of this name is a noise level.
fn is_noise_level(name: &str) -> bool {
    name.to_ascii_lowercase().contains("sigma")
}

/// Returns the default size of a symbolic axis, by its name: small, but such that networks run with it.
pub fn default_size(symbol: &str) -> i64 {
    let symbol = symbol.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| symbol.contains(part));
    if has(&["batch"]) || matches!(symbol.as_str(), "n" | "b" | "bs") {
        2
    } else if has(&["height", "width", "image", "sample_size", "resolution"]) || matches!(symbol.as_str(), "h" | "w") {
        // Several halvings must have integer results.
        16
    } else if has(&["seq", "len", "token", "text"]) || matches!(symbol.as_str(), "l" | "s") {
        // A size that equals no other reveals confused axes.
        7
    } else if has(&["channel"]) || symbol == "c" {
        4
    } else {
        2
    }
}

/// Returns the default size of an axis without a name, by its position: images are batch, channels, height, width.
fn default_size_of_axis(axis: usize, rank: usize) -> i64 {
    match (axis, rank) {
        (0, _) => 2,
        (1, 3) => 7,
        (1, _) => 4,
        (_, 4..) => 16,
        _ => 8,
    }
}

/// Returns the generator for one input. The name is hashed by a function that does not change between versions.
fn generator(seed: u64, name: &str) -> Pcg64 {
    let digest = Sha256::digest(name.as_bytes());
    let half = |range: std::ops::Range<usize>| {
        digest.iter().skip(range.start).take(range.len()).fold(0u128, |sum, &byte| sum << 8 | u128::from(byte))
    };
    Pcg64::new(half(0..16) ^ u128::from(seed), half(16..32).wrapping_add(u128::from(seed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, element_type: ElementType, dims: &[InputDim]) -> InputSpec {
        InputSpec { name: name.to_owned(), element_type, dims: dims.to_vec(), range: None }
    }

    fn symbol(name: &str) -> InputDim {
        InputDim::Symbol(name.to_owned())
    }

    #[test]
    fn an_added_input_does_not_change_the_others() {
        let sample = spec("sample", ElementType::F32, &[symbol("batch"), InputDim::Fixed(3)]);
        let step = spec("timestep", ElementType::I64, &[symbol("batch")]);
        let sizes = BTreeMap::new();
        let alone = draw(std::slice::from_ref(&sample), &sizes, 7).unwrap();
        let both = draw(&[step, sample.clone()], &sizes, 7).unwrap();
        assert_eq!(alone[0], both[1]);
        assert_eq!(alone[0].1.dims, [2, 3]);
        assert_ne!(alone, draw(&[sample], &sizes, 8).unwrap());
    }

    #[test]
    fn values_match_the_name_and_the_type() {
        let count = [InputDim::Fixed(2000)];
        let draw_values = |spec: InputSpec| draw(&[spec], &BTreeMap::new(), 1).unwrap()[0].1.to_f64();
        let floats = draw_values(spec("sample", ElementType::F16, &count));
        let mean = floats.iter().sum::<f64>() / 2000.0;
        let variance = floats.iter().map(|v| v * v).sum::<f64>() / 2000.0;
        assert!(mean.abs() < 0.1 && (variance - 1.0).abs() < 0.15, "{mean} {variance}");
        for kind in [ElementType::I64, ElementType::F32] {
            let steps = draw_values(spec("timestep", kind, &count));
            assert!(steps.iter().all(|v| (0.0..=999.0).contains(v) && v.fract() == 0.0));
            assert!(steps.iter().any(|&v| v > 900.0));
        }
        for kind in [ElementType::Bool, ElementType::I32, ElementType::F32] {
            let mixed = draw_values(spec("mask", kind, &count));
            assert!(mixed.iter().all(|&v| v == 0.0 || v == 1.0) && mixed.contains(&0.0) && mixed.contains(&1.0));
        }
        let ranged = InputSpec { range: Some((1.0, 100.0)), ..spec("difficulty", ElementType::F32, &count) };
        assert!(draw_values(ranged).iter().all(|v| (1.0..=100.0).contains(v)));
    }

    #[test]
    fn sizes_come_from_the_caller_or_from_the_name() {
        let dims = [symbol("batch_size"), InputDim::Fixed(4), symbol("height"), symbol("width")];
        let sizes = BTreeMap::from([("width".to_owned(), 24)]);
        let drawn = draw(&[spec("sample", ElementType::F32, &dims)], &sizes, 0).unwrap();
        assert_eq!(drawn[0].1.dims, [2, 4, 16, 24]);
        assert_eq!(default_size("sequence_length"), 7);
        assert!(draw(&[spec("x", ElementType::F32, &[InputDim::Fixed(-1)])], &sizes, 0).is_err());
        let large = [InputDim::Fixed(1 << 40), InputDim::Fixed(1 << 40)];
        assert!(draw(&[spec("x", ElementType::F32, &large)], &sizes, 0).is_err());
    }

    #[test]
    fn impossible_ranges_are_errors() {
        for range in [(1.0, 0.0), (f64::NAN, 1.0), (0.2, 0.8)] {
            let spec = InputSpec { range: Some(range), ..spec("x", ElementType::I32, &[InputDim::Fixed(1)]) };
            assert!(matches!(draw(&[spec], &BTreeMap::new(), 0), Err(DrawError::Range { .. })));
        }
    }

    #[test]
    fn timesteps_are_recognised_by_name() {
        for name in ["timestep", "timesteps", "t", "time", "model.t", "decoder_timestep"] {
            assert!(is_time_step(name), "{name}");
        }
        for name in ["sample", "time_ids", "text_embeds", "sigma", "latent"] {
            assert!(!is_time_step(name), "{name}");
        }
    }
}
