//! Outputs of the tool as inputs: successive rounds of pruning.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use onnx_diffprune::graph::digest::DigestKind;
use onnx_diffprune::load::load;
use onnx_diffprune::onnx::{ModelProto, StringStringEntryProto};
use onnx_diffprune::plan::{Plan, kept_axes};
use onnx_diffprune::prune::{Model, Progress, PruneOptions, Ratio, Runtime, ScoreOptions, Target};
use onnx_diffprune::verify::{VerifyOptions, reference_model};
use prost::Message;

use crate::support::cuts::prune_model;
use crate::support::files::{decoded, save};
use crate::support::fixtures::{FIXTURES, fixture};
use crate::support::two_convolutions::two_convolutions;

fn metadata(path: &Path) -> BTreeMap<String, String> {
    let entries = decoded(path).metadata_props;
    let known: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    assert_eq!(known.len(), entries.len(), "no key should occur twice");
    known
}

#[test]
fn three_rounds_of_every_fixture_repeat_and_the_last_verifies() {
    let runtime = Runtime::open(None).unwrap();
    for name in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let mut input = fixture(name);
        let mut entries = metadata(&input);
        for round in 1..=3 {
            let model = Model::open(&input).unwrap();
            let analysis = model.analyse().unwrap();
            let scores = analysis.score(&ScoreOptions::magnitude(), &runtime).unwrap();
            let cut = scores.cut(Ratio(0.2)).unwrap();
            assert!(cut.after().parameters < cut.before().parameters, "{name} in round {round}");
            let output = folder.path().join(format!("{round}.onnx"));
            let mut staged = cut.stage(&output).unwrap();
            // The first round is an ordinary cut. The input of the last one was written by the two before.
            if round == 3 {
                let sizes = [("h", 8), ("w", 8), ("seq", 3)].map(|(name, size)| (name.to_owned(), size)).into();
                let options = VerifyOptions { sizes, ..VerifyOptions::default() };
                let mut unwatched = |_: Progress<'_>| std::ops::ControlFlow::Continue(());
                let report = staged.check(&runtime, &options, &mut unwatched).unwrap();
                assert!(report.passed, "{name}: {report:?}");
            }
            let written = staged.save().unwrap();

            // The metadata describe this round alone, and contain its number.
            let known = metadata(&output);
            let digest = known.iter().find(|(key, _)| key.starts_with("onnx_diffprune.input_")).unwrap();
            assert_eq!(*digest.1, model.digest());
            let told = known.get("onnx_diffprune.round").map(String::as_str);
            assert_eq!(told, [None, Some("2"), Some("3")][round - 1]);
            if round > 1 {
                assert!(known.len() <= entries.len() + 1, "{known:?}");
            }
            entries = known;

            // The plan repeats the cut of a file that was pruned before.
            let file = written.plan.unwrap();
            let plan = Plan::read(&file).unwrap();
            let again = folder.path().join("again.onnx");
            analysis.repeat(&plan, &file, &runtime).unwrap().stage(&again).unwrap().with_plan(None).save().unwrap();
            assert!(std::fs::read(&again).unwrap() == std::fs::read(&output).unwrap(), "{name} in round {round}");
            input = output;
        }
    }
}

/// Returns the names that a cut of a network and its masked reference add.
fn made_up(model: &ModelProto, options: &PruneOptions) -> Vec<String> {
    let pruned = prune_model(model, options);
    let (reference, _) =
        reference_model(pruned.analysis, &kept_axes(&pruned.cut.plan, pruned.analysis, &pruned.path).unwrap()).unwrap();
    let written = ModelProto::decode(&*std::fs::read(&pruned.path).unwrap()).unwrap();
    let names = |model: &ModelProto| -> BTreeSet<String> {
        let graph = model.graph.as_ref().unwrap();
        let tensors = graph.initializer.iter().map(|tensor| &tensor.name);
        let nodes = graph.node.iter().flat_map(|node| node.output.iter().chain([&node.name]));
        tensors.chain(nodes).cloned().collect()
    };
    let old = names(model);
    names(&reference).union(&names(&written)).filter(|name| !old.contains(*name)).cloned().collect()
}

/// Renames the values of the network, except inputs and outputs, and its nodes, as far as the names suffice.
fn renamed(model: &ModelProto, names: &[String]) -> ModelProto {
    let mut model = model.clone();
    let graph = model.graph.as_mut().unwrap();
    let fixed: BTreeSet<String> = graph.input.iter().chain(&graph.output).map(|value| value.name.clone()).collect();
    let tensors = graph.initializer.iter().map(|tensor| &tensor.name);
    let values = graph.node.iter().flat_map(|node| &node.output).chain(tensors);
    let values = values.filter(|name| !name.is_empty() && !fixed.contains(*name));
    let new: BTreeMap<String, String> = values.cloned().zip(names.iter().cloned()).collect();
    let rename = |name: &mut String| {
        if let Some(new) = new.get(name) {
            name.clone_from(new);
        }
    };
    graph.initializer.iter_mut().for_each(|tensor| rename(&mut tensor.name));
    graph.value_info.iter_mut().for_each(|value| rename(&mut value.name));
    for (node, name) in graph.node.iter_mut().zip(names.iter().rev()) {
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
        node.name.clone_from(name);
    }
    model
}

#[test]
fn new_names_never_collide_with_names_of_the_file() {
    for name in ["dit_tiny.onnx", "sd15_tiny_fp16.onnx"] {
        let model = ModelProto::decode(&*std::fs::read(fixture(name)).unwrap()).unwrap();
        let options = PruneOptions::by_magnitude(Target::Ratio(0.5));
        let mut names = made_up(&model, &options);
        assert!(names.len() > 100, "{name}: {}", names.len());
        // The float32 copy of a float16 weight, for the first weight with one of these names.
        let graph = model.graph.as_ref().unwrap();
        let weights = graph.initializer.iter().map(|tensor| tensor.name.as_str());
        names.splice(0..0, weights.take(5).map(|weight| format!("{weight}/__narrow")));
        let pruned = prune_model(&renamed(&model, &names), &options);
        let report = pruned.report();
        assert!(report.passed, "{name}: {report:?}");
    }
}

#[test]
fn metadata_of_earlier_rounds_are_replaced_and_those_of_others_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = two_convolutions();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    model.metadata_props = vec![
        entry("onnx_diffprune.changed_weights", "{}"),
        entry("author", "someone"),
        entry("onnx_diffprune.tool", "onnx-diffprune 0.1.0"),
    ];
    let input = save(folder.path(), &model);
    let analysis = Model::open(&input).unwrap().analyse().unwrap();
    let cut = analysis.score(&ScoreOptions::magnitude(), None).unwrap().cut(Ratio(0.5)).unwrap();
    let output = folder.path().join("out.onnx");
    cut.stage(&output).unwrap().save().unwrap();
    let known = metadata(&output);
    assert_eq!(known["author"], "someone");
    assert_eq!(known["onnx_diffprune.round"], "2");
    assert!(!known.contains_key("onnx_diffprune.changed_weights"), "{known:?}");
}

#[test]
fn metadata_that_differ_from_the_original_are_noted_without_failure() {
    let mut model = two_convolutions();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    model.metadata_props = vec![entry("author", "someone")];
    let pruned = prune_model(&model, &PruneOptions::by_magnitude(Target::Ratio(0.5)));
    assert!(pruned.report().passed && pruned.report().notes.is_empty(), "{:?}", pruned.report());
    let mut other = ModelProto::decode(&*std::fs::read(&pruned.path).unwrap()).unwrap();
    other.metadata_props.clear();
    let folder = tempfile::tempdir().unwrap();
    let report = pruned.verify_with(&save(folder.path(), &other), |_| {});
    assert!(report.passed, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("\"author\" is missing")), "{report:?}");
}

#[test]
fn plans_of_the_first_schema_name_their_input_by_sha256() {
    let folder = tempfile::tempdir().unwrap();
    let input = save(folder.path(), &two_convolutions());
    let model = load(&input).unwrap();
    let analysis = Model::open(&input).unwrap().analyse().unwrap();
    let cut = analysis.score(&ScoreOptions::magnitude(), None).unwrap().cut(Ratio(0.5)).unwrap();
    assert_eq!((cut.plan().schema, &cut.plan().input_digest), (2, &model.digest(DigestKind::Blake3)));
    let old = Plan { schema: 1, input_digest: model.digest(DigestKind::Sha256), ..cut.plan().clone() };
    let file = folder.path().join("old.plan.json");
    old.write(&file).unwrap();
    let read = Plan::read(&file).unwrap();
    assert_eq!(read, old);
    let output = folder.path().join("out.onnx");
    analysis.repeat(&read, &file, None).unwrap().stage(&output).unwrap().with_plan(None).save().unwrap();
    assert_eq!(metadata(&output)["onnx_diffprune.input_sha256"], old.input_digest);
    // A digest of one kind does not match the other kind.
    for wrong in [Plan { schema: 2, ..old.clone() }, Plan { input_digest: cut.plan().input_digest.clone(), ..old }] {
        let error = analysis.repeat(&wrong, &file, None).unwrap_err();
        assert!(error.to_string().contains("for another file"), "{error}");
    }
    let newer = std::fs::read_to_string(&file).unwrap().replace("\"schema\":1", "\"schema\":3");
    std::fs::write(&file, newer).unwrap();
    assert!(Plan::read(&file).unwrap_err().to_string().contains("schema 1 to 2, found 3"));
}
