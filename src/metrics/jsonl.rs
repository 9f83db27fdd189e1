//! Metrics as JSON Lines: one JSON object per line, each for one step.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::files::{Appended, map, write_file};

/// The member of every object that holds the step number.
const STEP: &str = "step";

/// A file of one JSON object per line (`metrics.jsonl`), each with the `step` that it belongs to.
///
/// Numbers that are not finite are written as `null`: JSON can't represent them.
#[derive(Debug)]
pub struct JsonLines(Appended);

impl JsonLines {
    /// Creates an empty file. An existing file is replaced.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        write_file(path, &[])?;
        Appended::open(path).map(Self)
    }

    /// Opens the file of an interrupted run that continues after step `done`. Keeps the lines up to the first line of a
    /// later step and drops the rest, including an incomplete last line. The shortened file replaces the old one
    /// atomically. Creates the file if there is none.
    ///
    /// # Errors
    /// The file can't be read or written, or a line before the last is not an object with a `step`.
    pub fn resume(path: &Path, done: u64) -> Result<Self, Error> {
        if path.exists() {
            let bytes = map(path).map_err(|error| Error::unreadable(path, format!("can't be read: {error}")))?;
            let kept = kept(path, &bytes, done)?;
            if kept < bytes.len() {
                let kept = bytes[..kept].to_vec();
                // Unmap the file before it is replaced.
                drop(bytes);
                write_file(path, &kept)?;
            }
        }
        Appended::open(path).map(Self)
    }

    /// Appends the line of a step: `step`, then the members of `record`.
    ///
    /// # Errors
    /// `record` does not serialise to an object, or the file can't be written.
    pub fn write(&mut self, step: u64, record: &impl Serialize) -> Result<(), Error> {
        let wrong = |found: String| Error::usage(format!("metrics: expected a JSON object for each line, {found}"));
        let mut members = match serde_json::to_value(record) {
            Ok(Value::Object(members)) => members,
            Ok(other) => return Err(wrong(format!("found {other}"))),
            Err(error) => return Err(wrong(error.to_string())),
        };
        members.remove(STEP);
        let rest = Value::Object(members).to_string();
        let separator = if rest == "{}" { "" } else { "," };
        self.0.write(format!("{{\"{STEP}\":{step}{separator}{}\n", &rest[1..]).as_bytes())
    }
}

/// Returns how many bytes of the file are kept: all complete lines before the first line of a step after `done`.
fn kept(path: &Path, bytes: &[u8], done: u64) -> Result<usize, Error> {
    let mut kept = 0;
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        let step = serde_json::from_slice::<Map<String, Value>>(line).ok().and_then(|line| line.get(STEP)?.as_u64());
        let Some(step) = step else {
            let text = format!("line {}: expected a JSON object with a \"{STEP}\", found something else", number + 1);
            return Err(Error::unreadable(path, text).hint("move the file away: the run then starts a new one"));
        };
        if step > done {
            break;
        }
        kept += line.len();
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn each_step_is_a_line_and_resuming_drops_lines_of_later_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "of another run").unwrap();
        let mut lines = JsonLines::create(&path).unwrap();
        lines.write(1, &json!({"loss": 0.5, "rate": f64::NAN})).unwrap();
        lines.write(1, &json!({})).unwrap();
        lines.write(2, &json!({"step": 9, "loss": 0.25})).unwrap();
        let three = "{\"step\":1,\"loss\":0.5,\"rate\":null}\n{\"step\":1}\n{\"step\":2,\"loss\":0.25}\n";
        assert_eq!(text(&path), three);
        assert!(lines.write(3, &[1]).unwrap_err().to_string().contains("expected a JSON object"));
        drop(lines);
        // The state after a kill in the middle of a line.
        std::fs::write(&path, format!("{three}{{\"step\":3,\"lo")).unwrap();
        JsonLines::resume(&path, 7).unwrap();
        assert_eq!(text(&path), three);
        let mut lines = JsonLines::resume(&path, 1).unwrap();
        assert_eq!(text(&path), three.split_inclusive('\n').take(2).collect::<String>());
        lines.write(2, &json!({"loss": 0.125})).unwrap();
        assert!(text(&path).ends_with("{\"step\":1}\n{\"step\":2,\"loss\":0.125}\n"));
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_with_other_content_is_not_truncated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        JsonLines::resume(&path, 0).unwrap();
        assert_eq!(text(&path), "");
        std::fs::write(&path, "{\"step\":1}\nshopping\n").unwrap();
        let error = JsonLines::resume(&path, 5).unwrap_err().to_string();
        assert!(error.contains("line 2: expected a JSON object"), "{error}");
        assert_eq!(text(&path), "{\"step\":1}\nshopping\n");
    }
}
