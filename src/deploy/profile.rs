//! The sizes that an engine is built for: least, usual and largest of every symbolic dimension, and the forms in which
//! TensorRT's tools take them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Error;
use crate::graph::Graph;
use crate::graph::dim::Dim;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, has_telling_name, sizes_for};

/// Images that are drawn at once, at most, where nothing is said; guidance doubles the batch.
const IMAGES: i64 = 4;

/// Tokens of CLIP's text encoder.
const TOKENS: i64 = 77;

/// Latents of an image of 512 x 512 pixels.
const LATENTS: i64 = 64;

/// Sizes of a symbolic dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// The least that an engine takes.
    pub min: i64,
    /// The one that it is built to be fast at.
    pub opt: i64,
    /// The largest that it takes.
    pub max: i64,
}

impl Extent {
    fn fixed(size: i64) -> Self {
        Self { min: size, opt: size, max: size }
    }

    /// Reads `64`, `1..4` or `1..2..4`. Of two ends, the usual size of a batch is two (one image with guidance), else the
    /// largest.
    ///
    /// # Errors
    /// Another form, sizes below one or out of order.
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

/// The extent of a symbol of which nothing is said.
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

/// Shapes of one input at the three sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InputShapes {
    /// The input.
    pub name: String,
    /// Its least sizes.
    pub min: Vec<i64>,
    /// Its usual sizes.
    pub opt: Vec<i64>,
    /// Its largest sizes.
    pub max: Vec<i64>,
}

/// The sizes that an engine is built for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Every symbolic dimension of the inputs that is free.
    pub symbols: BTreeMap<String, Extent>,
    /// The inputs with symbolic dimensions.
    pub inputs: Vec<InputShapes>,
}

impl Profile {
    /// The profile of a network; `given` are pairs such as `("batch", "1..4")`, `sizes` fix further dimensions.
    ///
    /// # Errors
    /// A dimension that the network does not have, sizes that make no sense, a dimension of which nothing is known.
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
        // First axes are the batch, whatever their name.
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
                    .hint(format!("say them with --profile {name}=N or {name}=MIN..MAX"))
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

    /// The usual sizes.
    pub fn usual(&self) -> Sizes {
        self.symbols.iter().map(|(name, extent)| (name.clone(), extent.opt)).collect()
    }

    /// The least and the largest sizes, and the usual ones.
    pub fn ends(&self) -> [Sizes; 3] {
        let of =
            |end: fn(&Extent) -> i64| self.symbols.iter().map(|(name, extent)| (name.clone(), end(extent))).collect();
        [of(|extent| extent.min), of(|extent| extent.opt), of(|extent| extent.max)]
    }

    /// The shapes as `trtexec`, `tensorrt_rtx` and ONNX Runtime take them: `sample:1x4x64x64,...`.
    pub fn shapes(&self, of: impl Fn(&InputShapes) -> &Vec<i64>) -> String {
        let input = |input: &InputShapes| format!("{}:{}", input.name, joined(of(input), "x"));
        self.inputs.iter().map(input).collect::<Vec<_>>().join(",")
    }

    /// The arguments of `trtexec` and `tensorrt_rtx`; none where all sizes are fixed.
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

    /// The arguments of Polygraphy.
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

    /// The options of ONNX Runtime's provider, whose names begin with `trt` (TensorRT) or `nv` (TensorRT-RTX).
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
    fn extents_are_read_in_three_forms() {
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
    fn one_profile_is_written_for_every_tool() {
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
