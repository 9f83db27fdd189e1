//! Whole fine-tuning runs on the trained network of the fixtures.

use std::ops::ControlFlow;
use std::path::Path;

use onnx_diffprune::finetuning::{FeatureChoice, FinetuneSettings, Objective, Recipe, UpdateKind};
use onnx_diffprune::networks::{NetworkOptions, ProcessOptions};
use onnx_diffprune::{Cut, ErrorKind, Model, Progress, Runtime};
use regex::Regex;

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

/// Runs fine-tuning, optionally stopped after some steps. Returns the bytes of the resulting network.
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
fn an_interrupted_run_resumes_to_the_same_weights() {
    resumes_to_the_same_weights(None, None);
}

#[test]
fn an_interrupted_run_with_state_on_a_device_resumes_to_the_same_weights() {
    resumes_to_the_same_weights(Some(UpdateKind::Graph), Some(2));
}

fn resumes_to_the_same_weights(update: Option<UpdateKind>, micro_batch: Option<usize>) {
    let folder = tempfile::tempdir().unwrap();
    // No samples are held out, so the last weights are the result. All requests to the teacher follow from the
    // positions of the samples.
    let objective = Objective { jacobian: 0.1, ..Objective::default() };
    let settings = |name: &str| FinetuneSettings {
        held_out_count: 0,
        batch: 4,
        objective,
        features: Some(FeatureChoice::Auto),
        checkpoint_activations: true,
        update,
        micro_batch,
        ..settings(&folder.path().join(name), 4)
    };
    let (whole, steps) = run(&settings("whole"), None);
    assert_eq!(steps, 4);
    let parts = settings("parts");
    let (first, steps) = run(&parts, Some(3));
    assert_eq!(steps, 3);
    assert!(first != whole, "weights after three and four steps should differ");
    let (second, steps) = run(&FinetuneSettings { resume: true, ..parts.clone() }, None);
    assert_eq!(steps, 4);
    assert!(second == whole, "a resumed run should end with the weights of an uninterrupted one");
    let other = FinetuneSettings { resume: true, rate: 2e-4, ..parts };
    let runtime = Runtime::open(None).unwrap();
    let analysis = Model::open(fixture("ddpm_fashion16.onnx")).unwrap().analyse().unwrap();
    let error = analysis.finetune(&runtime, &other, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
}

#[test]
fn inner_values_are_compared_with_the_kept_channels_of_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::open(None).unwrap();
    let original = Model::open(fixture("ddpm_fashion16.onnx")).unwrap();
    let scores = original.analyse().unwrap().score(&onnx_diffprune::ScoreOptions::magnitude(), &runtime).unwrap();
    let cut = scores.cut(onnx_diffprune::Ratio(0.3)).unwrap();
    let file = folder.path().join("cut.onnx");
    cut.stage(&file).unwrap().save().unwrap();
    let analysis = Model::open(&file).unwrap().analyse().unwrap();
    let run = |features: Option<&str>, cut: Option<Cut>| {
        let settings = FinetuneSettings {
            held_out_count: 0,
            batch: 2,
            teacher: Some(original.clone()),
            cut,
            features: features.map(|text| FeatureChoice::Matching(Regex::new(text).unwrap())),
            objective: Objective { features: 1.0, ..Objective::default() },
            ..settings(&folder.path().join("run"), 1)
        };
        analysis.finetune(&runtime, &settings, &mut |_| ControlFlow::Continue(())).map(|tuned| tuned.report)
    };
    let plain = run(None, Some(cut.clone())).unwrap();
    // The inputs of the first layer were not cut, so its kept channels are unchanged.
    let first = run(Some("^/conv_in/Conv$"), Some(cut.clone())).unwrap();
    assert_eq!(first.features, ["/conv_in/Conv_output_0"]);
    assert!((first.training_loss - plain.training_loss).abs() < 1e-5, "{first:?}\n{plain:?}");
    let later = run(Some("^/mid_block/resnets.[01]/Div$"), Some(cut.clone())).unwrap();
    assert_eq!(later.features.len(), 2);
    assert!(later.training_loss > plain.training_loss + 0.01, "{later:?}\n{plain:?}");

    let error = run(Some("conv_inn"), Some(cut)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let text = format!("{error} {:?}", error.advice());
    assert!(text.contains("conv_inn") && text.contains("/down_blocks.0/"), "{text}");
    // Without the plan, the kept channels are unknown.
    let error = run(Some("^/conv_in/Conv$"), None).unwrap_err();
    assert!(error.to_string().contains("plan"), "{error}");
}

#[test]
fn training_lowers_the_loss_on_held_out_samples() {
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
