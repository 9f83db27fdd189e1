//! The folder of a run in rounds, from which an interrupted run resumes with the round it was in.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::collective::{Collective, run_on_first};
use crate::error::Error;
use crate::files::{read_text, write_file};

/// The file with the progress of a run, and its maximum size.
const STATE: &str = "rounds.json";
const MOST_BYTES: u64 = 1 << 16;

/// The progress of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// A description of network, data and options.
    fingerprint: String,
    /// The last round whose cut is complete, and the last round that is complete.
    cut: usize,
    done: usize,
}

/// The folder of a run. It holds `round-2.cut.onnx`, cut and fitted; `round-2.onnx`, trained; their plans; and
/// `round-2.finetune`, the folder of the training. The network of the last round is written to the output instead.
#[derive(Clone, Debug)]
pub struct RoundFolder {
    path: PathBuf,
    state: State,
    /// Whether this rank writes.
    writes: bool,
}

impl RoundFolder {
    /// Creates the folder, or opens that of a run to resume. A run that starts from the beginning discards the progress
    /// of the last one. Only the first of several ranks does this, and sends the result to the others.
    ///
    /// # Errors
    /// Fails if the folder can't be written, or if the run to resume had other options.
    pub fn open(
        path: impl Into<PathBuf>,
        fingerprint: &str,
        resumes: bool,
        ranks: &dyn Collective,
    ) -> Result<Self, Error> {
        let path = path.into();
        let state =
            run_on_first(ranks, || Self::open_first(path.clone(), fingerprint, resumes).map(|folder| folder.state))?;
        Ok(Self { path, state, writes: ranks.rank() == 0 })
    }

    fn open_first(path: PathBuf, fingerprint: &str, resumes: bool) -> Result<Self, Error> {
        std::fs::create_dir_all(&path)
            .map_err(|error| Error::io(&path, format!("can't be created as a folder: {error}")))?;
        let file = path.join(STATE);
        let fresh = State { fingerprint: fingerprint.to_owned(), ..State::default() };
        let folder = match file.exists() {
            true if resumes => {
                let text = read_text(&file, MOST_BYTES)?;
                let state: State =
                    serde_json::from_str(&text).map_err(|error| Error::unreadable(&file, error.to_string()))?;
                if state.fingerprint != fingerprint {
                    return Err(Error::usage(
                        "--resume: the rounds belong to another network, other data or other options",
                    )
                    .in_file(&file)
                    .hint("use the options of that run, or start again without --resume"));
                }
                Self { path, state, writes: true }
            }
            had_run => {
                let folder = Self { path, state: fresh, writes: true };
                if had_run {
                    folder.forget_training()?;
                }
                folder
            }
        };
        folder.save()?;
        Ok(folder)
    }

    /// Removes the checkpoints of trainings, so that this run does not resume from those of an earlier one.
    fn forget_training(&self) -> Result<(), Error> {
        let entries = std::fs::read_dir(&self.path).map_err(|error| Error::io(&self.path, error.to_string()))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let number = name.strip_prefix("round-").and_then(|rest| rest.strip_suffix(".finetune"));
            if number.is_some_and(|number| number.parse::<usize>().is_ok()) {
                std::fs::remove_dir_all(entry.path()).map_err(|error| Error::io(&entry.path(), error.to_string()))?;
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<(), Error> {
        if !self.writes {
            return Ok(());
        }
        let file = self.path.join(STATE);
        let text = serde_json::to_vec(&self.state).map_err(|error| Error::io(&file, error.to_string()))?;
        write_file(&file, &text)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of complete rounds.
    pub fn done(&self) -> usize {
        self.state.done
    }

    /// Returns whether the cut of a round is complete, fitted and verified if requested.
    pub fn has_cut(&self, round: usize) -> bool {
        self.state.cut >= round
    }

    /// Returns the path of a round's cut.
    pub fn cut(&self, round: usize) -> PathBuf {
        self.path.join(format!("round-{round}.cut.onnx"))
    }

    /// Returns the path of a round's trained network.
    pub fn trained(&self, round: usize) -> PathBuf {
        self.path.join(format!("round-{round}.onnx"))
    }

    /// Returns the run folder of a round's training.
    pub fn training(&self, round: usize) -> PathBuf {
        self.path.join(format!("round-{round}.finetune"))
    }

    /// Records that the cut of a round is complete.
    ///
    /// # Errors
    /// Fails if the folder can't be written.
    pub fn mark_cut(&mut self, round: usize) -> Result<(), Error> {
        self.state.cut = round;
        self.save()
    }

    /// Records that a round is complete.
    ///
    /// # Errors
    /// Fails if the folder can't be written.
    pub fn mark_done(&mut self, round: usize) -> Result<(), Error> {
        (self.state.cut, self.state.done) = (round, round);
        self.save()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{Alone, Threads};

    #[test]
    fn a_resumed_run_continues_and_a_new_run_starts_from_the_beginning() {
        let place = tempfile::tempdir().unwrap();
        let open = |fingerprint: &str, resumes: bool| RoundFolder::open(place.path(), fingerprint, resumes, &Alone);
        let mut folder = open("a", true).unwrap();
        assert_eq!((folder.done(), folder.has_cut(1)), (0, false));
        folder.mark_done(1).unwrap();
        folder.mark_cut(2).unwrap();
        std::fs::create_dir(folder.training(2)).unwrap();
        let again = open("a", true).unwrap();
        assert_eq!((again.done(), again.has_cut(2), again.has_cut(3)), (1, true, false));
        for found in Threads::run(2, |ranks| RoundFolder::open(place.path(), "a", true, &*ranks)) {
            assert!(found.unwrap().has_cut(2));
        }
        assert!(open("b", true).unwrap_err().to_string().contains("--resume"));
        let fresh = open("b", false).unwrap();
        assert!(fresh.done() == 0 && !fresh.has_cut(1) && !fresh.training(2).exists());
    }
}
