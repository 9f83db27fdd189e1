//! Checkpoints: what was fitted so far, saved so that a long refit can go on after a kill.
//!
//! A checkpoint is an `.npz` file: `fingerprint` (bytes of a text that names cut, data and options), `events` (bytes of JSON:
//! what became of every fit), and `EVENT/NUMBER`, the bytes of the constants that a fit changes, biases last. A run that goes on
//! computes the values between the layers anew, with the weights of the checkpoint, and so ends with the weights of a run
//! that was never stopped.

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

/// What became of a fit; `Err` says why the old weights stay.
pub(super) type Outcome = Result<Found, String>;

/// What became of the fits so far, by event.
pub(super) type Outcomes = HashMap<usize, Outcome>;

/// One fit, as the file describes it.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    event: usize,
    /// The errors before and after; none where the old weights stay.
    errors: Option<(f64, f64)>,
    /// Why they stay.
    reason: Option<String>,
    /// The number of constants that change.
    tensors: usize,
    /// Use and layer that take up each of the biases, which follow the constants.
    biases: Vec<(usize, usize)>,
}

/// A checkpoint under way.
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

    /// Notes a fit, and saves all of them if the last time is long enough ago.
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
        let none = || fail("not a checkpoint of a refit");
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
