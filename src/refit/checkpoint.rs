//! Checkpoints: what was fitted so far, saved so that a long refit can go on after a kill.
//!
//! A checkpoint is an `.npz` file: `fingerprint` (bytes of a text that names cut, data and options), `events` (bytes of JSON:
//! what became of every fit), and the new weights, `EVENT/NUMBER` in the order of the layers, a bias last. A run that goes on
//! computes the values between the layers anew, with the weights of the checkpoint, and so ends with the weights of a run
//! that was never stopped.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::fit::{Found, elements};
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::inputs::check_size;
use crate::npz::ArrayFile;
use crate::onnx::TensorProto;

/// Where a refit saves what it has fitted.
#[derive(Clone, Debug, Default)]
pub struct RefitCheckpoint {
    /// The file.
    pub path: PathBuf,
    /// Describes what must be equal for a run to go on.
    pub fingerprint: String,
    /// Time between two checkpoints.
    pub period: Duration,
    /// Whether to go on from the file, if it is there.
    pub resumes: bool,
}

/// What became of the fits so far, by event; `None` where the old weights stay.
pub(super) type Outcomes = HashMap<usize, Option<Found>>;

/// One fit, as the file describes it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    event: usize,
    /// The errors before and after; none where the old weights stay.
    errors: Option<(f64, f64)>,
    weights: Vec<String>,
    /// The layer that takes up the bias, and the name of that.
    bias: Option<(usize, String)>,
}

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Saving<'a> {
    checkpoint: &'a RefitCheckpoint,
    records: Vec<Record>,
    arrays: Vec<(String, Array)>,
    saved: Instant,
}

fn vector(data: ArrayData) -> Array {
    Array { dims: vec![data.len()], data }
}

fn array(tensor: &TensorProto) -> Array {
    let dims = tensor.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    Array { dims, data: ArrayData::F32(elements(tensor)) }
}

impl<'a> Saving<'a> {
    pub(super) fn new(checkpoint: &'a RefitCheckpoint) -> Self {
        Self { checkpoint, records: Vec::new(), arrays: Vec::new(), saved: Instant::now() }
    }

    /// Notes a fit, and saves all of them if the last time is long enough ago.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn add(&mut self, event: usize, found: Option<&Found>) -> Result<(), Error> {
        let tensors =
            found.iter().flat_map(|found| found.weights.iter().chain(found.bias.iter().map(|(_, bias)| bias)));
        self.arrays.extend(tensors.enumerate().map(|(at, tensor)| (format!("{event}/{at}"), array(tensor))));
        self.records.push(Record {
            event,
            errors: found.map(|found| found.errors),
            weights: found
                .map(|found| found.weights.iter().map(|tensor| tensor.name.clone()).collect())
                .unwrap_or_default(),
            bias: found.and_then(|found| found.bias.as_ref().map(|(layer, bias)| (*layer, bias.name.clone()))),
        });
        if self.saved.elapsed() < self.checkpoint.period {
            return Ok(());
        }
        let path = &self.checkpoint.path;
        let text = serde_json::to_vec(&self.records).map_err(|error| Error::io(path, error.to_string()))?;
        let fingerprint = vector(ArrayData::U8(self.checkpoint.fingerprint.as_bytes().to_vec()));
        let events = vector(ArrayData::U8(text));
        let head = [("fingerprint", &fingerprint), ("events", &events)];
        let arrays = self.arrays.iter().map(|(name, array)| (name.as_str(), array));
        let bytes =
            crate::npz::to_bytes(head.into_iter().chain(arrays)).map_err(|error| Error::io(path, error.to_string()))?;
        crate::files::write_file(path, &bytes)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(&self) {
        // Not being there is what is wanted.
        let _ = std::fs::remove_file(&self.checkpoint.path);
    }
}

impl RefitCheckpoint {
    /// What the file holds; nothing where there is none, or the run starts anew.
    ///
    /// # Errors
    /// The file can't be read or belongs to another run.
    pub(super) fn load(&self) -> Result<Outcomes, Error> {
        if !self.resumes || !self.path.exists() {
            return Ok(Outcomes::new());
        }
        let fail = |text: &str| {
            Error::unreadable(&self.path, text.to_owned())
                .hint("run without --resume, or with the options of the first run")
        };
        let unreadable = |error: crate::npz::NpzError| Error::unreadable(&self.path, error.to_string());
        let mut file = ArrayFile::open(&self.path).map_err(unreadable)?;
        check_size(&file).map_err(|error| error.in_file(&self.path))?;
        let mut arrays: HashMap<String, Array> = file.read_all().map_err(unreadable)?.into_iter().collect();
        let mut bytes = |name: &str| match arrays.remove(name).map(|array| array.data) {
            Some(ArrayData::U8(bytes)) => Ok(bytes),
            _ => Err(fail("not a checkpoint of a refit")),
        };
        if bytes("fingerprint")? != self.fingerprint.as_bytes() {
            return Err(fail("the checkpoint belongs to another cut, other data or other options"));
        }
        let records: Vec<Record> =
            serde_json::from_slice(&bytes("events")?).map_err(|_| fail("not a checkpoint of a refit"))?;
        let mut outcomes = Outcomes::new();
        for Record { event, errors, weights, bias } in records {
            let mut tensors = Vec::new();
            for (at, name) in weights.iter().chain(bias.iter().map(|(_, name)| name)).enumerate() {
                let Some(Array { dims, data: ArrayData::F32(values) }) = arrays.remove(&format!("{event}/{at}")) else {
                    return Err(fail("a weight of the checkpoint is missing"));
                };
                let dims: Vec<i64> = dims.iter().map(|size| *size as i64).collect();
                tensors.push(TensorProto::of_floats(name, &values, &dims));
            }
            let bias = bias.and_then(|(layer, _)| Some((layer, tensors.pop()?)));
            outcomes.insert(event, errors.map(|errors| Found { weights: tensors, bias, errors }));
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fits_come_back_and_those_of_another_run_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = RefitCheckpoint {
            path: folder.path().join("c.npz"),
            fingerprint: "a".to_owned(),
            period: Duration::ZERO,
            resumes: true,
        };
        assert!(checkpoint.load().unwrap().is_empty());
        let found = Found {
            weights: vec![TensorProto::of_floats("w", &[1.0, 2.5], &[1, 2])],
            bias: Some((0, TensorProto::of_floats("b", &[-0.1], &[1]))),
            errors: (0.3, 0.1),
        };
        let mut saving = Saving::new(&checkpoint);
        saving.add(0, None).unwrap();
        saving.add(3, Some(&found)).unwrap();
        let mut outcomes = checkpoint.load().unwrap();
        assert!(outcomes.remove(&0).unwrap().is_none());
        let again = outcomes.remove(&3).unwrap().unwrap();
        assert_eq!((again.errors, &again.weights), (found.errors, &found.weights));
        assert_eq!(again.bias.unwrap().1, found.bias.unwrap().1);
        assert!(outcomes.is_empty());
        let other = RefitCheckpoint { fingerprint: "b".to_owned(), ..checkpoint.clone() };
        assert!(other.load().unwrap_err().to_string().contains("belongs to another"));
        saving.remove();
        assert!(checkpoint.load().unwrap().is_empty());
    }
}
