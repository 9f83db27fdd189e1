//! Samples that a network generated, and their files.

use std::path::Path;

use ndarray::ArrayD;

use crate::array::Array;
use crate::diffusion::RoleSummary;
use crate::error::Error;
use crate::files::{Outputs, unwritable};

/// Samples that a network generated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GeneratedSamples {
    /// The samples, one per row.
    pub values: ArrayD<f32>,
    /// The recognised roles of inputs and outputs.
    pub roles: RoleSummary,
    /// The process, in words.
    pub process: String,
    /// The conditioning inputs whose values were given.
    pub conditioning_given: Vec<String>,
    /// Duration of sampling in seconds.
    pub seconds: f64,
    /// The range of sample values that the network was trained on.
    pub(super) range: (f64, f64),
}

impl GeneratedSamples {
    /// Returns the samples as one PNG image of tiles.
    ///
    /// # Errors
    /// Fails if the samples are not images.
    pub fn png(&self) -> Result<Vec<u8>, Error> {
        crate::diffusion::grid_png(&self.values, self.range)
    }

    /// Returns the unclipped samples as a NumPy array.
    ///
    /// # Errors
    /// Fails if the number of elements overflows.
    pub fn npy(&self) -> Result<Vec<u8>, Error> {
        let data = crate::array::ArrayData::F32(self.values.iter().copied().collect());
        let array = Array::new(self.values.shape().to_vec(), data).map_err(|error| Error::unmet(error.to_string()))?;
        crate::npz::to_npy(&array).map_err(|error| Error::unmet(error.to_string()))
    }

    /// Writes the samples as one PNG image of tiles, as an unclipped NumPy array, or both. If one file can't be
    /// written, neither appears.
    ///
    /// # Errors
    /// Fails if the samples are not images, or if a file can't be written.
    pub fn save(&self, png: Option<&Path>, npy: Option<&Path>) -> Result<(), Error> {
        let mut outputs = Outputs::default();
        let mut add = |path: Option<&Path>, content: &dyn Fn() -> Result<Vec<u8>, Error>| match path {
            Some(path) => {
                let content = content()?;
                outputs.write(path, |file| file.write_all(&content)).map_err(|error| unwritable(path, error))
            }
            None => Ok(()),
        };
        add(png, &|| self.png())?;
        add(npy, &|| self.npy())?;
        outputs.publish(&[])
    }
}
