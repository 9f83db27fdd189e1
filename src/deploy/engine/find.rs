//! The search for a program that builds engines.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::DeployTarget;
use crate::error::Error;

/// The script that builds with Python's bindings.
pub(super) const SCRIPT: &str = include_str!("build.py");

/// A program that builds engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineBuilder {
    pub(super) target: DeployTarget,
    pub(super) tool: Tool,
    /// The version of TensorRT.
    pub(super) version: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// NVIDIA's own program.
    Program(PathBuf),
    /// A Python with bindings.
    Python(PathBuf),
}

impl EngineBuilder {
    /// Searches for NVIDIA's program on the PATH, then for a Python with its bindings: the given one, or else the one on
    /// the PATH. If a Python is given, nothing else is searched.
    ///
    /// # Errors
    /// The target has no engines, or no builder was found; the error lists what was searched.
    pub fn find(target: DeployTarget, python: Option<&Path>) -> Result<Self, Error> {
        let program = match target {
            DeployTarget::Tensorrt => "trtexec",
            DeployTarget::TensorrtRtx => "tensorrt_rtx",
            other => {
                let text = format!("--engine: only tensorrt and tensorrt-rtx have engines, found {}", other.name());
                return Err(Error::usage(text));
            }
        };
        let mut looked = Vec::new();
        if python.is_none() {
            match on_path(program).map(|found| (version_of(&found), found)) {
                Some((Some(version), found)) => return Ok(Self { target, tool: Tool::Program(found), version }),
                Some((None, found)) => looked.push(format!("{} does not print its version", found.display())),
                None => looked.push(format!("no {program} on the PATH")),
            }
        }
        let pythons = match python {
            // The build runs in the folder of the bundle. The system searches a name without a folder on the PATH.
            Some(python) if python.components().count() > 1 => {
                vec![std::path::absolute(python).unwrap_or_else(|_| python.to_owned())]
            }
            Some(python) => vec![python.to_owned()],
            None => ["python3", "python"].iter().filter_map(|name| on_path(name)).take(1).collect(),
        };
        if pythons.is_empty() {
            looked.push("no python3 on the PATH".to_owned());
        }
        for python in pythons {
            match probed(target, &python) {
                Ok(version) => return Ok(Self { target, tool: Tool::Python(python), version }),
                Err(text) => looked.push(format!("{}: {text}", python.display())),
            }
        }
        let text = format!("--engine: found nothing that builds engines of {}: {}", target.name(), looked.join("; "));
        Err(Error::unmet(text).hint("install TensorRT's program or its Python bindings, or leave --engine out"))
    }

    /// Returns the builder without its path, for reports that are passed on to others.
    pub(super) fn label(&self) -> String {
        let (Tool::Program(path) | Tool::Python(path)) = &self.tool;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("{} {} ({name})", self.target.name(), self.version)
    }

    /// Returns the builder in words.
    pub fn describe(&self) -> String {
        let (Tool::Program(path) | Tool::Python(path)) = &self.tool;
        format!("{} ({} {})", path.display(), self.target.name(), self.version)
    }
}

/// Returns the path of a program on the PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    let names = if cfg!(windows) { vec![format!("{name}.exe")] } else { vec![name.to_owned()] };
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>())
        .find(|path| path.is_file())
}

/// Returns the version from the beginning of the output of NVIDIA's programs, `[TensorRT v101300]`: major, two digits of
/// the minor, two of the patch. Before version 10, the major has one digit.
fn version_of(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--help").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    read_version(&text)
}

pub(super) fn read_version(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(" v").filter(|(before, _)| before.contains("TensorRT"))?;
    let digits: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    if digits.contains('.') {
        return Some(digits);
    }
    let number: u64 = digits.parse().ok()?;
    // 8601 is 8.6.1, 10300 is 1.3.0 (RTX), 101300 is 10.13.0.
    let (major, rest) =
        if number < 10_000 { (number / 1000, number % 1000) } else { (number / 10_000, number % 10_000) };
    Some(format!("{major}.{}.{}", rest / 100, rest % 100))
}

/// Returns the version of the bindings of a Python, or why it has none.
fn probed(target: DeployTarget, python: &Path) -> Result<String, String> {
    let request = json!({ "target": target.name(), "probe": true }).to_string();
    let output = Command::new(python)
        .args(["-c", SCRIPT, &request])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("can't run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let fields: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let field = |name: &str| fields.iter().find_map(|fields| fields.get(name)?.as_str().map(str::to_owned));
    if let Some(version) = field("version") {
        return Ok(version);
    }
    let last = || String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it prints nothing").to_owned();
    Err(field("missing").unwrap_or_else(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_as_the_programs_print_them() {
        let of = |text: &str| read_version(text);
        assert_eq!(of("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec"), Some("8.6.1".into()));
        assert_eq!(of("&&&& RUNNING TensorRT.trtexec [TensorRT v101300] [b6]"), Some("10.13.0".into()));
        assert_eq!(of("&&&& RUNNING TensorRT_RTX.tensorrt_rtx [TensorRT-RTX v10300] [b1]"), Some("1.3.0".into()));
        assert_eq!(of("usage: something v12"), None);
    }
}
