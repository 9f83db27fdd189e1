//! Networks that do not denoise: functions of one input, such as the decoder of a pipeline, whose output should be
//! preserved.
//!
//! The loss is `L = E |f(z) - f_0(z)|^2` with `f_0` the original. It is 0 at the original, and so is its gradient; only
//! its curvature matters. To second order, removing a weight w costs `w^2 E |df/dw|^2`, the diagonal of the
//! Gauss-Newton matrix. For v normally distributed, `E (v^T df/dw)^2 = |df/dw|^2`. This is estimated by squared
//! gradients of the inner product of the output with v, with one sample of v for every sample of z.

mod network;

mod scored;

use std::path::Path;
use std::sync::Arc;

pub(super) use network::{OutputNetwork, with_edges};
pub(super) use scored::{gradients, samples};

use crate::array::{Array, ArrayData};
use crate::diffusion::{ArrayDims, Ranges, Samples};
use crate::error::Error;

/// The purpose of a network, which decides its loss.
#[derive(Clone, Debug, Default)]
pub enum Task {
    /// The network removes noise: the denoising loss.
    #[default]
    Denoising,
    /// The network computes an output: the change of the output on these input samples.
    Output(OutputSamples),
}

/// The input samples on which the change of the output is measured.
#[derive(Clone, Debug)]
pub enum OutputSamples {
    /// Random samples with a normal distribution.
    Random {
        /// Their mean.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
        /// The sizes of the last two axes, if the network does not fix them. `None`: not known.
        edges: Option<(usize, usize)>,
    },
    /// Given samples, one per row.
    Given {
        /// The samples.
        values: Arc<Array>,
        /// Their source, in words.
        source: String,
    },
}

impl OutputSamples {
    /// Reads latents from a file or folder of arrays, with the name of the denoiser's input. Divides each by `factor`
    /// and adds `shift`, as a pipeline does before its decoder. Returns `None` if the data are images.
    ///
    /// # Errors
    /// Fails if data can't be read.
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

    /// Converts latents from the denoiser's scale to that of the decoder, as the pipeline does: divides by `factor` and
    /// adds `shift`.
    #[must_use]
    pub fn as_decoded(self, factor: f64, shift: f64) -> Self {
        match self {
            Self::Given { values, source } => {
                let scaled = values.to_f64().into_iter().map(|value| (value / factor + shift) as f32).collect();
                let values = Arc::new(Array { dims: values.dims.clone(), data: ArrayData::F32(scaled) });
                Self::Given { values, source }
            }
            Self::Random { mean, deviation, edges } => {
                Self::Random { mean: mean / factor + shift, deviation: deviation / factor.abs(), edges }
            }
        }
    }

    /// Returns the number of given samples; `None` if they are random.
    pub(super) fn rows(&self) -> Option<usize> {
        match self {
            Self::Random { .. } => None,
            Self::Given { values, .. } => values.dims.first().copied(),
        }
    }

    /// Returns the sizes of the last two axes, if known.
    fn edges(&self) -> Option<(usize, usize)> {
        match self {
            Self::Random { edges, .. } => *edges,
            Self::Given { values, .. } => match values.dims.as_slice() {
                [.., height, width] if values.dims.len() >= 4 => Some((*height, *width)),
                _ => None,
            },
        }
    }
}
