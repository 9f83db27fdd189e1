//! Cuts whose weights have changed since: written by the streaming writer, and verified against the original with the
//! new weights inserted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use half::f16;
use onnx_diffprune::changed::Changes;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{
    DataLocation, DataType, ModelProto, StringStringEntryProto, TensorProto, attr_int, attr_ints,
};
use onnx_diffprune::plan::Plan;
use onnx_diffprune::prune::{PruneOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, VerifyReport, verify_plan};
use onnx_diffprune::write::{MemoryWeight, WeightSource, write};
use prost::Message;
use rand::{RngExt, SeedableRng};

use super::computed_weights::{chain, normalised};
use crate::support::builder::Builder;
use crate::support::cuts::{Pruned, halved, prune, prune_model};
use crate::support::files::save;
use crate::support::fixtures::{FIXTURES, analysed_for_good, runtime};

/// A file with changed weights, and its plan.
pub(super) struct Changed<'p> {
    pruned: &'p Pruned,
    pub(super) plan: Plan,
    pub(super) path: PathBuf,
    folder: tempfile::TempDir,
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(std::fs::read(path).unwrap().as_slice()).unwrap()
}

fn tensor<'m>(model: &'m ModelProto, name: &str) -> &'m TensorProto {
    model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name == name).unwrap()
}

fn tensor_mut<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut TensorProto {
    model.graph.as_mut().unwrap().initializer.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

/// Returns random elements of the magnitude of a weight of this shape, in float64.
fn random(dims: &[i64], seed: u64) -> Vec<f64> {
    let fan_in: i64 = dims.iter().skip(1).product();
    let spread = if dims.len() == 1 { 0.5 } else { (3.0 / fan_in as f64).sqrt() };
    let centre = if dims.len() == 1 { 1.0 } else { 0.0 };
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    (0..dims.iter().product()).map(|_| centre + spread * random.random_range(-1.0..1.0)).collect()
}

fn random_weight(dims: &[i64], seed: u64) -> Arc<dyn WeightSource> {
    Arc::new(MemoryWeight::of_doubles(dims, &random(dims, seed)))
}

/// Writes a cut with these weights changed, and with added biases (node, slot, axis, size). `cut` is the file that
/// counts as the verified cut.
pub(super) fn change_of<'p>(
    pruned: &'p Pruned,
    weights: &[String],
    biases: &[(String, usize, usize, i64)],
    cut: &Path,
) -> Changed<'p> {
    let before = decode(cut);
    let mut changes = Changes::new(pruned.analysis, &pruned.cut.rewritten);
    for (seed, name) in weights.iter().enumerate() {
        changes.weight(name, random_weight(&tensor(&before, name).dims, seed as u64)).unwrap();
    }
    for (node, slot, axis, size) in biases {
        changes.bias(node, *slot, *axis, random_weight(&[*size], 99)).unwrap();
    }
    let (mut edits, changed) = changes.finish(&load(cut).unwrap()).unwrap();
    let plan = Plan { changed: Some(changed), ..pruned.cut.plan.clone() };
    edits.metadata = plan.metadata();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.onnx");
    write(&pruned.analysis.model, &edits, &path).unwrap();
    Changed { pruned, plan, path, folder }
}

pub(super) fn change<'p>(pruned: &'p Pruned, weights: &[String]) -> Changed<'p> {
    change_of(pruned, weights, &[], &pruned.path)
}

impl Changed<'_> {
    fn verify(&self) -> VerifyReport {
        self.verify_file(&self.path)
    }

    fn verify_file(&self, file: &Path) -> VerifyReport {
        let sizes = [("h", 8), ("w", 8), ("seq", 3)].map(|(name, size)| (name.to_owned(), size)).into();
        let options = VerifyOptions { sizes, ..VerifyOptions::default() };
        let (analysis, plan) = (self.pruned.analysis, Path::new("plan.json"));
        verify_plan(analysis, &self.plan, plan, &load(file).unwrap(), runtime(), &options).unwrap()
    }

    /// Verifies the file after a change that the plan does not list.
    fn verify_mutated(&self, change: impl FnOnce(&mut ModelProto)) -> VerifyReport {
        let mut model = decode(&self.path);
        change(&mut model);
        let path = self.folder.path().join("mutated.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        self.verify_file(&path)
    }
}

/// Returns the names of a few sliced floating point initializers of every rank, spread over the network.
pub(super) fn some_weights(pruned: &Pruned) -> Vec<String> {
    let model = decode(&pruned.path);
    let mut names = Vec::new();
    for rank in 1..5 {
        let of_rank: Vec<&TensorProto> = model
            .graph
            .as_ref()
            .unwrap()
            .initializer
            .iter()
            .filter(|tensor| tensor.dims.iter().filter(|size| **size > 1).count() == rank)
            .filter(|tensor| [DataType::Float, DataType::Float16].contains(&tensor.element_type()))
            .filter(|tensor| pruned.cut.plan.tensors.iter().any(|plan| plan.tensor == tensor.name))
            .collect();
        let step = (of_rank.len() / 3).max(1);
        names.extend(of_rank.iter().step_by(step).take(3).map(|tensor| tensor.name.clone()));
    }
    names
}

fn assert_passes(changed: &Changed<'_>, what: &str) {
    let report = changed.verify();
    assert!(report.passed && !report.runs.is_empty(), "{what}: {report:?}");
    // The changes matter: verified as a bare cut, the file fails.
    assert!(!changed.pruned.verify(&changed.path).passed, "{what}");
}

#[test]
fn changed_weights_of_committed_models_are_verified() {
    for name in FIXTURES {
        let pruned = halved(name);
        let weights = some_weights(pruned);
        assert!(weights.len() >= 5, "{name}: {weights:?}");
        let changed = change(pruned, &weights);
        assert_passes(&changed, name);
        let (before, after) = (decode(&pruned.path), decode(&changed.path));
        for old in &before.graph.unwrap().initializer {
            let new = tensor(&after, &old.name);
            let Some(seed) = weights.iter().position(|weight| *weight == old.name) else {
                assert_eq!(old, new, "{name}");
                continue;
            };
            let values = random(&old.dims, seed as u64);
            let expected: Vec<u8> = match old.element_type() {
                DataType::Float16 => values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            };
            assert_eq!((&new.dims, new.data_type, &*new.raw_data), (&old.dims, old.data_type, &*expected), "{name}");
        }
        let listed = after.metadata_props.iter().find(|entry| entry.key == "onnx_diffprune.changed_weights").unwrap();
        assert!(
            weights.iter().all(|weight| listed.value.contains(&format!("\"name\":\"{weight}\""))),
            "{}",
            listed.value
        );
    }
}

/// Builds two convolutions with one shared weight, of which different channels are removed.
fn shared_weight() -> ModelProto {
    let mut b = Builder::new(11);
    let shared = b.layer_weight(&[16, 3, 3, 3], 27);
    let pads = [attr_ints("pads", &[1; 4])];
    let half = b.float(0.5);
    let other = b.op("Mul", &["x", &half], &[]);
    let mut branches = Vec::new();
    for x in ["x", &other] {
        let y = b.op("Conv", &[x, &shared], &pads);
        let y = b.silu(&y);
        branches.push(b.conv(&y, 16, 3, 3, 1));
    }
    let y = b.op("Add", &[&branches[0], &branches[1]], &[]);
    b.finish(&[1, 3, 8, 8], &y, &[1, 3, 8, 8])
}

pub(super) fn half_of(model: &ModelProto) -> Pruned {
    prune_model(model, &PruneOptions::by_magnitude(Target::Ratio(0.5)))
}

#[test]
fn every_consumer_of_a_shared_weight_gets_its_own_copy() {
    let pruned = half_of(&shared_weight());
    let forms: Vec<String> = pruned
        .cut
        .rewritten
        .edits
        .initializers
        .iter()
        .map(|out| out.name(&pruned.analysis.model).to_owned())
        .filter(|name| name.starts_with("weight_0"))
        .collect();
    assert_eq!(forms.len(), 2, "{forms:?}");
    assert_passes(&change(&pruned, &forms), "both forms");
    for form in forms {
        assert_passes(&change(&pruned, std::slice::from_ref(&form)), &form);
    }
}

#[test]
fn originals_with_external_data_are_verified_too() {
    let mut model = shared_weight();
    let folder = tempfile::tempdir().unwrap();
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        std::fs::write(folder.path().join(&tensor.name), &tensor.raw_data).unwrap();
        tensor.raw_data.clear();
        tensor.data_location = DataLocation::External as i32;
        tensor.external_data = vec![StringStringEntryProto { key: "location".to_owned(), value: tensor.name.clone() }];
    }
    let original = load(&save(folder.path(), &model)).unwrap();
    let pruned = prune(analysed_for_good(original), &PruneOptions::by_magnitude(Target::Ratio(0.25)));
    let changed = change(&pruned, &["weight_0".to_owned()]);
    assert!(changed.folder.path().join("changed.onnx.data").exists());
    assert_passes(&changed, "external");
}

#[test]
fn a_computed_weight_is_changed_at_its_folded_value() {
    let pruned = half_of(&chain(normalised));
    let after = decode(&pruned.path).graph.unwrap();
    let convs = after.node.iter().filter(|node| node.op_type == "Conv");
    let kernels: Vec<String> = convs.map(|node| node.input[1].clone()).collect();
    assert_eq!(kernels.len(), 5);
    assert_passes(&change(&pruned, &kernels), "all");
    assert_passes(&change(&pruned, &kernels[2..3]), "one");
}

/// Builds a convolution and a Gemm without biases.
pub(super) fn without_biases() -> (ModelProto, [String; 2]) {
    let mut b = Builder::new(5);
    let w = b.layer_weight(&[16, 3, 3, 3], 27);
    let first = b.op("Conv", &["x", &w], &[attr_ints("pads", &[1; 4])]);
    let y = b.silu(&first);
    let y = b.conv(&y, 16, 8, 3, 1);
    let y = b.op("GlobalAveragePool", &[&y], &[]);
    let y = b.op("Flatten", &[&y], &[attr_int("axis", 1)]);
    let w = b.layer_weight(&[8, 12], 8);
    let second = b.op("Gemm", &[&y, &w], &[]);
    let y = b.silu(&second);
    let y = b.linear(&y, 12, 4);
    (b.finish(&[2, 3, 8, 8], &y, &[2, 4]), [first, second])
}

#[test]
fn biases_that_the_original_lacks_are_added() {
    let (model, [first, second]) = without_biases();
    let pruned = half_of(&model);
    let biases = [(first.clone(), 2, 1, 8), (second, 2, 1, 6)];
    let changed = change_of(&pruned, &["weight_0".to_owned()], &biases, &pruned.path);
    assert_passes(&changed, "conv and gemm");
    let node = |model: &ModelProto| {
        let nodes = &model.graph.as_ref().unwrap().node;
        nodes.iter().find(|node| node.output[0] == first).unwrap().clone()
    };
    assert_eq!(node(&decode(&changed.path)).input[2], format!("{first}/bias"));
    // If the plan names other channels of the original, the file fails.
    let mut shifted = Changed { plan: changed.plan.clone(), ..change_of(&pruned, &[], &biases[..1], &pruned.path) };
    shifted.path.clone_from(&changed.path);
    let keep = shifted.plan.changed.as_mut().unwrap().biases[0].keep.as_mut().unwrap();
    let free = (0..16).find(|index| !keep.contains(index)).unwrap();
    keep[0] = free;
    assert!(!shifted.verify().passed);
    // It also fails with a bias that the plan does not list.
    shifted.plan.changed.as_mut().unwrap().biases.remove(0);
    let failure = shifted.verify().failure.unwrap();
    assert!(failure.contains(&format!("{first}/bias")), "{failure}");
    // An occupied input and a vector of another size are refused.
    let mut changes = Changes::new(pruned.analysis, &pruned.cut.rewritten);
    let refused = changes.bias(&first, 1, 1, random_weight(&[8], 1)).unwrap_err().to_string();
    assert!(refused.contains("expected no input 1"), "{refused}");
    let refused = changes.bias(&first, 2, 1, random_weight(&[16], 1)).unwrap_err().to_string();
    assert!(refused.contains("expected shape [8], found [16]"), "{refused}");
}

#[test]
fn a_change_that_the_plan_does_not_list_is_detected_and_named() {
    let pruned = halved(FIXTURES[0]);
    let weights = some_weights(pruned);
    let (named, other) = (&weights[..2], &weights[4]);
    let changed = change(pruned, named);
    // One bit of one element, far below any tolerance.
    let report = changed.verify_mutated(|model| {
        let tensor = tensor_mut(model, other);
        let mut raw = tensor.raw_data.to_vec();
        raw[0] ^= 1;
        tensor.raw_data = raw.into();
    });
    let failure = report.failure.unwrap();
    assert!(!report.passed && failure.contains(&format!("{other:?}")), "{failure}");
    let mut node = String::new();
    let report = changed.verify_mutated(|model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let conv = nodes.iter_mut().find(|node| node.op_type == "Conv").unwrap();
        conv.output[0].clone_into(&mut node);
        conv.attribute.push(attr_ints("dilations", &[1, 1]));
        conv.attribute.dedup_by(|b, a| a.name == b.name);
        let attribute = conv.attribute.iter_mut().find(|attribute| attribute.name == "pads").unwrap();
        attribute.ints = vec![0, 0, 2, 2];
    });
    let failure = report.failure.unwrap();
    assert!(failure.contains(&format!("{node:?}")), "{failure}");
}

#[test]
fn a_wrong_cut_with_changed_weights_is_detected() {
    let pruned = halved(FIXTURES[0]);
    let weights = some_weights(pruned);
    let (named, other) = (&weights[..2], weights.last().unwrap());
    // The digest is that of a cut with two swapped channels, so only the comparison can detect them.
    let mut cut = decode(&pruned.path);
    let swap = |model: &mut ModelProto| {
        let tensor = tensor_mut(model, other);
        let row = tensor.raw_data.len() / tensor.dims[0] as usize;
        let mut raw = tensor.raw_data.to_vec();
        let (first, second) = raw.split_at_mut(row);
        first.swap_with_slice(&mut second[..row]);
        tensor.raw_data = raw.into();
    };
    swap(&mut cut);
    let folder = tempfile::tempdir().unwrap();
    let changed = change_of(pruned, named, &[], &save(folder.path(), &cut));
    let report = changed.verify_mutated(swap);
    let failure = report.failure.unwrap();
    assert!(!report.passed && failure.contains(&format!("{other:?}")), "{failure}");
    // The plan keeps an index next to that in the file, for a weight that has changed.
    let mut changed = change(pruned, named);
    let plan = changed.plan.tensors.iter_mut().find(|plan| plan.tensor == named[0]).unwrap();
    let kept = plan.keep.values_mut().next().unwrap();
    kept[0] = (0..).find(|index| !kept.contains(index)).unwrap();
    kept.sort_unstable();
    assert!(!changed.verify().passed);
}

#[test]
fn a_changed_weight_of_another_shape_or_type_is_refused() {
    let pruned = halved(FIXTURES[0]);
    let name = &some_weights(pruned)[0];
    let mut changes = Changes::new(pruned.analysis, &pruned.cut.rewritten);
    let refused = changes.weight(name, random_weight(&[7], 0)).unwrap_err().to_string();
    assert!(refused.contains(&format!("{name:?}")) && refused.contains("found [7]"), "{refused}");
    let dims = tensor(&decode(&pruned.path), name).dims.clone();
    let ints = MemoryWeight::new(DataType::Int32, &dims, vec![0; 4 * dims[0] as usize].into());
    let refused = changes.weight(name, Arc::new(ints)).unwrap_err().to_string();
    assert!(refused.contains("expected elements of type float32, found int32"), "{refused}");
    let short = MemoryWeight::new(DataType::Float, &dims, vec![0; 4 * dims[0] as usize - 4].into());
    changes.weight(name, Arc::new(short)).unwrap();
    let (edits, _) = changes.finish(&load(&pruned.path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = write(&pruned.analysis.model, &edits, &folder.path().join("out.onnx")).unwrap_err().to_string();
    let bytes = 4 * dims[0];
    assert!(refused.contains(&format!("{name:?}: expected {bytes} bytes, found {}", bytes - 4)), "{refused}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // In a file, this fails verification.
    let changed = change(pruned, std::slice::from_ref(name));
    let report = changed.verify_mutated(|model| {
        let tensor = tensor_mut(model, name);
        tensor.dims = vec![1, dims[0]];
    });
    let failure = report.failure.unwrap();
    assert!(failure.contains(&format!("{name:?}: expected float32 {dims:?}")), "{failure}");
}

#[test]
fn the_command_line_reads_changes_from_plans() {
    let folder = tempfile::tempdir().unwrap();
    let original = save(folder.path(), &shared_weight());
    let pruned = prune(analysed_for_good(load(&original).unwrap()), &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    let changed = change(&pruned, &["weight_0".to_owned()]);
    let plan = folder.path().join("plan.json");
    changed.plan.write(&plan).unwrap();
    assert_eq!(Plan::read(&plan).unwrap(), changed.plan);
    let run = |command: &str, file: &Path, plan: &Path| {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"));
        tool.arg(command).arg(&original);
        let tool = match command {
            "apply" => tool.arg(plan).arg(file),
            _ => tool.arg(file).arg("--plan").arg(plan),
        };
        tool.output().unwrap()
    };
    let done = run("verify", &changed.path, &plan);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // The plan of the bare cut is not that of the changed file.
    let before = folder.path().join("before.json");
    pruned.cut.plan.write(&before).unwrap();
    assert!(!std::fs::read_to_string(&before).unwrap().contains("changed"));
    assert_eq!(run("verify", &changed.path, &before).status.code(), Some(1));
    // The plan repeats the cut without the changes.
    let again = folder.path().join("again.onnx");
    let applied = run("apply", &again, &plan);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert!(String::from_utf8_lossy(&applied.stderr).contains("weights were changed after the cut"));
    assert!(run("verify", &again, &before).status.success());
}

#[cfg(unix)]
#[test]
fn a_signal_during_verification_leaves_no_reference_file() {
    use std::os::unix::process::ExitStatusExt;
    let pruned = halved(FIXTURES[0]);
    let changed = change(pruned, &some_weights(pruned)[..1]);
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.json");
    changed.plan.write(&plan).unwrap();
    let is_ours = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("onnx-diffprune-");
    for _ in 0..10 {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_onnx-diffprune"))
            .args(["verify".as_ref(), pruned.analysis.model.path(), changed.path.as_path(), "--plan".as_ref(), &plan])
            .env("TMPDIR", temporary.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let has_begun = || temporary.path().read_dir().unwrap().any(|entry| entry.is_ok_and(is_ours));
        while !has_begun() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success();
        let ended = child.wait().unwrap();
        // Verification ended before the signal arrived: repeat.
        if !sent || ended.success() {
            continue;
        }
        assert_eq!(ended.signal(), Some(15));
        assert!(!has_begun(), "the reference file is left behind");
        return;
    }
    panic!("verification always ended before the signal");
}
