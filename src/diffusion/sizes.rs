//! Symbolic sizes of a network that follow from given arrays.

use std::path::Path;

use super::data::ArrayDims;
use super::roles::{Port, Roles};
use crate::array::Array;
use crate::error::Error;
use crate::graph::dim::Dim;
use crate::graph::sizes::Sizes;

/// The sizes at which a network usually runs, from the configuration of its pipeline. `None`: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsualSizes {
    /// Height and width of a sample.
    pub sample: Option<(usize, usize)>,
    /// Number of tokens of a caption.
    pub tokens: Option<usize>,
}

impl Roles {
    /// Returns `sizes`, extended by the usual sizes for missing symbols: height and width for the last two axes of a
    /// sample that also has channels, and tokens for the second axis of states `[batch, tokens, hidden size]`.
    #[must_use]
    pub fn with_usual_sizes(&self, mut sizes: Sizes, usual: &UsualSizes) -> Sizes {
        let mut set = |dim: Option<&Dim>, size: usize| {
            if let (Some(name), Ok(size)) = (dim.and_then(Dim::as_symbol), i64::try_from(size)) {
                sizes.entry(name).or_insert(size);
            }
        };
        if let (Some((height, width)), [_, .., of_height, of_width]) = (usual.sample, self.sample.shape.as_slice())
            && self.sample.shape.len() >= 4
        {
            set(Some(of_height), height);
            set(Some(of_width), width);
        }
        let is_states = |port: &&Port| port.shape.len() == 3 && port.element_type.is_float() && self.is_batched(port);
        for port in self.conditioning.iter().filter(is_states) {
            usual.tokens.iter().for_each(|tokens| set(port.shape.get(1), *tokens));
        }
        sizes
    }

    /// Returns `given`, extended by sizes for missing symbols of sample and conditioning inputs, as far as arrays fix
    /// them: arrays of samples at `data` (not images, which are resized), the arrays `inputs` by name, and arrays
    /// stored with the samples. Contradictions to the network are not checked here, but when the arrays are read.
    ///
    /// # Errors
    /// The data can't be read.
    pub fn sizes_with_arrays(
        &self,
        given: &Sizes,
        data: Option<&Path>,
        inputs: &[(String, Array)],
    ) -> Result<Sizes, Error> {
        let mut sizes = given.clone();
        let names: Vec<&str> = self.conditioning_ports().map(|port| port.name.as_str()).collect();
        let takes_samples = self.sample.shape.iter().skip(1).any(|dim| is_open(dim, given));
        let found = match data.filter(|_| takes_samples || !names.is_empty()) {
            Some(path) => ArrayDims::read(path, &self.sample.name, &names)?,
            None => ArrayDims::default(),
        };
        if let Some(dims) = found.samples.filter(|_| takes_samples) {
            self.adopt(&mut sizes, &self.sample, &in_order(&self.sample, dims));
        }
        for port in self.conditioning_ports() {
            let given = inputs.iter().map(|(name, array)| (name, &array.dims));
            let all = given.chain(found.beside.iter().map(|(name, dims)| (name, dims)));
            all.filter(|(name, _)| **name == port.name)
                .take(1)
                .for_each(|(_, dims)| self.adopt(&mut sizes, port, dims));
        }
        Ok(sizes)
    }

    fn adopt(&self, sizes: &mut Sizes, port: &Port, dims: &[usize]) {
        if dims.len() != port.shape.len() {
            return;
        }
        // The batch size does not follow from the array: samples are chosen from it, and conditioning is repeated.
        let first = usize::from(self.is_batched(port));
        for (dim, size) in port.shape.iter().zip(dims).skip(first) {
            if let (Some(name), Ok(size)) = (dim.as_symbol(), i64::try_from(*size)) {
                sizes.entry(name).or_insert(size);
            }
        }
    }
}

fn is_open(dim: &Dim, given: &Sizes) -> bool {
    dim.as_symbol().is_some_and(|name| !given.contains_key(&name))
}

/// Returns the sizes of an array of images in the network's order. The channels of the array may come last.
fn in_order(sample: &Port, dims: Vec<usize>) -> Vec<usize> {
    let channels = sample.shape.get(1).and_then(Dim::as_const).and_then(|channels| usize::try_from(channels).ok());
    match (dims.as_slice(), channels) {
        (&[count, height, width, last], Some(channels))
            if sample.shape.len() == 4 && last == channels && height != channels =>
        {
            vec![count, channels, height, width]
        }
        // The axis of a single channel may be missing.
        (&[count, height, width], Some(1)) if sample.shape.len() == 4 => vec![count, 1, height, width],
        _ => dims,
    }
}
