//! Whole runs on the trained network of the fixtures.

use std::ops::ControlFlow;
use std::path::Path;

use onnx_diffprune::finetuning::{FinetuneSettings, Recipe, UpdateKind};
use onnx_diffprune::networks::{NetworkOptions, ProcessOptions};
use onnx_diffprune::{Model, Progress, Runtime};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn settings(folder: &Path, steps: u64) -> FinetuneSettings {
    let network = NetworkOptions { process: ProcessOptions::default(), ..NetworkOptions::default() };
    FinetuneSettings {
        network,
        steps,
        batch: 8,
        rate: 1e-4,
        held_out_count: 8,
        evaluate_every: Some(3),
        checkpoint_every: Some(2),
        flip: true,
        teacher: Some(Model::open(fixture("ddpm_fashion16.onnx")).unwrap()),
        ..FinetuneSettings::new(fixture("ddpm_fashion16/train_images.npy"), folder, Recipe::Quick)
    }
}

/// The bytes of the network that a run ends with, which the caller stops after some steps.
fn run(settings: &FinetuneSettings, stop_after: Option<u64>) -> (Vec<u8>, u64) {
    let runtime = Runtime::open(None).unwrap();
    let analysis = Model::open(fixture("ddpm_fashion16.onnx")).unwrap().analyse().unwrap();
    let mut watch = |progress: Progress<'_>| match progress {
        Progress::Trained { report, .. } if stop_after == Some(report.step) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let tuned = analysis.finetune(&runtime, settings, &mut watch).unwrap();
    let output = settings.folder.join("tuned.onnx");
    let staged = tuned.stage(&output).unwrap();
    tuned.check(staged.path(), &runtime).unwrap();
    staged.publish(&[]).unwrap();
    (std::fs::read(&output).unwrap(), tuned.report.steps)
}

#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_weights() {
    goes_on_to_the_same_weights(None, None);
}

#[test]
fn a_run_whose_state_is_on_a_device_goes_on_to_the_same_weights() {
    goes_on_to_the_same_weights(Some(UpdateKind::Graph), Some(4));
}

fn goes_on_to_the_same_weights(update: Option<UpdateKind>, micro_batch: Option<usize>) {
    let folder = tempfile::tempdir().unwrap();
    // Nothing is held out: the last weights are the result.
    let settings = |name: &str| FinetuneSettings {
        held_out_count: 0,
        update,
        micro_batch,
        ..settings(&folder.path().join(name), 6)
    };
    let (whole, steps) = run(&settings("whole"), None);
    assert_eq!(steps, 6);
    let parts = settings("parts");
    let (first, steps) = run(&parts, Some(3));
    assert_eq!(steps, 3);
    assert!(first != whole, "three steps are not six");
    let (second, steps) = run(&FinetuneSettings { resume: true, ..parts.clone() }, None);
    assert_eq!(steps, 6);
    assert!(second == whole, "the weights of a resumed run are those of an uninterrupted one");
    let other = FinetuneSettings { resume: true, rate: 2e-4, ..parts };
    let runtime = Runtime::open(None).unwrap();
    let analysis = Model::open(fixture("ddpm_fashion16.onnx")).unwrap().analyse().unwrap();
    let error = analysis.finetune(&runtime, &other, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn training_lowers_the_loss_on_samples_that_were_not_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(None).unwrap();
    let scores = Model::open(fixture("ddpm_fashion16.onnx")).unwrap().analyse().unwrap();
    let scores = scores.score(&onnx_diffprune::ScoreOptions::magnitude(), &runtime).unwrap();
    let cut = folder.path().join("cut.onnx");
    scores.cut(onnx_diffprune::Ratio(0.3)).unwrap().stage(&cut).unwrap().save().unwrap();
    let settings = FinetuneSettings {
        batch: 16,
        rate: 1e-3,
        evaluate_every: Some(20),
        checkpoint_every: None,
        ..settings(&folder.path().join("run"), 20)
    };
    let analysis = Model::open(&cut).unwrap().analyse().unwrap();
    let tuned = analysis.finetune(&runtime, &settings, &mut |_| ControlFlow::Continue(())).unwrap();
    let [first, last] = [&tuned.report.evaluations[0], &tuned.report.evaluations[1]];
    assert!(last.loss < 0.7 * first.loss, "from {} to {}", first.loss, last.loss);
    assert_eq!(tuned.report.best_step, 20);
}
