//! Finds the image input of a feature network, and its layout.

use std::path::Path;

use crate::array::ElementType;
use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::names::printable;
use crate::runtime::IoInfo;

use super::{ChannelOrder, FeatureLayout, FeatureOptions};

/// The image input of a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ImageInput {
    pub(super) name: String,
    pub(super) element_type: ElementType,
    pub(super) layout: FeatureLayout,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// The batch size that the graph fixes. `None`: it is symbolic.
    pub(super) fixed_batch: Option<usize>,
}

impl ImageInput {
    /// Returns the only input, if it takes images. `sample` is the height and width of the samples, for sizes that the
    /// graph does not fix.
    ///
    /// # Errors
    /// There are several inputs, the input takes no images, or options contradict the graph.
    pub(super) fn find(
        inputs: &[IoInfo],
        options: &FeatureOptions,
        sample: (usize, usize),
        path: &Path,
    ) -> Result<Self, Error> {
        let fail = |text: String| Error::usage(text).in_file(path);
        let described: Vec<String> = inputs.iter().map(describe).collect();
        let [input] = inputs else {
            let text = format!("expected a network with one input, for images, found {}", described.join(", "));
            return Err(fail(text).hint("name a value that is computed from the images alone with --features-output"));
        };
        let takes = input.element_type.is_float() || input.element_type == ElementType::U8;
        if input.dims.len() != 4 || !takes {
            let text = format!("expected an image input with four axes, floats or bytes, found {}", described[0]);
            return Err(fail(text));
        }
        let fixed = |axis: usize| input.dims[axis].and_then(|size| usize::try_from(size).ok());
        let is_colour = |axis: usize| matches!(fixed(axis), Some(1 | 3));
        let layout = match (options.layout, is_colour(1), is_colour(3)) {
            (Some(layout), ..) => layout,
            (None, true, _) => FeatureLayout::Nchw,
            (None, false, true) => FeatureLayout::Nhwc,
            (None, false, false) => {
                let text = format!("{}: no axis is known to have 1 or 3 channels", described[0]);
                return Err(fail(text).hint("give the layout with --features-layout nchw or nhwc"));
            }
        };
        let [channel_axis, row_axis, column_axis] = layout.axes();
        let channels = fixed(channel_axis).unwrap_or(3);
        if !matches!(channels, 1 | 3) {
            return Err(fail(format!("{}: expected 1 or 3 channels, found {channels}", described[0])));
        }
        let side = |axis: usize, given: Option<usize>, own: usize| match (fixed(axis), given) {
            (Some(fixed), Some(given)) if fixed != given => {
                Err(fail(format!("--features-size: {} has a fixed size of {fixed}, found {given}", described[0])))
            }
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Ok(own),
        };
        let (height, width) = (
            side(row_axis, options.size.map(|size| size.0), sample.0)?,
            side(column_axis, options.size.map(|size| size.1), sample.1)?,
        );
        let fixed_batch = fixed(0);
        if [Some(height), Some(width), fixed_batch].contains(&Some(0)) {
            return Err(fail(format!("{}: expected sizes of at least 1", described[0])));
        }
        let (name, element_type) = (input.name.clone(), input.element_type);
        Ok(Self { name, element_type, layout, channels, height, width, fixed_batch })
    }

    /// Returns the shape of a batch.
    pub(super) fn dims(&self, batch: usize) -> Vec<usize> {
        match self.layout {
            FeatureLayout::Nchw => vec![batch, self.channels, self.height, self.width],
            FeatureLayout::Nhwc => vec![batch, self.height, self.width, self.channels],
        }
    }

    /// Returns whether the graph leaves height or width open.
    pub(super) fn has_open_size(inputs: &[IoInfo], layout: FeatureLayout) -> bool {
        let [_, row, column] = layout.axes();
        inputs.first().is_some_and(|input| [row, column].iter().any(|axis| input.dims.get(*axis) == Some(&None)))
    }
}

/// Returns name, type and shape of an input or output for messages.
pub(super) fn describe(of: &IoInfo) -> String {
    format!("{} {}{}", printable(&of.name), of.element_type, printable(&of.shape_text()))
}

/// Returns the value of a metadata entry of a model.
fn metadata<'m>(model: &'m Model, key: &str) -> Option<&'m str> {
    model.proto().metadata_props.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

/// Returns the input values for black and white from ONNX's image metadata (`Image.NominalPixelRange`).
pub(super) fn declared_range(model: &Model) -> Option<(f64, f64)> {
    match metadata(model, "Image.NominalPixelRange")? {
        "NominalRange_0_255" => Some((0.0, 255.0)),
        "Normalized_0_1" => Some((0.0, 1.0)),
        "Normalized_1_1" => Some((-1.0, 1.0)),
        "NominalRange_16_235" => Some((16.0, 235.0)),
        _ => None,
    }
}

/// Returns the order of colour channels from ONNX's image metadata (`Image.BitmapPixelFormat`).
pub(super) fn declared_order(model: &Model) -> Option<ChannelOrder> {
    match metadata(model, "Image.BitmapPixelFormat")? {
        "Rgb8" => Some(ChannelOrder::Rgb),
        "Bgr8" => Some(ChannelOrder::Bgr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn input(dims: &[i64]) -> IoInfo {
        let dims: Vec<Option<i64>> = dims.iter().map(|size| (*size > 0).then_some(*size)).collect();
        let symbols = dims.iter().map(|size| size.is_none().then(|| "N".to_owned())).collect();
        IoInfo { name: "x".to_owned(), element_type: ElementType::F32, dims, symbols }
    }

    fn find(dims: &[i64], options: &FeatureOptions) -> Result<ImageInput, String> {
        ImageInput::find(&[input(dims)], options, (16, 12), Path::new("f.onnx")).map_err(|error| error.to_string())
    }

    #[test]
    fn layout_and_sizes_follow_from_the_graph() {
        let options = FeatureOptions::default();
        let of = |dims: &[i64]| {
            let found = find(dims, &options).unwrap();
            (found.layout, found.channels, found.height, found.width, found.fixed_batch)
        };
        assert_eq!(of(&[0, 3, 224, 192]), (FeatureLayout::Nchw, 3, 224, 192, None));
        assert_eq!(of(&[4, 224, 192, 1]), (FeatureLayout::Nhwc, 1, 224, 192, Some(4)));
        assert_eq!(of(&[0, 3, 0, 0]), (FeatureLayout::Nchw, 3, 16, 12, None));
        let given = FeatureOptions { size: Some((32, 40)), layout: Some(FeatureLayout::Nhwc), ..options.clone() };
        assert_eq!(find(&[0, 0, 0, 0], &given).unwrap().dims(2), [2, 32, 40, 3]);
    }

    #[test]
    fn inputs_that_are_not_images_are_refused() {
        let options = FeatureOptions::default();
        assert!(find(&[0, 3], &options).unwrap_err().contains("four axes"));
        assert!(find(&[0, 0, 0, 0], &options).unwrap_err().contains("no axis is known"));
        assert!(find(&[0, 4, 8, 8], &options).unwrap_err().contains("no axis is known"));
        let sized = FeatureOptions { size: Some((8, 8)), ..options.clone() };
        assert!(find(&[0, 3, 16, 16], &sized).unwrap_err().contains("--features-size"));
        let laid = FeatureOptions { layout: Some(FeatureLayout::Nhwc), ..options.clone() };
        assert!(find(&[0, 3, 16, 16], &laid).unwrap_err().contains("1 or 3 channels, found 16"));
        let several = [input(&[0, 3, 8, 8]), input(&[0, 4])];
        let refused = ImageInput::find(&several, &options, (8, 8), Path::new("f.onnx")).unwrap_err();
        assert!(refused.to_string().contains("one input"), "{refused}");
    }
}
