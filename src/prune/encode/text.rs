//! Encodes captions to hidden states with a text encoder.

use std::path::PathBuf;

use super::TextOptions;
use super::latents::joined;
use super::tokens::{CaptionTokenizer, Tokens};
use crate::array::{Array, ElementType};
use crate::error::Error;
use crate::runtime::{IoInfo, Session};

/// The role of a text encoder's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Tokens,
    Mask,
}

/// A text encoder with its tokenizer.
#[derive(Debug)]
pub(in crate::prune) struct TextEncoder {
    session: Session,
    inputs: Vec<(IoInfo, Takes)>,
    /// The positions of the used outputs among all outputs.
    outputs: Vec<usize>,
    tokenizer: CaptionTokenizer,
    path: PathBuf,
}

impl TextEncoder {
    /// Creates an encoder that uses one output: the output that `options` names, or the first with three axes.
    ///
    /// # Errors
    /// Fails if an input is neither token ids nor a mask, if there is no such output, or if the tokenizer can't be
    /// read.
    pub(super) fn new(session: Session, options: &TextOptions) -> Result<Self, Error> {
        let outputs = session.outputs();
        let output = outputs.iter().position(|output| match &options.output {
            Some(name) => output.name == *name,
            None => output.dims.len() == 3,
        });
        let output = output.ok_or_else(|| {
            let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
            Error::usage(format!("expected an output [batch, length, width], found [{}]", names.join(", ")))
                .in_file(&options.encoder)
                .hint("name the output with --text-output")
        })?;
        Self::with_outputs(session, options, vec![output])
    }

    /// Creates an encoder that uses the outputs at these positions.
    ///
    /// # Errors
    /// Fails if an input is neither token ids nor a mask, or if the tokenizer can't be read.
    pub(in crate::prune) fn with_outputs(
        session: Session,
        options: &TextOptions,
        outputs: Vec<usize>,
    ) -> Result<Self, Error> {
        let path = options.encoder.clone();
        let fail = |text: String| Error::usage(text).in_file(&path);
        let takes = |input: &IoInfo| {
            let name = input.name.to_ascii_lowercase();
            let takes = match () {
                () if name.contains("mask") => Takes::Mask,
                () if name.contains("input_ids") || session.inputs().len() == 1 => Takes::Tokens,
                () => {
                    let text = format!("expected inputs input_ids and attention_mask, found {:?}", input.name);
                    return Err(fail(text));
                }
            };
            Ok((input.clone(), takes))
        };
        let inputs: Vec<(IoInfo, Takes)> = session.inputs().iter().map(takes).collect::<Result<_, _>>()?;
        let fixed = inputs.iter().find_map(|(input, _)| *input.dims.get(1)?);
        let fixed = fixed.and_then(|length| usize::try_from(length).ok());
        let tokenizer = CaptionTokenizer::open(&options.tokenizer, options.length.or(fixed))?;
        Ok(Self { session, inputs, outputs, tokenizer, path })
    }

    /// Describes everything that affects the values, except the file.
    pub(super) fn described(&self) -> String {
        let outputs: Vec<String> = self.outputs.iter().map(usize::to_string).collect();
        format!("{} {}", self.tokenizer.digest(), outputs.join(" "))
    }

    /// Returns the hidden states of captions, `[captions, length, width]`. Encodes `batch` captions at a time.
    ///
    /// # Errors
    /// Fails if the tokenizer or the encoder fails, or if the output does not have the expected form.
    pub(super) fn encode(&mut self, captions: &[String], batch: usize) -> Result<Array, Error> {
        let states = self.encode_all(captions, batch)?.into_iter().next().filter(|states| states.dims.len() == 3);
        states.ok_or_else(|| {
            Error::unmet("expected hidden states [captions, length, width], found an output with another rank")
                .in_file(&self.path)
        })
    }

    /// Returns all used outputs for captions, each `[captions, ...]` in float32. Encodes `batch` captions at a time.
    ///
    /// # Errors
    /// Fails if the tokenizer or the encoder fails, or if an output is not finite or has another number of rows.
    pub(in crate::prune) fn encode_all(&mut self, captions: &[String], batch: usize) -> Result<Vec<Array>, Error> {
        let fixed = self.inputs.iter().find_map(|(input, _)| *input.dims.first()?);
        let fixed = fixed.and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
        let mut all: Vec<Vec<Array>> = vec![Vec::new(); self.outputs.len()];
        for chunk in captions.chunks(fixed.unwrap_or(batch).max(1)) {
            let mut tokens = self.tokenizer.encode(chunk)?;
            // A fixed batch is filled with copies of the last caption.
            tokens.resize(fixed.unwrap_or(chunk.len()), tokens.last().cloned().unwrap_or_default());
            let inputs: Vec<(String, Array)> =
                self.inputs.iter().map(|(input, takes)| (input.name.clone(), array(&tokens, input, *takes))).collect();
            let outputs = self.session.run(&inputs).map_err(|error| Error::from(error).in_file(&self.path))?;
            for (place, all) in self.outputs.iter().zip(&mut all) {
                let Some((name, states)) = outputs.get(*place) else { continue };
                let found = states.dims.clone();
                let fail = || {
                    let text = format!(
                        "output {name:?}: expected finite values with {} rows, found shape {found:?} or values that are not finite",
                        tokens.len()
                    );
                    Error::unmet(text).in_file(&self.path)
                };
                if found.len() < 2 || found[0] != tokens.len() {
                    return Err(fail());
                }
                let states = states.rows(&(0..chunk.len()).collect::<Vec<_>>()).cast(ElementType::F32);
                if states.to_f64().iter().any(|value| !value.is_finite()) {
                    return Err(fail());
                }
                all.push(states);
            }
        }
        let none = || Error::unmet("the text encoder returned no hidden states").in_file(&self.path);
        all.into_iter().map(|states| joined(states).ok_or_else(none)).collect()
    }
}

/// Returns the array for an input: token ids or mask.
fn array(tokens: &[Tokens], input: &IoInfo, takes: Takes) -> Array {
    let values: Vec<f64> = tokens
        .iter()
        .flat_map(|tokens| if takes == Takes::Mask { &tokens.mask } else { &tokens.ids })
        .map(|number| f64::from(*number))
        .collect();
    let length = values.len().checked_div(tokens.len()).unwrap_or(0);
    let data = crate::array::ArrayData::from_f64(input.element_type, &values);
    Array { dims: vec![tokens.len(), length], data }
}
