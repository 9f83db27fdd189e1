//! Fixtures of every test: the committed models, and ONNX Runtime.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use onnx_diffprune::analysis::{Analysis, analyse};
use onnx_diffprune::graph::model::Model;
use onnx_diffprune::load::load;
use onnx_diffprune::runtime::Runtime;

/// The committed models: a trained U-Net, a transformer, a text-conditioned U-Net in half precision, and a trained
/// transformer with labels.
pub(crate) const FIXTURES: [&str; 4] =
    ["ddpm_fashion16.onnx", "dit_tiny.onnx", "sd15_tiny_fp16.onnx", "dit_fashion16.onnx"];

/// Returns the path of a file in the folder `fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Returns the position of a model in the list of committed models.
pub(crate) fn place(name: &str) -> usize {
    FIXTURES.iter().position(|fixture| *fixture == name).unwrap_or_else(|| panic!("{name} is not committed"))
}

/// Returns a committed model, loaded and analysed once in a process.
pub(crate) fn analysed(name: &str) -> &'static Analysis {
    static ANALYSED: [OnceLock<&Analysis>; FIXTURES.len()] = [const { OnceLock::new() }; FIXTURES.len()];
    ANALYSED[place(name)].get_or_init(|| analysed_for_good(load(&fixture(name)).unwrap()))
}

/// Analyses a model that is kept until the process ends.
pub(crate) fn analysed_for_good(model: Model) -> &'static Analysis {
    let model = Box::leak(Box::new(model));
    Box::leak(Box::new(analyse(model).unwrap_or_else(|error| panic!("{error}"))))
}

/// Threads within an operator. Tests run in parallel, and idle threads of ONNX Runtime spin.
pub(crate) const THREADS: Option<usize> = Some(1);

/// Returns ONNX Runtime as the normal search finds it, for instance in the `.venv` that `make venv` creates.
pub(crate) fn runtime() -> &'static Runtime {
    Runtime::open(None).unwrap_or_else(|error| panic!("{error}\nhint: run `make venv` first"))
}
