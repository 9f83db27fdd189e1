//! A pruned model in a temporary folder, for the tests of whole cuts.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use onnx_diffprune::load::{Model, load};
use onnx_diffprune::pipeline::{Cut, PruneOptions, analyse, cut};
use onnx_diffprune::runtime::Runtime;
use onnx_diffprune::verify::reference::KeptAxes;
use onnx_diffprune::verify::{VerifyOptions, VerifyReport, verify};
use onnx_diffprune::write::write;

/// Path of a committed model.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The committed models: a trained U-Net, a transformer, and a text-conditioned U-Net in half precision.
pub const FIXTURES: [&str; 3] = ["ddpm_fashion16.onnx", "dit_tiny.onnx", "sd15_tiny_fp16.onnx"];

/// A cut that has been written.
pub struct Pruned {
    /// The original.
    pub original: Model,
    /// The cut.
    pub cut: Cut,
    /// Where it was written.
    pub path: PathBuf,
    folder: tempfile::TempDir,
}

/// Prunes and writes a model.
pub fn prune(path: &Path, options: &PruneOptions) -> Pruned {
    let original = load(path).unwrap();
    let analysis = analyse(&original).unwrap();
    let cut = cut(&analysis, options).unwrap();
    drop(analysis);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pruned.onnx");
    write(&original, &cut.rewritten.edits, &out).unwrap();
    Pruned { original, cut, path: out, folder }
}

impl Pruned {
    /// Verifies `file` as a cut of the original by the plan, after `change` has had its way with what the plan keeps.
    pub fn verify_with(
        &self,
        file: &Path,
        rtol: Option<f64>,
        change: impl FnOnce(&mut HashMap<(usize, usize), KeptAxes>),
    ) -> VerifyReport {
        let analysis = analyse(&self.original).unwrap();
        let mut kept = self.cut.plan.kept_axes(&analysis.graph, file).unwrap();
        change(&mut kept);
        // Small images keep the many verifications of the tests short; the batch still varies.
        let sizes = [("h", 8), ("w", 8), ("seq", 3)].map(|(name, size)| (name.to_owned(), size)).into();
        let options = VerifyOptions { rtol, sizes, ..VerifyOptions::default() };
        verify(&analysis, &kept, &load(file).unwrap(), Runtime::open(None).unwrap(), &options).unwrap()
    }

    /// Verifies `file` as a cut of the original by the plan.
    pub fn verify(&self, file: &Path, rtol: Option<f64>) -> VerifyReport {
        self.verify_with(file, rtol, |_| ())
    }

    /// A path in the temporary folder.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
