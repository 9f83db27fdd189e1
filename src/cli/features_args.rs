//! The arguments for the network that computes the features by which samples are compared.

use std::path::PathBuf;

use clap::Args;
use onnx_diffprune::Error;
use onnx_diffprune::evaluation::{ChannelOrder, FeatureLayout, FeatureOptions};

use super::diffusion_args::parse_range;

/// The network that computes features of samples, and how images are fed to it.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct FeaturesArgs {
    /// A network that computes features of images, for distances between sets of samples (FD and KID): any ONNX file
    /// with one image input.
    #[arg(long, value_name = "NET.onnx", help_heading = "Features")]
    pub(super) features: Option<PathBuf>,

    /// Name of the value with the features: an output or any other value of the graph. Spatial axes are averaged
    /// [default: the only output].
    #[arg(long, value_name = "NAME", help_heading = "Features", requires = "features")]
    features_output: Option<String>,

    /// Pixel values of black and white [default: from the metadata Image.NominalPixelRange; 0,255 for bytes, else 0,1].
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true, help_heading = "Features", requires = "features")]
    features_range: Option<String>,

    /// Mean that is subtracted from the pixels, in the units of --features-range: one number, or one per channel in the
    /// channel order of the network [default: 0].
    #[arg(long, value_name = "X,...", allow_hyphen_values = true, help_heading = "Features", requires = "features")]
    features_mean: Option<String>,

    /// Standard deviation that the pixels are divided by after the mean is subtracted: one number, or one per channel
    /// [default: 1].
    #[arg(long, value_name = "X,...", help_heading = "Features", requires = "features")]
    features_std: Option<String>,

    /// Order of the colour channels [default: from the metadata Image.BitmapPixelFormat, else rgb].
    #[arg(long, value_enum, help_heading = "Features", requires = "features")]
    features_order: Option<ChannelOrder>,

    /// Position of the channel axis [default: the axis of size 1 or 3].
    #[arg(long, value_enum, help_heading = "Features", requires = "features")]
    features_layout: Option<FeatureLayout>,

    /// Image size in pixels if the graph does not fix it: one number, or height and width [default: the size of the
    /// samples].
    #[arg(long, value_name = "N or HxW", help_heading = "Features", requires = "features")]
    features_size: Option<String>,
}

impl FeaturesArgs {
    /// Returns the options of the feature network for the library.
    pub(super) fn options(&self) -> Result<FeatureOptions, Error> {
        let numbers =
            |option: &str, text: &Option<String>| text.as_deref().map(|text| parse_numbers(option, text)).transpose();
        Ok(FeatureOptions {
            output: self.features_output.clone(),
            range: self.features_range.as_deref().map(|text| parse_range("--features-range", text)).transpose()?,
            mean: numbers("--features-mean", &self.features_mean)?,
            deviation: numbers("--features-std", &self.features_std)?,
            order: self.features_order,
            layout: self.features_layout,
            size: self.features_size.as_deref().map(parse_size).transpose()?,
        })
    }
}

/// Parses numbers with commas between them.
fn parse_numbers(option: &str, text: &str) -> Result<Vec<f64>, Error> {
    let form = || Error::usage(format!("{option}: expected numbers such as 0.5 or 0.485,0.456,0.406, found {text:?}"));
    text.split(',').map(|number| number.trim().parse().map_err(|_| form())).collect()
}

/// Parses a size given as N or HxW.
fn parse_size(text: &str) -> Result<(usize, usize), Error> {
    let form = || Error::usage(format!("--features-size: expected a size such as 224 or 224x320, found {text:?}"));
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.trim().parse(), width.trim().parse()) {
        (Ok(height @ 1..), Ok(width @ 1..)) => Ok((height, width)),
        _ => Err(form()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_are_read() {
        assert_eq!(parse_size("224").ok(), Some((224, 224)));
        assert_eq!(parse_size("20x30").ok(), Some((20, 30)));
        assert!(["", "0", "axb", "3x0", "-1", "1x2x3"].iter().all(|text| parse_size(text).is_err()));
        assert_eq!(parse_numbers("--x", "1, -2.5").ok(), Some(vec![1.0, -2.5]));
        assert!(parse_numbers("--x", "1,,2").is_err());
    }
}
