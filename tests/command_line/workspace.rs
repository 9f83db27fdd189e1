//! A workspace for a test: a small network, and an empty folder for the outputs.

use std::path::PathBuf;

use prost::Message;

use super::tool::{Ran, run};
use crate::support::files::listing;
use crate::support::two_convolutions::two_convolutions;

/// A folder with the small network `in.onnx`, and an empty folder beside it.
pub(crate) struct Workspace {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) output: tempfile::TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        let workspace = Self { folder: tempfile::tempdir().unwrap(), output: tempfile::tempdir().unwrap() };
        std::fs::write(workspace.path("in.onnx"), two_convolutions().encode_to_vec()).unwrap();
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn out(&self, name: &str) -> String {
        self.output.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs on `in.onnx` with output `out.onnx`.
    pub(crate) fn prune(&self, arguments: &[&str]) -> Ran {
        let (input, output) = (self.text("in.onnx"), self.out("out.onnx"));
        // Two convolutions are not a denoising network: the gradient criteria need one.
        run(&[&[input.as_str(), output.as_str(), "--criterion", "magnitude"], arguments].concat())
    }

    pub(crate) fn written(&self) -> Vec<String> {
        listing(self.output.path())
    }

    /// Expects a refusal: the exit code, a message on standard error, nothing written.
    pub(crate) fn refuses(&self, ran: &Ran, code: i32, message: &str) {
        assert_eq!(ran.code, code, "{}", ran.err);
        assert!(ran.err.contains(message), "{:?} is not in {}", message, ran.err);
        assert!(self.written().is_empty(), "left behind: {:?}", self.written());
    }
}
