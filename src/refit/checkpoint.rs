//! Checkpoints: the fits done so far, saved so that a long refit can continue after it was killed.
//!
//! A checkpoint is an `.npz` file. It contains `fingerprint` (bytes of a text that identifies cut, data and options),
//! `events` (bytes of JSON: the result of every fit), and `EVENT/NUMBER`, the bytes of the constants that a fit changes,
//! biases last. A resumed run computes the values between the layers again, with the weights of the checkpoint. It
//! therefore ends with the weights of a run that was never stopped.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use serde::{Deserialize, Serialize};

use super::fit::Found;
use crate::array::{Array, ArrayData};
use crate::error::Error;
use crate::inputs::check_size;
use crate::npz::ArrayFile;
use crate::onnx::TensorProto;

/// Where a refit saves its fits, and when.
#[derive(Clone, Debug, Default)]
pub struct RefitCheckpoint {
    /// The file.
    pub path: PathBuf,
    /// A text that must be equal for a run to resume.
    pub fingerprint: String,
    /// Time between two checkpoints.
    pub period: Duration,
    /// Whether to resume from the file if it exists.
    pub resumes: bool,
}

/// The result of a fit. `Err`: why the old weights are kept.
pub(super) type Outcome = Result<Found, String>;

/// The results of the fits so far, by event.
pub(super) type Outcomes = HashMap<usize, Outcome>;

/// One fit, as stored in the file.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    event: usize,
    /// The errors before and after. `None`: the old weights are kept.
    errors: Option<(f64, f64)>,
    /// Why the old weights are kept. `None`: they are not.
    reason: Option<String>,
    /// The number of constants that change.
    tensors: usize,
    /// For each of the biases, which follow the constants: the use, and the layer that has the bias.
    biases: Vec<(usize, usize)>,
}

/// A checkpoint in progress.
#[derive(Debug)]
pub(super) struct Saving<'a> {
    checkpoint: &'a RefitCheckpoint,
    records: Vec<Record>,
    arrays: Vec<(String, Array)>,
    saved: Instant,
}

fn bytes(bytes: Vec<u8>) -> Array {
    Array { dims: vec![bytes.len()], data: ArrayData::U8(bytes) }
}

impl<'a> Saving<'a> {
    pub(super) fn new(checkpoint: &'a RefitCheckpoint) -> Self {
        Self { checkpoint, records: Vec::new(), arrays: Vec::new(), saved: Instant::now() }
    }

    /// Records a fit, and saves all of them if the period since the last save has passed.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn add(&mut self, event: usize, outcome: &Result<Found, String>) -> Result<(), Error> {
        let found = outcome.as_ref().ok();
        let biases = found.iter().flat_map(|found| found.biases.iter().map(|(_, _, bias)| bias));
        let tensors = found.iter().flat_map(|found| &found.tensors).chain(biases);
        self.arrays
            .extend(tensors.enumerate().map(|(at, tensor)| (format!("{event}/{at}"), bytes(tensor.encode_to_vec()))));
        self.records.push(Record {
            event,
            errors: found.map(|found| found.errors),
            reason: outcome.as_ref().err().cloned(),
            tensors: found.map_or(0, |found| found.tensors.len()),
            biases: found.iter().flat_map(|found| found.biases.iter().map(|(of, layer, _)| (*of, *layer))).collect(),
        });
        if self.saved.elapsed() < self.checkpoint.period {
            return Ok(());
        }
        let path = &self.checkpoint.path;
        let text = serde_json::to_vec(&self.records).map_err(|error| Error::io(path, error.to_string()))?;
        let fingerprint = bytes(self.checkpoint.fingerprint.as_bytes().to_vec());
        let events = bytes(text);
        let head = [("fingerprint", &fingerprint), ("events", &events)];
        let arrays = self.arrays.iter().map(|(name, array)| (name.as_str(), array));
        let content =
            crate::npz::to_bytes(head.into_iter().chain(arrays)).map_err(|error| Error::io(path, error.to_string()))?;
        crate::files::write_file(path, &content)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(&self) {
        // The file need not exist.
        let _ = std::fs::remove_file(&self.checkpoint.path);
    }
}

impl RefitCheckpoint {
    /// Reads the fits of the file. Returns none if there is no file or the run does not resume.
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
        let none = || fail("not a checkpoint of a refit, or a damaged one");
        let unreadable = |error: crate::npz::NpzError| Error::unreadable(&self.path, error.to_string());
        let mut file = ArrayFile::open(&self.path).map_err(unreadable)?;
        check_size(&file).map_err(|error| error.in_file(&self.path))?;
        let mut arrays: HashMap<String, Array> = file.read_all().map_err(unreadable)?.into_iter().collect();
        let mut take = |name: &str| match arrays.remove(name).map(|array| array.data) {
            Some(ArrayData::U8(bytes)) => Ok(bytes),
            _ => Err(none()),
        };
        if take("fingerprint")? != self.fingerprint.as_bytes() {
            return Err(fail("the checkpoint belongs to another cut, other data or other options"));
        }
        let records: Vec<Record> = serde_json::from_slice(&take("events")?).map_err(|_| none())?;
        let mut outcomes = Outcomes::new();
        for Record { event, errors, reason, tensors, biases } in records {
            let mut tensor = |at: usize| -> Result<TensorProto, Error> {
                TensorProto::decode(take(&format!("{event}/{at}"))?.as_slice()).map_err(|_| none())
            };
            let Some(errors) = errors else {
                outcomes.insert(event, Err(reason.ok_or_else(none)?));
                continue;
            };
            let constants = (0..tensors).map(&mut tensor).collect::<Result<Vec<_>, _>>()?;
            let biases = biases.into_iter().enumerate();
            let biases = biases.map(|(at, (of, layer))| Ok((of, layer, tensor(tensors + at)?)));
            let biases = biases.collect::<Result<Vec<_>, Error>>()?;
            outcomes.insert(event, Ok(Found { tensors: constants, biases, errors }));
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fits_are_restored_and_those_of_another_run_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = RefitCheckpoint {
            path: folder.path().join("c.npz"),
            fingerprint: "a".to_owned(),
            period: Duration::ZERO,
            resumes: true,
        };
        assert!(checkpoint.load().unwrap().is_empty());
        let found = Found {
            tensors: vec![TensorProto::of_floats("w", &[1.0, 2.5], &[1, 2])],
            biases: vec![(0, 1, TensorProto::of_floats("b", &[-0.1], &[1]))],
            errors: (0.3, 0.1),
        };
        let mut saving = Saving::new(&checkpoint);
        saving.add(0, &Err("it is too small".to_owned())).unwrap();
        saving.add(3, &Ok(found)).unwrap();
        let mut outcomes = checkpoint.load().unwrap();
        assert_eq!(outcomes.remove(&0).unwrap().unwrap_err(), "it is too small");
        let again = outcomes.remove(&3).unwrap().unwrap();
        assert_eq!(again.errors, (0.3, 0.1));
        assert_eq!(again.tensors, [TensorProto::of_floats("w", &[1.0, 2.5], &[1, 2])]);
        assert_eq!(again.biases, [(0, 1, TensorProto::of_floats("b", &[-0.1], &[1]))]);
        assert!(outcomes.is_empty());
        let other = RefitCheckpoint { fingerprint: "b".to_owned(), ..checkpoint.clone() };
        assert!(other.load().unwrap_err().to_string().contains("belongs to another"));
        saving.remove();
        assert!(checkpoint.load().unwrap().is_empty());
    }
}
