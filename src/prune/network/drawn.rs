//! Samples that a network drew, and their files.

use std::path::Path;

use ndarray::ArrayD;

use crate::array::Array;
use crate::diffusion::RoleSummary;
use crate::error::Error;
use crate::files::{Outputs, unwritable};

/// Samples that a network drew.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Drawn {
    /// The samples, one per row.
    pub values: ArrayD<f32>,
    /// What was taken for what.
    pub roles: RoleSummary,
    /// The process, in words.
    pub process: String,
    /// The conditioning inputs whose values were given.
    pub conditioning_given: Vec<String>,
    /// Seconds that drawing took.
    pub seconds: f64,
    /// The values of samples that the network was trained on.
    pub(super) range: (f64, f64),
}

impl Drawn {
    /// The samples as one PNG image of tiles: the bytes of the file.
    ///
    /// # Errors
    /// Samples that are no images.
    pub fn png(&self) -> Result<Vec<u8>, Error> {
        crate::diffusion::grid_png(&self.values, self.range)
    }

    /// The samples as they are, as the bytes of a NumPy array.
    ///
    /// # Errors
    /// More samples than can be counted.
    pub fn npy(&self) -> Result<Vec<u8>, Error> {
        let data = crate::array::ArrayData::F32(self.values.iter().copied().collect());
        let array = Array::new(self.values.shape().to_vec(), data).map_err(|error| Error::unmet(error.to_string()))?;
        crate::npz::to_npy(&array).map_err(|error| Error::unmet(error.to_string()))
    }

    /// Writes the samples as one PNG image of tiles, as they are as a NumPy array, or both: then both files take their
    /// places or none.
    ///
    /// # Errors
    /// Samples that are no images; a file that can't be written.
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
