//! Cuts written to a file, and their verification.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use onnx_diffprune::analysis::Analysis;
use onnx_diffprune::couple::options::{AttentionOption, NormGroups};
use onnx_diffprune::graph::Reader;
use onnx_diffprune::load::{from_bytes, load};
use onnx_diffprune::onnx::ModelProto;
use onnx_diffprune::operator::reference::KeptAxes;
use onnx_diffprune::plan::kept_axes;
use onnx_diffprune::prune::cutting::{Cutting, cut};
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, VerifyReport, verify};
use onnx_diffprune::write::{slice_bytes, write};
use prost::Message;

use super::fixtures::{FIXTURES, analysed, analysed_for_good, place, runtime};

/// A written cut.
pub(crate) struct Pruned {
    /// The original.
    pub(crate) analysis: &'static Analysis,
    /// The cut.
    pub(crate) cut: Cutting,
    /// The path of the written file.
    pub(crate) path: PathBuf,
    report: OnceLock<VerifyReport>,
    /// The temporary folder that contains it. `None`: the file is shared and kept.
    folder: Option<tempfile::TempDir>,
}

/// Prunes and writes a model.
pub(crate) fn prune(analysis: &'static Analysis, options: &PruneOptions) -> Pruned {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pruned.onnx");
    Pruned { folder: Some(folder), ..pruned_to(analysis, options, path) }
}

/// Prunes and writes a network that was just built.
pub(crate) fn prune_model(model: &ModelProto, options: &PruneOptions) -> Pruned {
    prune(analysed_for_good(from_bytes(Path::new("net.onnx"), model.encode_to_vec().into()).unwrap()), options)
}

fn pruned_to(analysis: &'static Analysis, options: &PruneOptions, path: PathBuf) -> Pruned {
    let cut = cut(analysis, options, onnx_diffprune::runtime::Runtime::open(None).ok()).unwrap();
    write(&analysis.model, &cut.rewritten.edits, &path).unwrap();
    Pruned { analysis, cut, path, report: OnceLock::new(), folder: None }
}

/// Prunes a committed model to half of its channels, once in a process.
pub(crate) fn halved(name: &str) -> &'static Pruned {
    static HALVED: [OnceLock<Pruned>; FIXTURES.len()] = [const { OnceLock::new() }; FIXTURES.len()];
    HALVED[place(name)].get_or_init(|| shared(name, "halved", &PruneOptions::by_magnitude(Target::Ratio(0.5))))
}

/// Does the same with whole norm groups removed and head dimensions pruned.
pub(crate) fn halved_across_groups(name: &str) -> &'static Pruned {
    static HALVED: [OnceLock<Pruned>; FIXTURES.len()] = [const { OnceLock::new() }; FIXTURES.len()];
    HALVED[place(name)].get_or_init(|| {
        let mut options = PruneOptions::by_magnitude(Target::Ratio(0.5));
        options.score.norm_groups = NormGroups::Drop;
        options.score.attention = AttentionOption::Dims;
        shared(name, "halved_across_groups", &options)
    })
}

/// Writes a cut whose file is kept, because no test knows whether it is the last to use it. Every process writes the
/// same bytes.
fn shared(name: &str, kind: &str, options: &PruneOptions) -> Pruned {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{kind}_{name}"));
    pruned_to(analysed(name), options, path)
}

impl Pruned {
    /// Verifies `file` as a cut of the original by the plan, after `change` has modified the kept indices.
    pub(crate) fn verify_with(&self, file: &Path, change: impl FnOnce(&mut HashMap<Reader, KeptAxes>)) -> VerifyReport {
        let mut kept = kept_axes(&self.cut.plan, self.analysis, file).unwrap();
        change(&mut kept);
        // Small images keep the many verifications of the tests short; the batch still varies.
        let sizes = [("h", 8), ("w", 8), ("seq", 3)].map(|(name, size)| (name.to_owned(), size)).into();
        let options = VerifyOptions { sizes, ..VerifyOptions::default() };
        verify(self.analysis, &kept, &load(file).unwrap(), runtime(), &options).unwrap()
    }

    /// Verifies a misaligned cut on which file and plan agree. The node with the output `output` keeps, along one axis
    /// of the weight at input `slot`, indices that the plan removes, instead of those that its neighbours keep.
    pub(crate) fn verify_misaligned(&self, output: &str, slot: usize, axis: usize) -> VerifyReport {
        let graph = &self.analysis.graph;
        let node = graph.values[graph.value(output).unwrap()].producer.unwrap().0;
        let (reader, value) = (Reader { node, slot }, graph.nodes[node].input(slot).unwrap());
        let original = self.analysis.constant(value).unwrap();
        let mut axes = kept_axes(&self.cut.plan, self.analysis, &self.path).unwrap()[&reader].clone();
        let kept = axes[&axis].clone();
        let free = (0..original.dims[axis] as usize).filter(|index| !kept.contains(index));
        let mut other: Vec<usize> = free.take(kept.len()).collect();
        other.extend(kept.iter().copied().take(kept.len() - other.len()));
        other.sort_unstable();
        assert_ne!(kept, other);
        axes.insert(axis, other);

        let mut model = ModelProto::decode(bytes::Bytes::from(std::fs::read(&self.path).unwrap())).unwrap();
        let pruned = model.graph.as_mut().unwrap();
        let name = pruned.node.iter().find(|node| node.first_output() == output).unwrap().input[slot].clone();
        let tensor = pruned.initializer.iter_mut().find(|tensor| tensor.name == name).unwrap();
        let dims: Vec<usize> = original.dims.iter().map(|size| *size as usize).collect();
        let element = original.element_type().byte_size().unwrap();
        let cut: Vec<(usize, Vec<usize>)> = axes.clone().into_iter().collect();
        tensor.raw_data = slice_bytes(&original.raw_data, &dims, element, &cut).into();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, model.encode_to_vec()).unwrap();
        self.verify_with(file.path(), |kept| _ = kept.insert(reader, axes))
    }

    /// Returns the verification of the written file, which runs once.
    pub(crate) fn report(&self) -> &VerifyReport {
        self.report.get_or_init(|| self.verify(&self.path))
    }

    /// Verifies `file` as a cut of the original by the plan.
    pub(crate) fn verify(&self, file: &Path) -> VerifyReport {
        self.verify_with(file, |_| ())
    }

    /// Returns the share of parameters that is left.
    pub(crate) fn share(&self) -> f64 {
        self.cut.after.parameters as f64 / self.cut.before.parameters as f64
    }
}
