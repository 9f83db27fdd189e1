//! Images as samples.

use std::io::BufReader;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};

use crate::error::{Error, ErrorKind};
use crate::files;

/// An image resized to the size of the network.
pub(super) struct Image {
    /// The values from 0 to 255, channel by channel.
    pub(super) values: Vec<u8>,
    /// Whether the file had another size.
    pub(super) was_resized: bool,
}

/// Maximum number of pixels of an image: about twelve thousand by eleven thousand.
const MOST_PIXELS: u64 = 1 << 27;

/// Maximum number of bytes for decoding an image.
const MOST_BYTES: u64 = 1 << 30;

/// Checks that images can be samples of these sizes.
///
/// # Errors
/// They are not [channels, height, width] with one or three channels.
pub(super) fn check(sizes: &[usize]) -> Result<[usize; 3], Error> {
    let fail = |text: String| Error::usage(text).of_kind(ErrorKind::Unreadable);
    let &[channels, height, width] = sizes else {
        return Err(fail(format!(
            "images need samples of shape [channels, height, width], but the network's are {sizes:?}"
        ))
        .hint("give the samples as .npy, .npz or .safetensors"));
    };
    if ![1, 3].contains(&channels) {
        return Err(fail(format!(
            "images have 1 or 3 channels, but the network's samples have {channels}: it may expect latents"
        ))
        .hint("encode the images with `onnx-diffprune encode`, or give latents as .npy, .npz or .safetensors"));
    }
    if u32::try_from(height).is_err() || u32::try_from(width).is_err() {
        return Err(fail(format!("the network's samples are too large for images: {height} x {width} pixels")));
    }
    Ok([channels, height, width])
}

/// Reads an image, crops it at the centre to the aspect ratio of `sizes` (channels, height, width) and resizes it.
pub(super) fn read(path: &Path, sizes: &[usize]) -> Result<Image, Error> {
    let fail = |text: String| Error::unreadable(path, text);
    let [channels, height, width] = check(sizes).map_err(|error| error.in_file(path))?;
    // `check` made sure that both fit.
    let (high, wide) = (height as u32, width as u32);
    let open = || {
        let (file, _) = files::open(path)?;
        ImageReader::new(BufReader::new(file)).with_guessed_format()
    };
    let unreadable = |error: std::io::Error| fail(format!("can't be read: {error}")).caused_by(error);
    // Check the size before decoding: a few bytes can claim, or unpack to, any number of pixels.
    let (columns, rows) = open()
        .map_err(unreadable)?
        .into_dimensions()
        .map_err(|error| fail(format!("not a readable image: {error}")).caused_by(error))?;
    if u64::from(columns) * u64::from(rows) > MOST_PIXELS {
        return Err(fail(format!("expected an image of at most {MOST_PIXELS} pixels, found {columns} x {rows}")));
    }
    let mut reader = open().map_err(unreadable)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let mut image = reader.decode().map_err(|error| fail(format!("not a readable image: {error}")).caused_by(error))?;
    let was_resized = (image.height(), image.width()) != (high, wide);
    if was_resized {
        image = centre(&image, high, wide).resize_exact(wide, high, FilterType::Lanczos3);
    }
    let values = if channels == 1 {
        image.into_luma8().into_raw()
    } else {
        let pixels = image.into_rgb8().into_raw();
        (0..3).flat_map(|channel| pixels.iter().skip(channel).step_by(3).copied()).collect()
    };
    Ok(Image { values, was_resized })
}

/// Crops the largest centred part with the aspect ratio of `high` to `wide`.
fn centre(image: &DynamicImage, high: u32, wide: u32) -> DynamicImage {
    let (height, width) = (u64::from(image.height()), u64::from(image.width()));
    let (high, wide) = (u64::from(high), u64::from(wide));
    let crop_width = width.min((height * wide / high).max(1));
    let crop_height = height.min((width * high / wide).max(1));
    let (left, top) = ((width - crop_width) / 2, (height - crop_height) / 2);
    // None of these exceeds the u32 sizes of the image.
    image.crop_imm(left as u32, top as u32, crop_width as u32, crop_height as u32)
}
