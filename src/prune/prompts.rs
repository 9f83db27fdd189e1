//! Encodes prompts to the conditioning of a denoiser, with the text encoders of its pipeline.

use super::encode::{TextEncoder, TextOptions};
use super::model::Model;
use super::runtime::Runtime;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::pipeline::{Component, Pipeline};
use crate::runtime::{IoInfo, SessionOptions};

/// Number of prompts that are encoded together.
const BATCH: usize = 8;

/// Number of tokens for the third encoder of Stable Diffusion 3, whose tokenizer has no meaningful limit.
const TOKENS_OF_THIRD: usize = 256;

/// The hidden states of a text encoder that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum States {
    /// The states after the last layer and its norm.
    Last,
    /// The states before the last layer.
    Penultimate,
}

/// The hidden states of one encoder, `[prompts, tokens, width]`, and its pooled output, `[prompts, width]`.
#[derive(Debug)]
struct Encoded {
    states: Array,
    pooled: Option<Array>,
}

/// The inputs of a denoiser for prompts: their names, and their widths if these are fixed.
#[derive(Debug, Default)]
struct Wanted {
    states: Option<(String, Option<usize>)>,
    pooled: Option<(String, Option<usize>)>,
    /// The input for original size, crop and target size of the image in pixels.
    sizes: Option<String>,
}

impl Model {
    /// Encodes prompts with the text encoders of the pipeline that this denoiser belongs to. Returns the arrays for its
    /// inputs, with one row per prompt.
    ///
    /// - One encoder, as in Stable Diffusion 1 and 2: its last states are the conditioning.
    /// - Two encoders of a U-Net, as in Stable Diffusion XL: the states before their last layers, concatenated along
    ///   the width, and the pooled output of the second. The time ids describe an image that is not cropped.
    /// - Two encoders of a transformer, as in Flux: the states of the second, and the pooled output of the first.
    /// - Three encoders, as in Stable Diffusion 3: the states of the first two, concatenated along the width and padded
    ///   with zeros, followed by the states of the third along the tokens.
    ///
    /// # Errors
    /// Fails if there are no prompts, no text encoder or no input for hidden states, if widths do not fit, or if an
    /// encoder fails.
    pub fn encode_prompts(
        &self,
        pipeline: &Pipeline,
        prompts: &[String],
        runtime: &Runtime,
    ) -> Result<Vec<(String, Array)>, Error> {
        let fail = |text: String| Error::usage(text).in_file(self.path());
        if prompts.is_empty() {
            return Err(Error::usage("--prompts: expected one prompt per line, found none"));
        }
        let wanted = self.wanted();
        let Some((name, width)) = &wanted.states else {
            let text = "expected an input encoder_hidden_states [batch, tokens, width] for prompts, found none";
            return Err(fail(text.to_owned()));
        };
        let encoders = pipeline.text_encoders();
        let is_transformer = pipeline.component_of(self.path()).unwrap_or(pipeline.denoiser()).name.starts_with('t');
        let takes = |at: usize| match (encoders.len(), is_transformer) {
            (1, _) if wanted.sizes.is_none() => States::Last,
            (2, true) | (3, _) if at + 1 == encoders.len() => States::Last,
            (2, true) => States::Last,
            _ => States::Penultimate,
        };
        let mut encoded = Vec::new();
        for (at, (component, tokenizer)) in encoders.iter().enumerate() {
            let length = (at == 2).then_some(TOKENS_OF_THIRD);
            encoded.push(encode(runtime, (component, tokenizer), takes(at), length, prompts)?);
        }
        let Some(last) = encoded.len().checked_sub(1) else {
            let text = "expected a text encoder with a network and a tokenizer, such as text_encoder and tokenizer";
            return Err(Error::usage(format!("--prompts: {text}, found none"))
                .in_file(&pipeline.folder)
                .hint("complete the pipeline, or pass the encoded prompts with --inputs"));
        };
        let (states, pooled) = match (encoded.as_slice(), is_transformer) {
            ([first, second], true) => (second.states.clone(), first.pooled.clone()),
            ([first, second, third], _) => {
                let clip = beside(&first.states, &second.states)?;
                let whole = match (&first.pooled, &second.pooled) {
                    (Some(first), Some(second)) => Some(beside(first, second)?),
                    _ => None,
                };
                (after(&widened(clip, third.states.dims[2]), &third.states)?, whole)
            }
            ([first, second], false) => (beside(&first.states, &second.states)?, second.pooled.clone()),
            _ => (encoded[0].states.clone(), encoded[last].pooled.clone()),
        };
        let mut arrays = Vec::new();
        let mut add = |(name, width): (&str, Option<usize>), array: Array| {
            let found = array.dims.last().copied().unwrap_or(0);
            if let Some(width) = width.filter(|width| *width != found) {
                let text = format!("input {name:?}: expected width {width}, the text encoders return width {found}");
                return Err(fail(text).hint("give the conditioning with --inputs instead"));
            }
            arrays.push((name.to_owned(), array));
            Ok(())
        };
        add((name, *width), states)?;
        if let (Some((name, width)), Some(pooled)) = (&wanted.pooled, pooled) {
            add((name, *width), pooled)?;
        }
        if let (Some(name), Some((height, width)), Some(scale)) =
            (&wanted.sizes, pipeline.denoiser().config.sample_size, pipeline.scale())
        {
            let size = [height * scale, width * scale].map(|size| size as f32);
            let ids = [size[0], size[1], 0.0, 0.0, size[0], size[1]];
            let data = ArrayData::F32(ids.repeat(prompts.len()));
            add((name, None), Array { dims: vec![prompts.len(), ids.len()], data })?;
        }
        Ok(arrays)
    }

    /// Finds the inputs for prompts by their names and ranks.
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for (name, dims) in crate::inputs::declared(&self.0) {
            let lower = name.to_ascii_lowercase();
            let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
            let last = dims.last().copied().flatten().and_then(|size| usize::try_from(size).ok());
            match dims.len() {
                3 if has(&["encoder_hidden_states", "context", "prompt"]) => wanted.states = Some((name, last)),
                2 if has(&["time_ids"]) && last.is_none_or(|count| count == 6) => wanted.sizes = Some(name),
                2 if has(&["text_embeds", "pooled"]) => wanted.pooled = Some((name, last)),
                _ => {}
            }
        }
        wanted
    }
}

/// Encodes prompts with one encoder.
fn encode(
    runtime: &Runtime,
    (component, tokenizer): (&Component, &std::path::Path),
    takes: States,
    length: Option<usize>,
    prompts: &[String],
) -> Result<Encoded, Error> {
    let options = TextOptions {
        encoder: component.model.clone(),
        tokenizer: tokenizer.to_owned(),
        output: None,
        length,
        name: String::new(),
    };
    let session = runtime.0.session_from_file(&component.model, &SessionOptions::default());
    let session = session.map_err(|error| Error::from(error).in_file(&component.model))?;
    let outputs = session.outputs();
    let states = place_of_states(outputs, takes).ok_or_else(|| {
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        let what = match takes {
            States::Last => "last_hidden_state [batch, tokens, width]",
            States::Penultimate => "hidden_states.0, hidden_states.1, ... (for the states before the last layer)",
        };
        Error::usage(format!("expected outputs {what}, found {}", names.join(", "))).in_file(&component.model)
    })?;
    let pooled = ["text_embeds", "pooler_output"];
    let pooled = pooled.iter().find_map(|name| outputs.iter().position(|output| output.name == *name));
    let mut encoder = TextEncoder::with_outputs(session, &options, std::iter::once(states).chain(pooled).collect())?;
    let mut given = encoder.encode_all(prompts, BATCH)?.into_iter();
    let states = given.next().filter(|states| states.dims.len() == 3);
    let states = states.ok_or_else(|| {
        Error::unmet("expected hidden states [prompts, tokens, width], found an output with another rank")
            .in_file(&component.model)
    })?;
    Ok(Encoded { states, pooled: given.next() })
}

/// Returns the position of the states among the outputs of an encoder. Optimum exports the states between layers as
/// `hidden_states.N`, starting with the embeddings.
fn place_of_states(outputs: &[IoInfo], takes: States) -> Option<usize> {
    let with_rank = |(at, output): (usize, &IoInfo)| (output.dims.len() == 3).then_some(at);
    match takes {
        States::Last => {
            let named = outputs.iter().position(|output| output.name == "last_hidden_state");
            named.or_else(|| outputs.iter().enumerate().find_map(with_rank))
        }
        States::Penultimate => {
            let number = |output: &IoInfo| output.name.strip_prefix("hidden_states.")?.parse::<usize>().ok();
            let mut layers: Vec<(usize, usize)> =
                outputs.iter().enumerate().filter_map(|(at, output)| Some((number(output)?, at))).collect();
            layers.sort();
            layers.len().checked_sub(2).map(|at| layers[at].1)
        }
    }
}

/// Returns the elements of a float32 array.
fn floats(array: &Array) -> Vec<f32> {
    match array.cast(ElementType::F32).data {
        ArrayData::F32(values) => values,
        _ => Vec::new(),
    }
}

/// Concatenates arrays with the same rows along their last axis.
fn beside(a: &Array, b: &Array) -> Result<Array, Error> {
    let (Some((of_a, rows)), Some((of_b, others))) = (a.dims.split_last(), b.dims.split_last()) else {
        return Err(Error::unmet("expected hidden states of two encoders, found a scalar"));
    };
    if rows != others {
        return Err(Error::unmet(format!(
            "expected both encoders to return states [prompts, tokens] of {rows:?}, found {others:?}"
        )));
    }
    let (of_a, of_b) = (*of_a, *of_b);
    let (left, right) = (floats(a), floats(b));
    let pairs = left.chunks(of_a.max(1)).zip(right.chunks(of_b.max(1)));
    let values = pairs.flat_map(|(left, right)| left.iter().chain(right).copied()).collect();
    Ok(Array { dims: [rows, &[of_a + of_b]].concat(), data: ArrayData::F32(values) })
}

/// Pads states with zeros to a width.
fn widened(states: Array, width: usize) -> Array {
    let own = states.dims[2];
    if own >= width {
        return states;
    }
    let values = floats(&states);
    let rows = values.chunks(own.max(1));
    let values = rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, width - own))).collect();
    Array { dims: vec![states.dims[0], states.dims[1], width], data: ArrayData::F32(values) }
}

/// Concatenates states along the tokens.
fn after(a: &Array, b: &Array) -> Result<Array, Error> {
    let ([rows, of_a, width], [others, of_b, other]) = (a.dims.as_slice(), b.dims.as_slice()) else {
        return Err(Error::unmet(
            "expected hidden states [prompts, tokens, width] of all encoders, found an output with another rank",
        ));
    };
    if (rows, width) != (others, other) {
        let text = format!("expected states of width {other} of all encoders, found {width}");
        return Err(Error::unmet(text));
    }
    let (left, right) = (floats(a), floats(b));
    let pairs = left.chunks((of_a * width).max(1)).zip(right.chunks((of_b * width).max(1)));
    let values = pairs.flat_map(|(left, right)| left.iter().chain(right).copied()).collect();
    Ok(Array { dims: vec![*rows, of_a + of_b, *width], data: ArrayData::F32(values) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(dims: &[usize], first: f32) -> Array {
        let count: usize = dims.iter().product();
        Array { dims: dims.to_vec(), data: ArrayData::F32((0..count).map(|at| first + at as f32).collect()) }
    }

    #[test]
    fn states_of_encoders_are_concatenated() {
        let (a, b) = (counted(&[1, 2, 2], 0.0), counted(&[1, 2, 1], 10.0));
        let both = beside(&a, &b).unwrap();
        assert_eq!((both.dims.as_slice(), floats(&both)), (&[1, 2, 3][..], vec![0.0, 1.0, 10.0, 2.0, 3.0, 11.0]));
        let wide = widened(both, 4);
        assert_eq!(floats(&wide), [0.0, 1.0, 10.0, 0.0, 2.0, 3.0, 11.0, 0.0]);
        let all = after(&counted(&[2, 1, 1], 0.0), &counted(&[2, 2, 1], 5.0)).unwrap();
        assert_eq!((all.dims.as_slice(), floats(&all)), (&[2, 3, 1][..], vec![0.0, 5.0, 6.0, 1.0, 7.0, 8.0]));
        assert!(beside(&a, &counted(&[1, 3, 1], 0.0)).unwrap_err().to_string().contains("found [1, 3]"));
        assert!(after(&a, &b).unwrap_err().to_string().contains("expected states of width 1"));
    }

    #[test]
    fn the_states_before_the_last_layer_are_found_by_number() {
        let output = |name: &str, rank: usize| IoInfo {
            name: name.to_owned(),
            element_type: ElementType::F32,
            dims: vec![None; rank],
            symbols: vec![None; rank],
        };
        let names = ["text_embeds", "hidden_states.10", "last_hidden_state", "hidden_states.9", "hidden_states.11"];
        let outputs: Vec<IoInfo> =
            names.iter().map(|name| output(name, 2 + usize::from(!name.ends_with('s')))).collect();
        assert_eq!(place_of_states(&outputs, States::Penultimate), Some(1));
        assert_eq!(place_of_states(&outputs, States::Last), Some(2));
        assert_eq!(place_of_states(&outputs[..1], States::Last), None);
        assert_eq!(place_of_states(&outputs[..2], States::Penultimate), None);
    }
}
