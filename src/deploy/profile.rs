//! The sizes that an engine is built for: minimum, optimum and maximum of every symbolic dimension, in the formats of
//! TensorRT's tools.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Error;
use crate::graph::Graph;
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, has_telling_name, sizes_for};

/// Default maximum number of images per run; guidance doubles the batch.
const IMAGES: i64 = 4;

/// Number of tokens of CLIP's text encoder.
const TOKENS: i64 = 77;

/// Height and width of the latents of an image of 512x512 pixels.
const LATENTS: i64 = 64;

/// The sizes of a symbolic dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// The minimum that an engine takes.
    pub min: i64,
    /// The optimum: the size for which it is optimised.
    pub opt: i64,
    /// The maximum that it takes.
    pub max: i64,
}

impl Extent {
    fn fixed(size: i64) -> Self {
        Self { min: size, opt: size, max: size }
    }

    /// Parses `64`, `1..4` or `1..2..4`. If only minimum and maximum are given, the optimum of a batch is two (one image
    /// with guidance), and that of other dimensions is the maximum.
    ///
    /// # Errors
    /// The text has another format, sizes below one, or sizes out of order.
    fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let form = || {
            Error::usage(format!(
                "--profile: expected {name}=N, MIN..MAX or MIN..OPT..MAX of at least 1, found {text:?}"
            ))
        };
        let sizes: Vec<i64> =
            text.split("..").map(|size| size.trim().parse().map_err(|_| form())).collect::<Result<_, _>>()?;
        let extent = match sizes.as_slice() {
            [size] => Self::fixed(*size),
            [min, max] if is_batch(name) => Self { min: *min, opt: 2.clamp(*min, *max.max(min)), max: *max },
            [min, max] => Self { min: *min, opt: *max, max: *max },
            [min, opt, max] => Self { min: *min, opt: *opt, max: *max },
            _ => return Err(form()),
        };
        match 1 <= extent.min && extent.min <= extent.opt && extent.opt <= extent.max {
            true => Ok(extent),
            false => Err(form()),
        }
    }
}

fn is_batch(name: &str) -> bool {
    let name = name.to_lowercase();
    name.contains("batch") || matches!(name.as_str(), "b" | "n")
}

/// Returns the default sizes of a symbol.
fn default_extent(name: &str) -> Option<Extent> {
    let lower = name.to_lowercase();
    let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    Some(if is_batch(name) {
        Extent { min: 1, opt: 2, max: 2 * IMAGES }
    } else if is(&["height", "width"]) || matches!(lower.as_str(), "h" | "w") {
        Extent::fixed(LATENTS)
    } else if is(&["seq", "token", "text"]) || matches!(lower.as_str(), "l" | "s") {
        Extent::fixed(TOKENS)
    } else {
        return None;
    })
}

/// Minimum, optimum and maximum shape of one input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InputShapes {
    /// The name of the input.
    pub name: String,
    /// Its minimum sizes.
    pub min: Vec<i64>,
    /// Its optimum sizes.
    pub opt: Vec<i64>,
    /// Its maximum sizes.
    pub max: Vec<i64>,
}

/// The sizes that an engine is built for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// The sizes of every free symbolic dimension of the inputs.
    pub symbols: BTreeMap<String, Extent>,
    /// The inputs with symbolic dimensions.
    pub inputs: Vec<InputShapes>,
}

impl Profile {
    /// Computes the profile of a network. `given` contains pairs such as `("batch", "1..4")`; `sizes` fixes others.
    ///
    /// # Errors
    /// The network lacks a given dimension, sizes are invalid, or a dimension has neither given nor default sizes.
    pub fn new((graph, facts): (&Graph, &Facts), given: &[(String, String)], sizes: &Sizes) -> Result<Self, Error> {
        let mut names = std::collections::BTreeSet::new();
        let shape = |input: &usize| facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref());
        graph.inputs.iter().filter_map(shape).flatten().for_each(|dim| dim.symbols(&mut names));
        names.retain(|name| !facts.fixed.contains_key(name));
        let mut symbols = BTreeMap::new();
        for (name, text) in given {
            if !names.contains(name) {
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Error::usage(format!("--profile: the network has no symbolic dimension {name:?}"))
                    .hint(format!("its symbolic dimensions: {known}")));
            }
            symbols.insert(name.clone(), Extent::parse(name, text)?);
        }
        let follows = |name: &String| facts.ties.iter().any(|tie| tie.symbol == *name);
        // The first axis is the batch, whatever its name.
        let first = |name: &String| {
            graph
                .inputs
                .iter()
                .filter_map(shape)
                .any(|shape| shape.first().and_then(Dim::as_symbol).as_ref() == Some(name))
        };
        for name in names.iter().filter(|name| !follows(name)) {
            if symbols.contains_key(name) {
                continue;
            }
            let extent = match sizes.get(name) {
                Some(size) => Some(Extent::fixed(*size)),
                None if first(name) && !has_telling_name(name) => default_extent("batch"),
                None => default_extent(name),
            };
            let extent = extent.ok_or_else(|| {
                Error::usage(format!("the sizes of dimension {name:?} are not given"))
                    .hint(format!("set them with --profile {name}=N or {name}=MIN..MAX"))
            })?;
            symbols.insert(name.clone(), extent);
        }
        let of = |end: fn(&Extent) -> i64| -> Sizes {
            let given: Sizes = symbols.iter().map(|(name, extent)| (name.clone(), end(extent))).collect();
            sizes_for(facts, &given)
        };
        let ends = [of(|extent| extent.min), of(|extent| extent.opt), of(|extent| extent.max)];
        let mut inputs = Vec::new();
        for input in &graph.inputs {
            let Some(shape) = shape(input).filter(|shape| shape.iter().any(|dim| dim.as_const().is_none())) else {
                continue;
            };
            let at = |sizes: &Sizes| shape.iter().map(|dim| dim.eval(sizes).unwrap_or(1)).collect();
            let [min, opt, max] = [at(&ends[0]), at(&ends[1]), at(&ends[2])];
            inputs.push(InputShapes { name: graph.values[*input].name.clone(), min, opt, max });
        }
        Ok(Self { symbols, inputs })
    }

    /// Returns the optimum sizes.
    pub fn usual(&self) -> Sizes {
        self.symbols.iter().map(|(name, extent)| (name.clone(), extent.opt)).collect()
    }

    /// Returns the minimum, the optimum and the maximum sizes.
    pub fn ends(&self) -> [Sizes; 3] {
        let of =
            |end: fn(&Extent) -> i64| self.symbols.iter().map(|(name, extent)| (name.clone(), end(extent))).collect();
        [of(|extent| extent.min), of(|extent| extent.opt), of(|extent| extent.max)]
    }

    /// Formats shapes for `trtexec`, `tensorrt_rtx` and ONNX Runtime: `sample:1x4x64x64,...`.
    pub fn shapes(&self, of: impl Fn(&InputShapes) -> &Vec<i64>) -> String {
        let input = |input: &InputShapes| format!("{}:{}", input.name, joined(of(input), "x"));
        self.inputs.iter().map(input).collect::<Vec<_>>().join(",")
    }

    /// Returns the arguments of `trtexec` and `tensorrt_rtx`; none if all sizes are fixed.
    pub fn trtexec(&self) -> Vec<String> {
        if self.inputs.is_empty() {
            return Vec::new();
        }
        vec![
            format!("--minShapes={}", self.shapes(|input| &input.min)),
            format!("--optShapes={}", self.shapes(|input| &input.opt)),
            format!("--maxShapes={}", self.shapes(|input| &input.max)),
        ]
    }

    /// Returns the arguments of Polygraphy; none if all sizes are fixed.
    pub fn polygraphy(&self) -> Vec<String> {
        if self.inputs.is_empty() {
            return Vec::new();
        }
        let of = |option: &str, of: fn(&InputShapes) -> &Vec<i64>| {
            let inputs: Vec<String> =
                self.inputs.iter().map(|input| format!("{}:[{}]", input.name, joined(of(input), ","))).collect();
            format!("{option} {}", inputs.join(" "))
        };
        vec![
            of("--trt-min-shapes", |input| &input.min),
            of("--trt-opt-shapes", |input| &input.opt),
            of("--trt-max-shapes", |input| &input.max),
        ]
    }

    /// Returns the options of ONNX Runtime's provider, whose names begin with `trt` (TensorRT) or `nv` (TensorRT-RTX).
    pub fn onnx_runtime(&self, prefix: &str) -> BTreeMap<String, String> {
        if self.inputs.is_empty() {
            return BTreeMap::new();
        }
        BTreeMap::from([
            (format!("{prefix}_profile_min_shapes"), self.shapes(|input| &input.min)),
            (format!("{prefix}_profile_opt_shapes"), self.shapes(|input| &input.opt)),
            (format!("{prefix}_profile_max_shapes"), self.shapes(|input| &input.max)),
        ])
    }
}

fn joined(sizes: &[i64], by: &str) -> String {
    sizes.iter().map(i64::to_string).collect::<Vec<_>>().join(by)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn extents_are_parsed_in_three_formats() {
        let of = |name: &str, text: &str| Extent::parse(name, text).ok();
        assert_eq!(of("height", "64"), Some(Extent::fixed(64)));
        assert_eq!(of("batch", "1..8"), Some(Extent { min: 1, opt: 2, max: 8 }));
        assert_eq!(of("batch", "4..8"), Some(Extent { min: 4, opt: 4, max: 8 }));
        assert_eq!(of("height", "32..96"), Some(Extent { min: 32, opt: 96, max: 96 }));
        assert_eq!(of("height", "32..64..96"), Some(Extent { min: 32, opt: 64, max: 96 }));
        for wrong in ["", "0", "8..4", "1..9..4", "1..2..3..4", "x", "-1..2"] {
            assert_eq!(of("batch", wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_profile_is_formatted_for_every_tool() {
        let input =
            InputShapes { name: "sample".into(), min: vec![1, 4, 64], opt: vec![2, 4, 64], max: vec![8, 4, 64] };
        let scale = InputShapes { name: "t".into(), min: vec![1], opt: vec![2], max: vec![8] };
        let profile = Profile { symbols: BTreeMap::new(), inputs: vec![input, scale] };
        assert_eq!(profile.trtexec()[0], "--minShapes=sample:1x4x64,t:1");
        assert_eq!(profile.polygraphy()[2], "--trt-max-shapes sample:[8,4,64] t:[8]");
        assert_eq!(profile.onnx_runtime("nv")["nv_profile_opt_shapes"], "sample:2x4x64,t:2");
        assert!(Profile::default().trtexec().is_empty());
    }
}
