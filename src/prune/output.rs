//! Networks that do not denoise: a function of one input, such as the decoder of a pipeline, which is to give what it gave.
//!
//! The loss is `L = E |f(z) - f_0(z)|^2` with `f_0` the original. It is 0 at the original, and so is its gradient; what counts is
//! its curvature. To second order, taking a weight w away costs `w^2 E |df/dw|^2`, the diagonal of the Gauss-Newton matrix. For
//! v normal, `E (v^T df/dw)^2 = |df/dw|^2`: squared gradients of the inner product of the output with v, one draw of v for
//! every sample, are its estimate.

mod network;

mod scored;

use std::path::Path;
use std::sync::Arc;

pub(super) use network::{OutputNetwork, with_edges};
pub(super) use scored::{gradients, samples};

use crate::array::{Array, ArrayData};
use crate::diffusion::{ArrayDims, Ranges, Samples};
use crate::error::Error;

/// What the network of a run is for, and so what its loss is.
#[derive(Clone, Debug, Default)]
pub enum Task {
    /// To remove noise: the denoising loss.
    #[default]
    Denoising,
    /// To give an output: how far it moves, on these samples of its input.
    Output(OutputSamples),
}

/// The samples of an input on which it counts how far the output moves.
#[derive(Clone, Debug)]
pub enum OutputSamples {
    /// Normally distributed.
    Drawn {
        /// Their mean.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
        /// The sizes of the last two axes, where the network does not fix them and none are given.
        edges: Option<(usize, usize)>,
    },
    /// Given, one for each row.
    Given {
        /// The samples.
        values: Arc<Array>,
        /// Where they come from, in words.
        source: String,
    },
}

impl OutputSamples {
    /// Latents in a file or folder of arrays, with the name of the denoiser's input; `None` for images. Each is divided by
    /// `factor`, and `shift` is added: as a pipeline gives latents to its decoder.
    ///
    /// # Errors
    /// Data that can't be read.
    pub fn of_latents(
        (data, name): (&Path, &str),
        (factor, shift): (f64, f64),
        most: usize,
        seed: u64,
    ) -> Result<Option<Self>, Error> {
        let Some(dims) = ArrayDims::read(data, name, &[])?.samples.filter(|dims| dims.len() >= 3) else {
            return Ok(None);
        };
        let count = Samples::available(data, name)?.min(most);
        let samples = Samples::load(data, (name, &dims), &Ranges::default(), count, seed)?;
        let shape = samples.values.shape().to_vec();
        let values = samples.values.iter().copied().collect();
        let source = samples.source;
        Ok(Some(
            Self::Given { values: Arc::new(Array { dims: shape, data: ArrayData::F32(values) }), source }
                .as_decoded(factor, shift),
        ))
    }

    /// Latents as a denoiser has them, as its pipeline gives them to the decoder: divided by `factor`, with `shift` added.
    #[must_use]
    pub fn as_decoded(self, factor: f64, shift: f64) -> Self {
        match self {
            Self::Given { values, source } => {
                let scaled = values.to_f64().into_iter().map(|value| (value / factor + shift) as f32).collect();
                let values = Arc::new(Array { dims: values.dims.clone(), data: ArrayData::F32(scaled) });
                Self::Given { values, source }
            }
            Self::Drawn { mean, deviation, edges } => {
                Self::Drawn { mean: mean / factor + shift, deviation: deviation / factor.abs(), edges }
            }
        }
    }

    /// The number of samples that are given.
    pub(super) fn rows(&self) -> Option<usize> {
        match self {
            Self::Drawn { .. } => None,
            Self::Given { values, .. } => values.dims.first().copied(),
        }
    }

    /// The sizes of the last two axes, where something is known of them.
    fn edges(&self) -> Option<(usize, usize)> {
        match self {
            Self::Drawn { edges, .. } => *edges,
            Self::Given { values, .. } => match values.dims.as_slice() {
                [.., height, width] if values.dims.len() >= 4 => Some((*height, *width)),
                _ => None,
            },
        }
    }
}
