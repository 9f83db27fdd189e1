//! The library as its callers see it: the public API alone, without `internals`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use onnx_diffprune::networks::{LossOptions, Network, NetworkOptions, SampleOptions};
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::{
    Analysis, CriterionOption, Cut, CutOptions, Error, ErrorKind, Model, Plan, Progress, Ratio, Runtime, ScoreOptions,
    Scores, Sizes, Stage, Staged, Target, VerifyOptions,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn analysed(name: &str) -> Analysis {
    Model::open(fixture(name)).unwrap().analyse().unwrap()
}

fn runtime() -> Runtime {
    Runtime::open(None).unwrap()
}

fn magnitude() -> ScoreOptions {
    ScoreOptions::magnitude()
}

/// The default criterion on the data of a fixture, at few timesteps.
fn diff_pruning() -> ScoreOptions {
    let mut options = ScoreOptions::diff_pruning(fixture("ddpm_fashion16/train_images.npy"));
    options.gradients.network.process.scheduler_config = Some(fixture("ddpm_fashion16/scheduler_config.json"));
    options.gradients.network.batch = Some(2);
    options.gradients.timesteps = Some(4);
    options
}

/// Returns the names of everything in a folder, including hidden files.
fn listing(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn public_types_can_be_sent_to_other_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Model>();
    check::<Analysis>();
    check::<Scores>();
    check::<Cut>();
    check::<Staged>();
    check::<Plan>();
    check::<Runtime>();
    check::<Network>();
    check::<ScoreOptions>();
    check::<CutOptions>();
    check::<VerifyOptions>();
    check::<Error>();
}

#[test]
fn the_default_criterion_is_that_of_the_command_line() {
    assert_eq!(ScoreOptions::default().criterion, CriterionOption::DiffPruning);
    assert_eq!(CriterionOption::default(), CriterionOption::DiffPruning);
}

#[test]
fn a_network_is_cut_verified_and_saved_with_its_plan() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("pruned.onnx");
    let mut stages = Vec::new();
    let scores = analysed("ddpm_fashion16.onnx")
        .score_with(&diff_pruning(), &runtime(), &mut |progress| {
            if let Progress::At { stage, .. } = progress {
                stages.push(stage);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    stages.dedup();
    assert_eq!(stages, [Stage::Gradients, Stage::Scoring]);
    assert_eq!(scores.gradients().unwrap().batch, 2);
    let cut = scores.cut(Ratio(0.3)).unwrap();
    assert!(cut.after().parameters < cut.before().parameters);
    let staged = cut.stage(&output).unwrap().verify(&runtime()).unwrap();
    assert!(staged.verification().unwrap().passed);
    let written = staged.save().unwrap();
    assert_eq!((&written.output, written.bytes), (&output, output.metadata().unwrap().len()));
    assert_eq!(written.plan.as_deref(), Some(plan_path(&output).as_path()));
    assert_eq!(listing(folder.path()), ["pruned.onnx", "pruned.plan.json"]);
    // The plan repeats the cut, byte for byte.
    let plan = Plan::read(&plan_path(&output)).unwrap();
    let again = folder.path().join("again.onnx");
    let analysis = analysed("ddpm_fashion16.onnx");
    analysis.repeat(&plan, &plan_path(&output), None).unwrap().stage(&again).unwrap().with_plan(None).save().unwrap();
    assert_eq!(std::fs::read(&output).unwrap(), std::fs::read(&again).unwrap());
    let (pruned, file) = (Model::open(&again).unwrap(), plan_path(&output));
    let unwatched = &mut |_: Progress<'_>| ControlFlow::Continue(());
    let report = analysis.verify(&pruned, (&plan, &file), &runtime(), &VerifyOptions::default(), unwatched).unwrap();
    assert_eq!((report.passed, report.failure_text()), (true, None));
}

#[test]
fn scores_can_be_used_for_several_cuts() {
    let scores = analysed("dit_tiny.onnx").score(&magnitude(), None).unwrap();
    let share = |cut: &Cut| cut.after().parameters as f64 / cut.before().parameters as f64;
    let [light, heavy] = [0.2, 0.6].map(|ratio| share(&scores.cut(Ratio(ratio)).unwrap()));
    assert!(heavy < light && light < 1.0);
    assert!(share(&scores.cut(Target::Params(0.5)).unwrap()) <= 0.5);
}

/// Returns the error of a call that must fail.
fn error<T>(result: Result<T, Error>) -> Error {
    result.err().unwrap()
}

#[test]
fn every_failure_has_its_error_kind_and_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let analysis = analysed("dit_tiny.onnx");
    let scores = analysis.score(&magnitude(), None).unwrap();
    let cut = scores.cut(Ratio(0.5)).unwrap();
    let missing = Model::open(folder.path().join("none.onnx"));
    let broken = Model::open(file("broken.onnx", b"not an ONNX model"));
    let plan = Plan::read(&file("a.plan.json", b"{}"));
    let config = file("scheduler_config.json", br#"{"_class_name": "FlowMatch", "invert_sigmas": true}"#);
    let mut inverted = diff_pruning();
    inverted.gradients.network.process.scheduler_config = Some(config);
    let unsupported = analysed("ddpm_fashion16.onnx").score(&inverted, &runtime());
    let beyond = scores.cut(Target::Params(0.0001));
    let no_runtime = analysis.score(&diff_pruning(), None);
    let no_folder = cut.stage(folder.path().join("none/out.onnx"));
    let no_share = scores.cut(Ratio(1.5));
    let stopped = analysis.score_with(&magnitude(), None, &mut |_| ControlFlow::Break(()));
    let cases = [
        (error(missing), ErrorKind::Unreadable, 2),
        (error(broken), ErrorKind::InvalidModel, 2),
        (error(plan), ErrorKind::Unreadable, 2),
        (error(unsupported), ErrorKind::Unsupported, 2),
        (error(beyond), ErrorKind::Unmet, 1),
        (error(wrong_cut(folder.path())), ErrorKind::VerificationFailed, 1),
        (error(no_runtime), ErrorKind::RuntimeMissing, 2),
        (error(no_folder), ErrorKind::Io, 2),
        (error(no_share), ErrorKind::Usage, 2),
        (error(stopped), ErrorKind::Cancelled, 1),
    ];
    for (error, kind, code) in cases {
        assert_eq!((error.kind(), error.exit_code()), (kind, code), "{error}");
    }
    // A file that is not ONNX Runtime counts as a missing runtime.
    let other = Runtime::open(Some(&file("libother.so", b"not a library")));
    assert_eq!(error(other).kind(), ErrorKind::RuntimeMissing);
}

/// Saves a cut whose verification can't pass, because no error is small enough.
fn wrong_cut(folder: &Path) -> Result<(), Error> {
    let cut = analysed("dit_tiny.onnx").score(&magnitude(), None)?.cut(Ratio(0.5))?;
    let mut staged = cut.stage(folder.join("wrong.onnx"))?;
    let options = VerifyOptions { rtol: Some(-1.0), atol: 0.0, ..VerifyOptions::default() };
    assert!(!staged.check(&runtime(), &options, &mut |_| ControlFlow::Continue(()))?.passed);
    staged.save()?;
    Ok(())
}

#[test]
fn a_deployment_reports_its_progress() {
    use onnx_diffprune::deployment::{DeployOptions, DeployPrecision, DeployTarget, deploy};
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(fixture("ddpm_fashion16.onnx")).unwrap();
    let mut options = DeployOptions::to(DeployTarget::Cpu);
    options.precision = Some(DeployPrecision::Int8);
    options.data = Some(fixture("ddpm_fashion16/train_images.npy"));
    options.network.process.scheduler_config = Some(fixture("ddpm_fashion16/scheduler_config.json"));
    (options.count, options.timesteps) = (4, 3);
    let mut seen: Vec<(Stage, usize, usize)> = Vec::new();
    let place = folder.path().join("bundle");
    deploy(&model, &place, &runtime(), &options, &mut |progress| {
        if let Progress::At { stage, done, total } = progress {
            seen.push((stage, done, total));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for stage in [Stage::Losses, Stage::Converting, Stage::Comparing, Stage::Verifying] {
        let own: Vec<usize> = seen.iter().filter(|(of, ..)| *of == stage).map(|(_, done, _)| *done).collect();
        assert!(own.iter().max() > own.iter().min(), "{stage:?}: {own:?}");
    }
    assert!(seen.iter().all(|(_, done, total)| done <= total));
    // A cancelled deployment leaves no files.
    let stopped = folder.path().join("stopped");
    let stop = |progress: Progress<'_>| match progress {
        Progress::At { stage: Stage::Comparing, done: 5, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = error(deploy(&model, &stopped, &runtime(), &options, &mut { stop }));
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(listing(folder.path()), ["bundle"]);
}

#[test]
fn a_cancelled_call_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("pruned.onnx");
    let stops_at = |wanted: Stage| {
        move |progress: Progress<'_>| match progress {
            Progress::At { stage, .. } if stage == wanted => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let analysis = analysed("ddpm_fashion16.onnx");
    let mut drawn = diff_pruning();
    drawn.gradients.data = None;
    let mut masked = diff_pruning();
    masked.gradients.mode = onnx_diffprune::options::ThresholdMode::Mask;
    let runs = [(&diff_pruning(), Stage::Gradients), (&drawn, Stage::Sampling), (&masked, Stage::Losses)];
    for (options, stage) in runs {
        let stopped = analysis.score_with(options, &runtime(), &mut stops_at(stage));
        assert_eq!(error(stopped).kind(), ErrorKind::Cancelled, "{stage:?}");
    }
    let mut staged = analysis.score(&magnitude(), None).unwrap().cut(Ratio(0.5)).unwrap().stage(&output).unwrap();
    let stopped = staged.check(&runtime(), &VerifyOptions::default(), &mut stops_at(Stage::Verifying));
    assert_eq!(stopped.err().unwrap().kind(), ErrorKind::Cancelled);
    drop(staged);
    let network = Network::open(&analysis.model(), &NetworkOptions::default(), &Sizes::new(), None).unwrap();
    let loss = LossOptions { count: 2, ..LossOptions::on(fixture("ddpm_fashion16/heldout_images.npy")) };
    let stopped = network.loss(&runtime(), &loss, &mut stops_at(Stage::Losses));
    assert_eq!(error(stopped).kind(), ErrorKind::Cancelled);
    let few = SampleOptions { count: 1, steps: 2, ..SampleOptions::default() };
    let stopped = network.sample(&runtime(), &few, &mut stops_at(Stage::Sampling));
    assert_eq!(error(stopped).kind(), ErrorKind::Cancelled);
    assert_eq!(listing(folder.path()), [""; 0]);
}
