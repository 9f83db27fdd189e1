//! Several ranks train as one process does: the same samples, timesteps and noise, so that only rounding differs.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use onnx_diffprune::collective::{Alone, Collective, Threads};
use onnx_diffprune::error::Error;
use onnx_diffprune::finetuning::{FinetuneSettings, OptimizerOptions, Recipe};
use onnx_diffprune::{Model, Progress, Runtime};

use crate::support::fixtures::fixture;

/// Samples of a step: a multiple of every number of ranks in these tests.
const BATCH: usize = 6;

fn settings(folder: &Path, steps: u64) -> FinetuneSettings {
    let recipe = FinetuneSettings::new(fixture("ddpm_fashion16/train_images.npy"), folder, Recipe::Quick);
    FinetuneSettings {
        steps,
        batch: BATCH,
        rate: 1e-3,
        warmup: Some(0),
        held_out_count: 0,
        checkpoint_every: Some(2),
        flip: true,
        threads: Some(1),
        // Some gradients are zero except for rounding, such as that of the bias of keys, which the softmax cancels.
        // With an epsilon below the rounding error, Adam would take whole steps along them.
        optimizer: OptimizerOptions { epsilon: 1e-5, ..OptimizerOptions::default() },
        teacher: Some(Model::open(fixture("ddpm_fashion16.onnx")).unwrap()),
        ..recipe
    }
}

/// The result of a rank: the loss of every step, and the weights.
type Found = (Vec<f64>, Vec<f32>);

/// Trains as one rank. Calls `at_step` after every step.
fn train(
    settings: &FinetuneSettings,
    ranks: Arc<dyn Collective>,
    at_step: impl Fn(&dyn Collective, u64) -> ControlFlow<()>,
) -> Result<Found, Error> {
    let runtime = Runtime::open(None)?;
    let analysis = Model::open(fixture("ddpm_fashion16.onnx"))?.analyse()?;
    let settings = FinetuneSettings { ranks: ranks.clone(), ..settings.clone() };
    let mut losses = Vec::new();
    let tuned = analysis.finetune(&runtime, &settings, &mut |progress| match progress {
        Progress::Trained { report, .. } => {
            losses.push(report.loss);
            at_step(&*ranks, report.step)
        }
        _ => ControlFlow::Continue(()),
    })?;
    Ok((losses, tuned.values().concat()))
}

fn never(_: &dyn Collective, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn on_ranks(settings: &FinetuneSettings, size: usize) -> Vec<Found> {
    let found = Threads::run(size, |ranks| train(settings, ranks, never));
    found.into_iter().map(Result::unwrap).collect()
}

fn distance(some: &[f32], others: &[f32]) -> f64 {
    assert_eq!(some.len(), others.len());
    some.iter().zip(others).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// Returns the weights before the first step: those of a run that stops after one step with a learning rate of almost
/// zero.
fn untrained(folder: &Path) -> Vec<f32> {
    let still = FinetuneSettings { rate: 1e-30, ..settings(folder, 1) };
    train(&still, Arc::new(Alone), never).unwrap().1
}

/// Asserts that losses agree up to rounding, and that weights differ by far less than training changed them.
fn assert_same(found: &Found, expected: &Found, before: &[f32]) {
    assert_eq!(found.0.len(), expected.0.len());
    for (found, expected) in found.0.iter().zip(&expected.0) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "loss {found}, expected {expected}");
    }
    let (apart, moved) = (distance(&found.1, &expected.1), distance(&expected.1, before));
    println!("weights differ by {:.1e} of the change by training", apart / moved);
    assert!(moved > 0.0 && apart <= 1e-4 * moved, "{apart} of {moved}");
}

#[test]
fn two_and_three_ranks_train_as_one_process_with_the_same_batch() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |name: &str| settings(&folder.path().join(name), 4);
    let before = untrained(&folder.path().join("before"));
    let one = train(&settings("one"), Arc::new(Alone), never).unwrap();
    for size in [2, 3] {
        let all = on_ranks(&settings(&format!("{size} ranks")), size);
        assert!(all.iter().all(|found| *found == all[0]), "the ranks differ");
        assert_same(&all[0], &one, &before);
    }
    // Other noise leads to other weights, so the comparison would detect it.
    let other = FinetuneSettings { seed: 1, ..settings("other") };
    let (_, other) = train(&other, Arc::new(Alone), never).unwrap();
    assert!(distance(&other, &one.1) > 0.1 * distance(&one.1, &before));
}

#[test]
fn a_run_resumes_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let parts = settings(&folder.path().join("parts"), 6);
    let before = untrained(&folder.path().join("before"));
    let whole = train(&settings(&folder.path().join("whole"), 6), Arc::new(Alone), never).unwrap();
    // One rank is asked to stop, and all stop.
    let stop = |at: u64| {
        move |ranks: &dyn Collective, step: u64| match ranks.rank() + 1 == ranks.size() && step == at {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    for first in Threads::run(2, |ranks| train(&parts, ranks, stop(1))) {
        assert_eq!(first.unwrap().0.len(), 1);
    }
    let parts = FinetuneSettings { resume: true, ..parts };
    for second in Threads::run(3, |ranks| train(&parts, ranks, stop(3))) {
        assert_eq!(second.unwrap().0.len(), 2);
    }
    let last = train(&parts, Arc::new(Alone), never).unwrap();
    assert_same(&last, &(whole.0[3..].to_vec(), whole.1), &before);
}

#[test]
fn a_failed_rank_ends_the_run_and_the_last_checkpoint_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let of = settings(&folder.path().join("run"), 4);
    let fail = |ranks: &dyn Collective, step: u64| {
        assert!(ranks.rank() != 1 || step < 3, "test failure");
        ControlFlow::Continue(())
    };
    let errors = Threads::run(2, |ranks| train(&of, ranks, fail));
    let errors: Vec<String> = errors.into_iter().map(|result| result.unwrap_err().to_string()).collect();
    assert!(errors[0].contains("rank 1 has ended"), "{errors:?}");
    assert!(errors[1].contains("test failure"), "{errors:?}");
    let checkpoint = of.folder.join("step-000002.safetensors");
    assert!(checkpoint.exists());
    let resumed = FinetuneSettings { resume: true, ..of };
    assert_eq!(on_ranks(&resumed, 2)[0].0.len(), 2, "the run should resume at step 2");
}
