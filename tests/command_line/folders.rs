//! Pipeline folders on the command line.

mod commands;

mod layouts;

mod parts;

mod refused;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use onnx_diffprune::data::{Array, ArrayData};
use onnx_diffprune::runtime::SessionOptions;
use serde_json::Value;

use crate::support::fixtures::{fixture, runtime};
use crate::tool::succeed;

/// A workspace with a copy of a committed pipeline.
struct WorkFolder {
    folder: tempfile::TempDir,
}

/// Copies a folder with all its contents.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
}

/// Returns all files below a folder with their contents, keyed by their relative names.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    all.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    all
}

impl WorkFolder {
    fn with(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixture("pipelines").join(name), &folder.path().join("sd"));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Prunes `sd` into `slim`. Returns the printed JSON.
    fn prune(&self, more: &[&str]) -> Value {
        let (input, output) = (self.text("sd"), self.text("slim"));
        let arguments = [&[input.as_str(), &output, "--no-latency", "--format", "json"], more].concat();
        succeed(&arguments).json()
    }
}

const BY_MAGNITUDE: [&str; 4] = ["--ratio", "0.3", "--criterion", "magnitude"];

/// Runs a network in ONNX Runtime on inputs of ones. Returns the shape of its first output.
fn shape(model: &Path, inputs: &[(&str, &[usize])]) -> Vec<usize> {
    let mut session = runtime().session_from_file(model, &SessionOptions::default()).unwrap();
    let ones = |dims: &[usize]| Array { dims: dims.to_vec(), data: ArrayData::F32(vec![1.0; dims.iter().product()]) };
    let inputs: Vec<(String, Array)> = inputs.iter().map(|(name, dims)| ((*name).to_owned(), ones(dims))).collect();
    let (_, output) = session.run(&inputs).unwrap().remove(0);
    assert!(output.to_f64().iter().all(|value| value.is_finite()));
    output.dims
}

/// The inputs of the denoiser of Stable Diffusion.
const OF_UNET: [(&str, &[usize]); 3] =
    [("sample", &[2, 4, 16, 16]), ("timestep", &[]), ("encoder_hidden_states", &[2, 77, 16])];

/// Returns the kept channels of every group of a plan.
fn kept(plan: &Path) -> Vec<Value> {
    let plan: Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
    plan["groups"].as_array().unwrap().iter().map(|group| group["kept"].clone()).collect()
}
