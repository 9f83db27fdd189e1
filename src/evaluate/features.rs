//! Features of images, computed by a network that the user provides.

mod interface;

mod pooling;

use ndarray::{Array2, ArrayD, ArrayView3, Axis, Ix4};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::graph::model::Model;
use crate::lower;
use crate::runtime::{Runtime, RuntimeError, Session, SessionOptions};
use interface::{ImageInput, declared_order, declared_range, describe};
use pooling::Pooling;

use super::pixels::{resize, to_bytes, with_channels};

/// Batch size where the graph does not fix it.
const BATCH: usize = 32;

/// The layout of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum FeatureLayout {
    /// `[batch, channels, height, width]`.
    Nchw,
    /// `[batch, height, width, channels]`.
    Nhwc,
}

impl FeatureLayout {
    /// Returns the axes of channels, height and width.
    fn axes(self) -> [usize; 3] {
        match self {
            Self::Nchw => [1, 2, 3],
            Self::Nhwc => [3, 1, 2],
        }
    }
}

/// The order of the channels of colour images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// The input and output settings of a feature network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeatureOptions {
    /// The value that holds the features: an output or any other value of the graph. `None`: the only output.
    pub output: Option<String>,
    /// The input values for black and white. `None`: from the metadata `Image.NominalPixelRange`; without it, 0 and 255
    /// for byte inputs, else 0 and 1.
    pub range: Option<(f64, f64)>,
    /// The mean to subtract after that: one number, or one per channel in the network's order. `None`: 0.
    pub mean: Option<Vec<f64>>,
    /// The standard deviation to divide by after that, in the same form. `None`: 1.
    pub deviation: Option<Vec<f64>>,
    /// The order of colour channels. `None`: from the metadata `Image.BitmapPixelFormat`; without it, red, green, blue.
    pub order: Option<ChannelOrder>,
    /// The layout of the input. `None`: the channel axis is the one of size 1 or 3.
    pub layout: Option<FeatureLayout>,
    /// Height and width of the input. `None`: the sizes that the graph fixes, else those of the samples.
    pub size: Option<(usize, usize)>,
}

/// The interface of a feature network, as it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FeatureSummary {
    /// The file name without extension. It names the distances.
    pub name: String,
    /// The image input with its type and shape.
    pub input: String,
    /// The layout of the input.
    pub layout: FeatureLayout,
    /// The number of channels.
    pub channels: usize,
    /// Height and width to which images are resized.
    pub size: (usize, usize),
    /// The input values for black and white.
    pub range: (f64, f64),
    /// The mean that is subtracted, per channel.
    pub mean: Vec<f64>,
    /// The standard deviation that is divided by, per channel.
    pub deviation: Vec<f64>,
    /// The order of colour channels.
    pub order: ChannelOrder,
    /// The value that holds the features.
    pub output: String,
    /// The number of features.
    pub width: usize,
    /// Describes the axes of the output that are averaged. `None`: the output is not averaged.
    pub pooling: Option<String>,
    /// Descriptions of settings that the graph does not determine and that were assumed.
    pub assumed: Vec<String>,
}

/// A network that computes features of images.
#[derive(Debug)]
pub struct FeatureNetwork {
    session: Session,
    input: ImageInput,
    batch: usize,
    pooling: Pooling,
    summary: FeatureSummary,
}

impl FeatureNetwork {
    /// Opens a network for samples of shape `[channels, height, width]` and runs it once.
    ///
    /// # Errors
    /// The samples are not images, the network takes no images or fails, or options contradict it.
    pub fn open(
        runtime: &Runtime,
        model: &Model,
        options: &FeatureOptions,
        sample: &[usize],
        sessions: &SessionOptions,
    ) -> Result<Self, Error> {
        let path = model.path();
        let &[1 | 3, height, width] = sample else {
            return Err(Error::usage(format!(
                "--features: expected images, samples of shape [1 or 3, height, width], found shape {sample:?}"
            ))
            .hint("leave --features out: a network for images has no meaningful features for latents"));
        };
        let session = match &options.output {
            Some(value) => lower::session_with_outputs(runtime, model, &[value.as_str()], sessions)?,
            None => lower::session(runtime, model, sessions)?,
        };
        let input = ImageInput::find(session.inputs(), options, (height, width), path)?;
        let output = match session.outputs() {
            [one] => one.clone(),
            all => {
                let names: Vec<String> = all.iter().map(describe).collect();
                let text = format!("expected a network with one output, found {}", names.join(", "));
                return Err(Error::usage(text).in_file(path).hint("name one with --features-output"));
            }
        };
        if !output.element_type.is_float() {
            return Err(Error::usage(format!("expected float features, found {}", describe(&output))).in_file(path));
        }
        let (range, mut assumed) = (range(model, options, &input)?, Vec::new());
        let of_channels = |option: &str, given: &Option<Vec<f64>>, own: f64| per_channel(option, given, own, &input);
        let mean = of_channels("--features-mean", &options.mean, 0.0)?;
        let deviation = of_channels("--features-std", &options.deviation, 1.0)?;
        if deviation.contains(&0.0) {
            return Err(Error::usage("--features-std: expected numbers other than 0"));
        }
        if options.range.is_none() && declared_range(model).is_none() {
            assumed.push(format!("pixels from {} to {} (--features-range)", range.0, range.1));
        }
        if options.mean.is_none() && options.deviation.is_none() {
            assumed.push(
                "no mean and no standard deviation outside the graph (--features-mean, --features-std)".to_owned(),
            );
        }
        if options.size.is_none() && ImageInput::has_open_size(session.inputs(), input.layout) {
            assumed.push(format!("images of {} x {}, as the samples (--features-size)", input.height, input.width));
        }
        let summary = FeatureSummary {
            name: path.file_stem().map_or_else(|| "features".to_owned(), |stem| stem.to_string_lossy().into_owned()),
            input: session.inputs().first().map(describe).unwrap_or_default(),
            layout: input.layout,
            channels: input.channels,
            size: (input.height, input.width),
            range,
            mean,
            deviation,
            order: options.order.or_else(|| declared_order(model)).unwrap_or(ChannelOrder::Rgb),
            output: output.name.clone(),
            width: 0,
            pooling: None,
            assumed,
        };
        let pooling = Pooling { dims: Vec::new(), axis: 0 };
        let batch = input.fixed_batch.unwrap_or(BATCH);
        let mut network = Self { session, input, batch, pooling, summary };
        network.try_out().map_err(|error| error.in_file(path))?;
        Ok(network)
    }

    /// Returns the interface of the network.
    pub fn summary(&self) -> &FeatureSummary {
        &self.summary
    }

    /// Runs the network on black images to find the shape of its output.
    fn try_out(&mut self) -> Result<(), Error> {
        let batch = self.input.fixed_batch.unwrap_or(1);
        let image = ndarray::Array3::zeros((1, self.input.height, self.input.width));
        let output = self.run(&[image.view()], batch, (0.0, 1.0))?;
        let pooling = Pooling::of(&output.dims, self.input.layout).filter(|_| output.dims[0] == batch);
        let Some(pooling) = pooling else {
            return Err(Error::usage(format!(
                "output {:?}: expected one row, sequence or map of features for each of {batch} images, found {:?}",
                self.summary.output, output.dims
            ))
            .hint("name another value with --features-output"));
        };
        (self.summary.width, self.summary.pooling) = (pooling.width(), pooling.describe());
        self.pooling = pooling;
        Ok(())
    }

    /// Computes the features of samples `[count, channels, height, width]` with values in `range`, as rows
    /// `[count, features]`.
    ///
    /// Samples are clipped to `range` and rounded to bytes, as in an image file. `progress` gets the number of finished
    /// samples and their total. An error that it returns ends the run.
    ///
    /// # Errors
    /// The samples are not images, the network fails, or features are not finite.
    pub fn features(
        &mut self,
        samples: &ArrayD<f32>,
        range: (f64, f64),
        progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
    ) -> Result<Array2<f64>, Error> {
        let fail = |error: ndarray::ShapeError| Error::usage(format!("the samples are not images: {error}"));
        let samples = samples.view().into_dimensionality::<Ix4>().map_err(fail)?;
        let (count, width) = (samples.dim().0, self.summary.width);
        let mut rows = Vec::with_capacity(count * width);
        progress(0, count)?;
        for first in (0..count).step_by(self.batch) {
            let images: Vec<ArrayView3<'_, f32>> =
                (first..count.min(first + self.batch)).map(|at| samples.index_axis(Axis(0), at)).collect();
            let output = self.run(&images, self.input.fixed_batch.unwrap_or(images.len()), range)?;
            self.pooling.append(&output, images.len(), &mut rows);
            progress(first + images.len(), count)?;
        }
        if let Some(wrong) = rows.iter().find(|value| !value.is_finite()) {
            let text = format!("output {:?}: the features contain {wrong}", self.summary.output);
            return Err(Error::unmet(text).hint("check --features-range, --features-mean and --features-std"));
        }
        Array2::from_shape_vec((count, width), rows).map_err(fail)
    }

    /// Runs the network on these images. A batch of fixed size is padded with zeros.
    fn run(&mut self, images: &[ArrayView3<'_, f32>], batch: usize, range: (f64, f64)) -> Result<Array, Error> {
        let dims = self.input.dims(batch);
        let length: usize = dims[1..].iter().product();
        let mut values = vec![0.0f32; batch * length];
        values.par_chunks_exact_mut(length).zip(images).for_each(|(out, image)| self.prepare(image, range, out));
        let data = match self.input.element_type {
            ElementType::F32 => ArrayData::F32(values),
            other => ArrayData::from_f64(other, &values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>()),
        };
        let fail = |error: RuntimeError| Error::unmet(error.to_string()).caused_by(error);
        let outputs = self.session.run(&[(self.input.name.clone(), Array { dims, data })]).map_err(fail)?;
        let output = outputs.into_iter().next();
        output.map(|(_, array)| array).ok_or_else(|| Error::unmet("the feature network returned no output"))
    }

    /// Writes an image in the form that the network expects.
    fn prepare(&self, image: &ArrayView3<'_, f32>, range: (f64, f64), out: &mut [f32]) {
        let (input, summary) = (&self.input, &self.summary);
        let bytes = with_channels(to_bytes(image.view(), range), input.channels);
        let pixels = resize(bytes.view(), input.height, input.width);
        let (low, high) = summary.range;
        let area = input.height * input.width;
        for channel in 0..input.channels {
            let from = if summary.order == ChannelOrder::Bgr { input.channels - 1 - channel } else { channel };
            for (at, pixel) in pixels.index_axis(Axis(0), from).iter().enumerate() {
                let value = low + f64::from(*pixel) / 255.0 * (high - low);
                let place = match input.layout {
                    FeatureLayout::Nchw => channel * area + at,
                    FeatureLayout::Nhwc => at * input.channels + channel,
                };
                out[place] = ((value - summary.mean[channel]) / summary.deviation[channel]) as f32;
            }
        }
    }
}

/// Returns the input values for black and white.
fn range(model: &Model, options: &FeatureOptions, input: &ImageInput) -> Result<(f64, f64), Error> {
    let own = if input.element_type == ElementType::U8 { (0.0, 255.0) } else { (0.0, 1.0) };
    let (low, high) = options.range.or_else(|| declared_range(model)).unwrap_or(own);
    if low.is_finite() && high.is_finite() && low < high {
        return Ok((low, high));
    }
    Err(Error::usage(format!("--features-range: expected LOW,HIGH with LOW below HIGH, found {low},{high}")))
}

/// Returns one number per channel.
fn per_channel(option: &str, given: &Option<Vec<f64>>, own: f64, input: &ImageInput) -> Result<Vec<f64>, Error> {
    let channels = input.channels;
    match given.as_deref() {
        None => Ok(vec![own; channels]),
        Some(values) if values.iter().any(|value| !value.is_finite()) => {
            Err(Error::usage(format!("{option}: expected finite numbers, found {values:?}")))
        }
        Some(&[one]) => Ok(vec![one; channels]),
        Some(values) if values.len() == channels => Ok(values.to_vec()),
        Some(values) => Err(Error::usage(format!(
            "{option}: expected one number or {channels}, one for each channel, found {}",
            values.len()
        ))),
    }
}
