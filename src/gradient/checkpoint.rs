//! Checkpoints: the sums of a long run, saved so that the run can be resumed after a kill.
//!
//! A checkpoint is an `.npz` file with `fingerprint` (the bytes of a text that describes model, data and options),
//! `curve` (`[visited, 3]`: t, loss, kept), `complete` (whether the run is done), and one array per weight use.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::inputs::check_size;
use crate::npz::ArrayFile;

use super::accumulate::{Accumulated, LossPoint};

/// The file in which a run saves its sums.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    fingerprint: Vec<u8>,
}

impl Checkpoint {
    /// Returns a checkpoint at `path` for the run that `fingerprint` describes.
    ///
    /// # Errors
    /// The folder does not exist.
    pub fn new(path: &Path, fingerprint: &str) -> Result<Self, Error> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::io(
                path,
                format!("can't be written: there is no folder {}; create it or choose another path", folder.display()),
            ));
        }
        Ok(Self { path: path.to_owned(), fingerprint: fingerprint.as_bytes().to_vec() })
    }

    /// Saves the sums to a temporary file, which then replaces the old checkpoint.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, sum: &Accumulated) -> Result<(), Error> {
        let row = |point: &LossPoint| [point.t, point.loss, f64::from(u8::from(point.kept))];
        let curve = ArrayData::F64(sum.curve.iter().flat_map(row).collect());
        let mut arrays = vec![
            ("fingerprint".to_owned(), vector(ArrayData::U8(self.fingerprint.clone()))),
            ("curve".to_owned(), Array { dims: vec![sum.curve.len(), 3], data: curve }),
            ("complete".to_owned(), vector(ArrayData::Bool(vec![sum.complete]))),
        ];
        for (at, values) in sum.sums.iter().enumerate() {
            arrays.push((format!("sum_{at}"), vector(ArrayData::F32(values.clone()))));
        }
        let bytes = crate::npz::to_bytes(arrays.iter().map(|(name, array)| (name.as_str(), array)))
            .map_err(|error| Error::io(&self.path, error.to_string()))?;
        crate::files::write_file(&self.path, &bytes)
    }

    /// Loads the saved sums. Leaves `sum` unchanged if the file does not exist.
    ///
    /// # Errors
    /// The file can't be read, or was written by another run.
    pub fn load(&self, sum: &mut Accumulated) -> Result<(), Error> {
        if !self.path.exists() {
            return Ok(());
        }
        let fail = |text: &str| {
            Error::unreadable(&self.path, text.to_owned())
                .hint("run without --resume, or with the model, data and options of the run that wrote the checkpoint")
        };
        let mut file = ArrayFile::open(&self.path).map_err(|error| Error::unreadable(&self.path, error.to_string()))?;
        check_size(&file).map_err(|error| error.in_file(&self.path))?;
        let arrays: HashMap<String, Array> =
            file.read_all().map_err(|error| Error::unreadable(&self.path, error.to_string()))?.into_iter().collect();
        let of = |name: &str| arrays.get(name).map(|array| &array.data);
        match of("fingerprint") {
            Some(ArrayData::U8(found)) if *found == self.fingerprint => {}
            Some(_) => return Err(fail("the checkpoint was written with another model, other data or other options")),
            None => return Err(fail("not a checkpoint: the array `fingerprint` is missing")),
        }
        let Some(curve) = arrays.get("curve").map(Array::to_f64) else {
            return Err(fail("not a checkpoint: the array `curve` is missing"));
        };
        let mut sums = Vec::new();
        for at in 0..sum.uses.len() {
            let Some(ArrayData::F32(values)) = of(&format!("sum_{at}")) else {
                return Err(fail(&format!("not a checkpoint of this run: the float32 array `sum_{at}` is missing")));
            };
            sums.push(values.clone());
        }
        sum.sums = sums;
        sum.curve = curve
            .as_chunks::<3>()
            .0
            .iter()
            .map(|[t, loss, kept]| LossPoint { t: *t, loss: *loss, kept: *kept != 0.0 })
            .collect();
        sum.visited = sum.curve.len();
        sum.complete = matches!(of("complete"), Some(ArrayData::Bool(values)) if values.first() == Some(&true));
        Ok(())
    }

    /// Removes the file at the end of a run.
    pub fn remove(&self) {
        // A missing file needs no removal, and a file that can't be removed does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn vector(data: ArrayData) -> Array {
    Array { dims: vec![data.len()], data }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gradient::UseGradient;

    #[test]
    fn a_run_resumes_from_its_checkpoint_and_rejects_that_of_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.npz");
        let uses = [UseGradient { value: 3, node: 1, slot: 1, output: "g".to_owned(), axes: Vec::new() }];
        let mut sum = Accumulated::new(&uses);
        sum.sums[0] = vec![1.0, -2.5];
        sum.curve = vec![LossPoint { t: 0.0, loss: 0.75, kept: true }, LossPoint { t: 10.0, loss: 0.5, kept: false }];
        sum.visited = 2;
        let checkpoint = Checkpoint::new(&path, "a run").unwrap();
        checkpoint.save(&sum).unwrap();
        let mut found = Accumulated::new(&uses);
        checkpoint.load(&mut found).unwrap();
        assert_eq!(found, sum);
        let other = Checkpoint::new(&path, "another run").unwrap();
        assert!(other.load(&mut found).unwrap_err().to_string().contains("another model"));
        checkpoint.remove();
        assert!(!path.exists());
        let mut empty = Accumulated::new(&uses);
        checkpoint.load(&mut empty).unwrap();
        assert_eq!(empty.visited, 0);
    }
}
