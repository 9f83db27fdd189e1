//! Cuts of networks that were cut and trained before, described as one cut of the first original.

use std::ops::ControlFlow;
use std::path::Path;

use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{DataType, TensorProto};
use onnx_diffprune::plan::Plan;
use onnx_diffprune::prune::{Analysis, Model, PruneOptions, Ratio, Runtime, ScoreOptions, Staged, Target};
use onnx_diffprune::verify::VerifyOptions;
use prost::Message;

use super::changed_weights::{change, change_of, half_of, some_weights, without_biases};
use crate::support::cuts::prune;
use crate::support::fixtures::{FIXTURES, analysed, fixture};

/// Returns shapes and elements of all floating point initializers except scalars, whatever their names: every cut
/// patches sizes anew.
fn weights(path: &Path) -> Vec<(Vec<i64>, Vec<u8>)> {
    let model = load(path).unwrap();
    let bytes = |tensor: &TensorProto| model.tensor_bytes(tensor).unwrap().into_owned();
    let is_weight = |tensor: &&TensorProto| {
        let kinds = [DataType::Float, DataType::Float16, DataType::Double];
        !tensor.dims.is_empty() && kinds.into_iter().any(|kind| kind as i32 == tensor.data_type)
    };
    let tensors = model.graph().initializer.iter().filter(is_weight);
    let mut all: Vec<_> = tensors.map(|tensor| (tensor.dims.clone(), bytes(tensor))).collect();
    all.sort();
    all
}

/// Cuts a fifth of a file's channels, described as a cut of the original. Writes the same cut of the file alone beside
/// it.
fn cut_again(original: &Analysis, file: &Path, plan: &Plan, output: &Path) -> Staged {
    let runtime = Runtime::open(None).unwrap();
    let analysis = Model::open(file).unwrap().analyse().unwrap();
    let cut = analysis.score(&ScoreOptions::magnitude(), &runtime).unwrap().cut(Ratio(0.2)).unwrap();
    assert!(cut.after().parameters < cut.before().parameters);
    cut.stage(output.with_extension("alone.onnx")).unwrap().save().unwrap();
    let mut staged = cut.stage_after(original, (plan, Path::new("first.plan.json")), Some(&runtime), output).unwrap();
    let sizes = [("h", 8), ("w", 8), ("seq", 3)].map(|(name, size)| (name.to_owned(), size)).into();
    let options = VerifyOptions { sizes, ..VerifyOptions::default() };
    let report = staged.check(&runtime, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.passed, "{report:?}");
    staged
}

/// Asserts that the elements are those of the cut of the file alone, and that the plan repeats the cut of the original:
/// byte for byte if no weights changed.
fn compare(original: &Analysis, output: &Path) -> Plan {
    assert!(weights(output) == weights(&output.with_extension("alone.onnx")));
    let path = output.with_extension("plan.json");
    let plan = Plan::read(&path).unwrap();
    assert_eq!(plan.input_digest, original.model().digest());
    let runtime = Runtime::open(None).unwrap();
    let again = output.with_extension("again.onnx");
    original.repeat(&plan, &path, &runtime).unwrap().stage(&again).unwrap().with_plan(None).save().unwrap();
    let is_same = std::fs::read(&again).unwrap() == std::fs::read(output).unwrap();
    assert_eq!(is_same, plan.changed.is_none());
    let dims = |path: &Path| weights(path).into_iter().map(|(dims, _)| dims).collect::<Vec<_>>();
    let biases = plan.changed.as_ref().map_or(0, |changed| changed.biases.len());
    assert_eq!(dims(&again).len() + biases, dims(output).len());
    assert!(dims(&again).iter().all(|size| dims(output).contains(size)));
    plan
}

#[test]
fn three_cuts_compose_to_one_cut_of_the_original_with_changed_weights() {
    for name in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let pruned = prune(analysed(name), &PruneOptions::by_magnitude(Target::Ratio(0.2)));
        let changed = change(&pruned, &some_weights(&pruned));
        let original = Model::open(fixture(name)).unwrap().analyse().unwrap();
        let second = folder.path().join("second.onnx");
        cut_again(&original, &changed.path, &changed.plan, &second).save().unwrap();
        let plan = compare(&original, &second);
        assert!(!plan.changed.as_ref().unwrap().weights.is_empty());
        let third = folder.path().join("third.onnx");
        let cut = cut_again(&original, &second, &plan, &third);
        cut.save().unwrap();
        let plan = compare(&original, &third);
        let groups: Vec<_> = plan.groups.iter().filter(|group| group.kept.len() < group.channels).collect();
        assert!(groups.len() > 3, "{name}: {groups:?}");
    }
}

#[test]
fn two_cuts_without_changed_weights_compose_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(None).unwrap();
    let original = Model::open(fixture("dit_tiny.onnx")).unwrap().analyse().unwrap();
    let cut = original.score(&ScoreOptions::magnitude(), &runtime).unwrap().cut(Ratio(0.3)).unwrap();
    let first = folder.path().join("first.onnx");
    cut.stage(&first).unwrap().save().unwrap();
    let second = folder.path().join("second.onnx");
    cut_again(&original, &first, cut.plan(), &second).save().unwrap();
    let plan = compare(&original, &second);
    assert!(plan.changed.is_none() && plan.ratio > 0.3, "{}", plan.ratio);
}

#[test]
fn biases_that_a_refit_added_are_cut_again() {
    let folder = tempfile::tempdir().unwrap();
    let (model, [first, second]) = without_biases();
    let pruned = half_of(&model);
    let biases = [(first, 2, 1, 8), (second, 2, 1, 6)];
    let changed = change_of(&pruned, &["weight_0".to_owned()], &biases, &pruned.path);
    let original = Model::from_bytes("net.onnx", model.encode_to_vec()).unwrap().analyse().unwrap();
    let output = folder.path().join("second.onnx");
    cut_again(&original, &changed.path, &changed.plan, &output).save().unwrap();
    let plan = compare(&original, &output);
    assert_eq!(plan.changed.unwrap().biases.len(), 2);
}

#[test]
fn incompatible_cuts_do_not_compose() {
    let original = Model::open(fixture("dit_tiny.onnx")).unwrap().analyse().unwrap();
    let cut = original.score(&ScoreOptions::magnitude(), None).unwrap().cut(Ratio(0.3)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first.onnx");
    cut.stage(&first).unwrap().save().unwrap();
    let analysis = Model::open(&first).unwrap().analyse().unwrap();
    let mut second = analysis.score(&ScoreOptions::magnitude(), None).unwrap().cut(Ratio(0.2)).unwrap().plan().clone();
    let fails = |second: &Plan| cut.plan().then(second, analysed("dit_tiny.onnx")).unwrap_err().to_string();
    second.tensors[0].readers[0].0 = "nowhere".to_owned();
    assert!(fails(&second).contains("\"nowhere\""), "{}", fails(&second));
    second.attention = onnx_diffprune::couple::options::AttentionOption::None;
    assert!(fails(&second).contains("attention"), "{}", fails(&second));
}
